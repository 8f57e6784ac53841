/* Runs a model's table of calls on a pool of threads.
 *
 * Calls run one after the other. Each thread has an even share of a call's tasks, which it takes in a few
 * pieces; who has finished takes pieces of the others' shares, so a thread that the system has put aside
 * holds up nobody but by the piece in its hands. The thread that finishes the last piece opens the next
 * call; who waits spins for a while and then sleeps. With one thread there is no atomic operation at all.
 * Tasks are independent, so the results have the same bits for any number of threads.
 *
 * Stale threads: a piece is taken by compare-and-swap on a word that holds the call's number (unique over all
 * inferences) and the next task, so a thread that wakes up late can't touch a later call by mistake.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "program.h"

#define ALIGNMENT 64
#define MAX_THREADS 256
#define PIECES 4 /* of a thread's share */
#define SPIN_IN_CALL 20000 /* pauses of 15 to 50 ns: the others are at work and will be here soon */
#define SPIN_IDLE 4000     /* between inferences: most callers come back at once, or much later */

typedef struct {
  _Alignas(ALIGNMENT) atomic_uint_fast64_t word; /* number of the call << 32 | next task */
} share;

typedef struct worker {
  effc_model *model;
  int32_t index;
  pthread_t thread;
} worker;

struct effc_model {
  const effc_program *program;
  const unsigned char *constants;
  unsigned char *memory; /* the arena, then one scratch area a thread */
  size_t memory_bytes, scratch_bytes;
  void **arguments;
  uint64_t *nanoseconds, before; /* of the profile */
  int32_t threads;
  worker *workers; /* threads - 1 of them */
  share *shares;   /* one a thread */
  atomic_int stop, sleepers;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  /* Number of the open call; modulo (calls + 1) it is the index of the call, and `calls` means idle. */
  _Alignas(ALIGNMENT) atomic_uint_fast64_t open;
  _Alignas(ALIGNMENT) atomic_int done; /* tasks of the open call */
};

static _Thread_local char error_text[256];

static int32_t fail(const char *text) {
  snprintf(error_text, sizeof error_text, "%s", text);
  return 1;
}

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

/* Numbers below the smallest normal one count as zero while kernels run: trained weights and dead channels
 * have many, and processors take a hundred cycles for each. */
static uint64_t flush_subnormals(void) {
#if defined(__x86_64__) || defined(__i386__)
  unsigned before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(before | 0x8040u); /* FTZ, DAZ */
  return before;
#elif defined(__aarch64__)
  uint64_t before;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before));
  __asm__ volatile("msr fpcr, %0" : : "r"(before | (1u << 24))); /* FZ */
  return before;
#else
  return 0;
#endif
}

static void restore_subnormals(uint64_t before) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_ldmxcsr((unsigned)before);
#elif defined(__aarch64__)
  __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
  (void)before;
#endif
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int32_t index_of(const effc_model *m, uint64_t number) {
  return (int32_t)(number % ((uint64_t)m->program->calls + 1));
}

static int32_t share_begin(const effc_model *m, int32_t tasks, int32_t thread) {
  return (int32_t)((int64_t)tasks * thread / m->threads);
}

static void wake_all(effc_model *m) {
  if (atomic_load(&m->sleepers)) {
    pthread_mutex_lock(&m->mutex);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->mutex);
  }
}

/* The number of the open call as soon as it is not `seen`. */
static uint64_t wait_for_change(effc_model *m, uint64_t seen) {
  int spins = index_of(m, seen) == m->program->calls ? SPIN_IDLE : SPIN_IN_CALL;
  for (int i = 0; i < spins; i++) {
    uint64_t number = atomic_load_explicit(&m->open, memory_order_acquire);
    if (number != seen) return number;
    pause_briefly();
  }
  pthread_mutex_lock(&m->mutex);
  atomic_fetch_add(&m->sleepers, 1);
  while (atomic_load(&m->open) == seen && !atomic_load(&m->stop))
    pthread_cond_wait(&m->changed, &m->mutex);
  atomic_fetch_sub(&m->sleepers, 1);
  pthread_mutex_unlock(&m->mutex);
  return atomic_load(&m->open);
}

/* Open call `number`, or the next one that has tasks. Only one thread at a time can be here. */
static void open_call(effc_model *m, uint64_t number) {
  const effc_program *p = m->program;
  int32_t i = index_of(m, number);
  for (; i < p->calls && !p->step[i].tasks; i++, number++)
    if (m->nanoseconds) m->nanoseconds[i] = 0;
  atomic_store_explicit(&m->done, 0, memory_order_relaxed);
  if (i < p->calls)
    for (int32_t t = 0; t < m->threads; t++) {
      uint64_t word = number << 32 | (uint32_t)share_begin(m, p->step[i].tasks, t);
      atomic_store_explicit(&m->shares[t].word, word, memory_order_release);
    }
  atomic_store(&m->open, number);
  wake_all(m);
}

static void *scratch_of(const effc_model *m, int32_t thread) {
  return m->memory + m->program->arena_bytes + (size_t)thread * m->scratch_bytes;
}

/* Take part in call `number` until none of its tasks is free. */
static void take_part(effc_model *m, int32_t thread, uint64_t number) {
  const effc_program *p = m->program;
  int32_t i = index_of(m, number), completed = 0;
  if (i == p->calls) return;
  const effc_step *s = &p->step[i];
  for (int32_t k = 0; k < m->threads; k++) {
    int32_t owner = (thread + k) % m->threads;
    int32_t begin = share_begin(m, s->tasks, owner), end = share_begin(m, s->tasks, owner + 1);
    int32_t piece = (end - begin + PIECES - 1) / PIECES;
    atomic_uint_fast64_t *word = &m->shares[owner].word;
    uint_fast64_t seen = atomic_load_explicit(word, memory_order_acquire);
    while ((uint32_t)(seen >> 32) == (uint32_t)number && (int32_t)(uint32_t)seen < end) {
      int32_t from = (int32_t)(uint32_t)seen, to = from + piece < end ? from + piece : end;
      if (!atomic_compare_exchange_weak(word, &seen, number << 32 | (uint32_t)to)) continue;
      s->kernel(m->arguments + s->first, scratch_of(m, thread), from, to);
      completed += to - from;
      seen = atomic_load_explicit(word, memory_order_acquire);
    }
  }
  if (completed && atomic_fetch_add(&m->done, completed) + completed == s->tasks) {
    if (m->nanoseconds) {
      uint64_t after = now();
      m->nanoseconds[i] = after - m->before;
      m->before = after;
    }
    open_call(m, number + 1);
  }
}

static void *work(void *argument) {
  worker *w = argument;
  effc_model *m = w->model;
  uint64_t seen = (uint64_t)m->program->calls;
  flush_subnormals();
  for (;;) {
    seen = wait_for_change(m, seen);
    if (atomic_load(&m->stop)) return NULL;
    take_part(m, w->index, seen);
  }
}

static void walk_together(effc_model *m) {
  uint64_t number = atomic_load(&m->open);
  open_call(m, number + 1);
  number = atomic_load(&m->open);
  while (index_of(m, number) != m->program->calls) {
    take_part(m, 0, number);
    number = wait_for_change(m, number);
  }
}

static void walk_alone(effc_model *m) {
  const effc_program *p = m->program;
  uint64_t *nanoseconds = m->nanoseconds;
  for (int32_t i = 0; i < p->calls; i++) {
    const effc_step *s = &p->step[i];
    if (s->tasks) s->kernel(m->arguments + s->first, scratch_of(m, 0), 0, s->tasks);
    if (nanoseconds) {
      uint64_t after = now();
      nanoseconds[i] = after - m->before;
      m->before = after;
    }
  }
}

static void stop_workers(effc_model *m, int32_t started) {
  atomic_store(&m->stop, 1);
  pthread_mutex_lock(&m->mutex);
  pthread_cond_broadcast(&m->changed);
  pthread_mutex_unlock(&m->mutex);
  /* those that spin see `open` change to another number that means idle */
  atomic_fetch_add(&m->open, (uint64_t)m->program->calls + 1);
  for (int32_t i = 0; i < started; i++) pthread_join(m->workers[i].thread, NULL);
  pthread_cond_destroy(&m->changed);
  pthread_mutex_destroy(&m->mutex);
  free(m->shares);
  free(m->workers);
  free(m->memory);
  m->shares = NULL;
  m->workers = NULL;
  m->memory = NULL;
  m->threads = 0;
}

static int32_t start_workers(effc_model *m, int32_t threads) {
  const effc_program *p = m->program;
  if (threads < 1 || threads > MAX_THREADS) return fail("threads must be 1 to 256");
  m->scratch_bytes = (p->scratch_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  m->memory_bytes = p->arena_bytes + (size_t)threads * m->scratch_bytes;
  m->memory = NULL;
  m->shares = NULL;
  m->workers = calloc((size_t)threads, sizeof *m->workers);
  if (!m->workers ||
      posix_memalign((void **)&m->shares, ALIGNMENT, (size_t)threads * sizeof *m->shares) ||
      posix_memalign((void **)&m->memory, ALIGNMENT, m->memory_bytes + ALIGNMENT)) {
    free(m->workers);
    free(m->shares);
    m->workers = NULL;
    m->shares = NULL;
    return fail("out of memory for the model's intermediate tensors");
  }
  for (int32_t i = 0; i < p->arguments; i++) {
    const effc_argument *a = &p->argument[i];
    if (a->space == EFFC_ARENA) m->arguments[i] = m->memory + a->offset;
    if (a->space == EFFC_CONSTANT) m->arguments[i] = (void *)(m->constants + a->offset);
  }
  m->threads = threads;
  atomic_store(&m->stop, 0);
  atomic_store(&m->sleepers, 0);
  atomic_store(&m->open, (uint64_t)p->calls);
  for (int32_t t = 0; t < threads; t++) atomic_init(&m->shares[t].word, UINT64_MAX);
  pthread_mutex_init(&m->mutex, NULL);
  pthread_cond_init(&m->changed, NULL);
  for (int32_t i = 0; i + 1 < threads; i++) {
    m->workers[i].model = m;
    m->workers[i].index = i + 1;
    if (pthread_create(&m->workers[i].thread, NULL, work, &m->workers[i])) {
      stop_workers(m, i);
      return fail("the operating system refuses to start another thread");
    }
  }
  return 0;
}

/* Coded constants are decoded for the first instance, shared by all, and freed with the last. */
static pthread_mutex_t decoded_mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned char *decoded;
static int32_t decoded_users;

static const unsigned char *acquire_constants(const effc_program *p) {
  pthread_mutex_lock(&decoded_mutex);
  if (!decoded) {
    const char *wrong = NULL;
    if (posix_memalign((void **)&decoded, ALIGNMENT, p->decoded_bytes + ALIGNMENT)) {
      decoded = NULL;
      fail("out of memory for the model's constants");
    } else if ((wrong = p->decode(p->constants, p->coded_bytes, decoded, p->decoded_bytes))) {
      snprintf(error_text, sizeof error_text, "the model's constants are damaged: %s", wrong);
      free(decoded);
      decoded = NULL;
    }
  }
  decoded_users += decoded != NULL;
  const unsigned char *found = decoded;
  pthread_mutex_unlock(&decoded_mutex);
  return found;
}

static void release_constants(const effc_program *p) {
  if (!p->decode) return;
  pthread_mutex_lock(&decoded_mutex);
  if (--decoded_users == 0) {
    free(decoded);
    decoded = NULL;
  }
  pthread_mutex_unlock(&decoded_mutex);
}

int32_t effc_model_api_version(void) { return EFFC_MODEL_API; }
int32_t effc_model_input_count(void) { return effc_the_program.inputs; }
int32_t effc_model_output_count(void) { return effc_the_program.outputs; }
int32_t effc_model_call_count(void) { return effc_the_program.calls; }

const effc_tensor *effc_model_input(int32_t i) {
  return i >= 0 && i < effc_the_program.inputs ? &effc_the_program.input[i] : NULL;
}

const effc_tensor *effc_model_output(int32_t i) {
  return i >= 0 && i < effc_the_program.outputs ? &effc_the_program.output[i] : NULL;
}

const effc_call *effc_model_call(int32_t i) {
  return i >= 0 && i < effc_the_program.calls ? &effc_the_program.call[i] : NULL;
}

const char *effc_model_last_error(void) { return error_text; }

effc_model *effc_model_create(int32_t threads) {
  const char *missing = effc_missing_feature();
  if (missing) {
    snprintf(error_text, sizeof error_text, "this processor lacks %s, which the model was built for",
             missing);
    return NULL;
  }
  effc_model *m = NULL;
  if (posix_memalign((void **)&m, ALIGNMENT, sizeof *m)) {
    fail("out of memory");
    return NULL;
  }
  memset(m, 0, sizeof *m);
  m->program = &effc_the_program;
  m->constants = m->program->decode ? acquire_constants(m->program) : m->program->constants;
  if (m->program->decode && !m->constants) {
    free(m);
    return NULL;
  }
  m->arguments = calloc((size_t)m->program->arguments + 1, sizeof *m->arguments);
  if (!m->arguments || start_workers(m, threads)) {
    if (!m->arguments) fail("out of memory");
    release_constants(m->program);
    free(m->arguments);
    free(m);
    return NULL;
  }
  return m;
}

void effc_model_destroy(effc_model *m) {
  if (!m) return;
  if (m->threads) stop_workers(m, m->threads - 1);
  release_constants(m->program);
  free(m->arguments);
  free(m);
}

int32_t effc_model_set_threads(effc_model *m, int32_t threads) {
  if (!m) return fail("the model is NULL");
  if (threads < 1 || threads > MAX_THREADS) return fail("threads must be 1 to 256");
  if (threads == m->threads) return 0;
  if (m->threads) stop_workers(m, m->threads - 1);
  return start_workers(m, threads);
}

size_t effc_model_arena_bytes(const effc_model *m) { return m ? m->memory_bytes : 0; }

int32_t effc_model_profile(effc_model *m, const void *const *inputs, void *const *outputs,
                           uint64_t *nanoseconds) {
  if (!m) return fail("the model is NULL");
  if (!m->threads) return fail("the model has no threads since effc_model_set_threads failed");
  const effc_program *p = m->program;
  for (int32_t i = 0; i < p->inputs; i++)
    if (!inputs || (!inputs[i] && p->input[i].bytes)) return fail("an input is NULL");
  for (int32_t i = 0; i < p->outputs; i++)
    if (!outputs || (!outputs[i] && p->output[i].bytes)) return fail("an output is NULL");
  for (int32_t i = 0; i < p->arguments; i++) {
    const effc_argument *a = &p->argument[i];
    if (a->space == EFFC_INPUT) m->arguments[i] = (char *)(uintptr_t)inputs[a->index] + a->offset;
    if (a->space == EFFC_OUTPUT) m->arguments[i] = (char *)outputs[a->index] + a->offset;
  }
  m->nanoseconds = nanoseconds;
  m->before = nanoseconds ? now() : 0;
  uint64_t mode = flush_subnormals();
  if (m->threads > 1)
    walk_together(m);
  else
    walk_alone(m);
  restore_subnormals(mode);
  return 0;
}

int32_t effc_model_invoke(effc_model *m, const void *const *inputs, void *const *outputs) {
  return effc_model_profile(m, inputs, outputs, NULL);
}
