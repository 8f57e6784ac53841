/* Runs a model's table of calls on a pool of threads.
 *
 * All threads walk the whole table together. A call's tasks are split evenly, each thread computes its share,
 * and a barrier ends the call; who waits spins for a while and then sleeps. With one thread there is
 * neither barrier nor atomic operation. The split depends on the number of threads alone, and tasks are
 * independent, so the results have the same bits for any number of threads.
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
#define SPIN_IN_CALL 20000 /* pauses of 15 to 50 ns: the others are at work and will be here soon */
#define SPIN_IDLE 4000     /* between inferences: most callers come back at once, or much later */

typedef struct {
  _Alignas(ALIGNMENT) atomic_uint count; /* changes when waiters may go on */
  atomic_int sleepers;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
} gate;

typedef struct worker {
  effc_model *model;
  int32_t index;
  pthread_t thread;
} worker;

struct effc_model {
  const effc_program *program;
  unsigned char *memory; /* the arena, then one scratch area a thread */
  size_t memory_bytes, scratch_bytes;
  void **arguments;
  const void *const *inputs;
  void *const *outputs;
  uint64_t *nanoseconds;
  int32_t threads;
  worker *workers; /* threads - 1 of them */
  int stop;
  gate start, done;
  _Alignas(ALIGNMENT) atomic_int arrived;
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

static void gate_init(gate *g) {
  atomic_init(&g->count, 0);
  atomic_init(&g->sleepers, 0);
  pthread_mutex_init(&g->mutex, NULL);
  pthread_cond_init(&g->changed, NULL);
}

static void gate_destroy(gate *g) {
  pthread_cond_destroy(&g->changed);
  pthread_mutex_destroy(&g->mutex);
}

static void gate_open(gate *g) {
  atomic_fetch_add(&g->count, 1);
  if (atomic_load(&g->sleepers)) {
    pthread_mutex_lock(&g->mutex);
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->mutex);
  }
}

static void gate_wait(gate *g, unsigned seen, int spins) {
  for (int i = 0; i < spins; i++) {
    if (atomic_load_explicit(&g->count, memory_order_acquire) != seen) return;
    pause_briefly();
  }
  pthread_mutex_lock(&g->mutex);
  atomic_fetch_add(&g->sleepers, 1);
  while (atomic_load(&g->count) == seen) pthread_cond_wait(&g->changed, &g->mutex);
  atomic_fetch_sub(&g->sleepers, 1);
  pthread_mutex_unlock(&g->mutex);
}

static void barrier(effc_model *m) {
  unsigned seen = atomic_load_explicit(&m->done.count, memory_order_relaxed);
  if (atomic_fetch_add(&m->arrived, 1) == m->threads - 1) {
    atomic_store(&m->arrived, 0);
    gate_open(&m->done);
  } else {
    gate_wait(&m->done, seen, SPIN_IN_CALL);
  }
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void walk(effc_model *m, int32_t thread) {
  const effc_program *p = m->program;
  unsigned char *scratch = m->memory + p->arena_bytes + (size_t)thread * m->scratch_bytes;
  const int64_t threads = m->threads;
  uint64_t *nanoseconds = thread == 0 ? m->nanoseconds : NULL;
  uint64_t before = nanoseconds ? now() : 0;
  for (int32_t i = 0; i < p->calls; i++) {
    const effc_step *s = &p->step[i];
    int32_t begin = (int32_t)(s->tasks * (int64_t)thread / threads);
    int32_t end = (int32_t)(s->tasks * ((int64_t)thread + 1) / threads);
    if (begin < end) s->kernel(m->arguments + s->first, scratch, begin, end);
    if (threads > 1) barrier(m);
    if (nanoseconds) {
      uint64_t after = now();
      nanoseconds[i] = after - before;
      before = after;
    }
  }
}

static void *work(void *argument) {
  worker *w = argument;
  effc_model *m = w->model;
  for (unsigned seen = 0;; seen++) {
    gate_wait(&m->start, seen, SPIN_IDLE);
    if (m->stop) return NULL;
    walk(m, w->index);
  }
}

static void stop_workers(effc_model *m, int32_t started) {
  m->stop = 1;
  gate_open(&m->start);
  for (int32_t i = 0; i < started; i++) pthread_join(m->workers[i].thread, NULL);
  gate_destroy(&m->start);
  gate_destroy(&m->done);
  free(m->workers);
  free(m->memory);
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
  if (posix_memalign((void **)&m->memory, ALIGNMENT, m->memory_bytes + ALIGNMENT))
    return fail("out of memory for the model's intermediate tensors");
  m->workers = calloc((size_t)threads, sizeof *m->workers);
  if (!m->workers) {
    free(m->memory);
    m->memory = NULL;
    return fail("out of memory for the model's threads");
  }
  for (int32_t i = 0; i < p->arguments; i++) {
    const effc_argument *a = &p->argument[i];
    if (a->space == EFFC_ARENA) m->arguments[i] = m->memory + a->offset;
    if (a->space == EFFC_CONSTANT) m->arguments[i] = (void *)(p->constants + a->offset);
  }
  m->threads = threads;
  m->stop = 0;
  gate_init(&m->start);
  gate_init(&m->done);
  atomic_store(&m->arrived, 0);
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
  m->arguments = calloc((size_t)m->program->arguments + 1, sizeof *m->arguments);
  if (!m->arguments || start_workers(m, threads)) {
    if (!m->arguments) fail("out of memory");
    free(m->arguments);
    free(m);
    return NULL;
  }
  return m;
}

void effc_model_destroy(effc_model *m) {
  if (!m) return;
  if (m->threads) stop_workers(m, m->threads - 1);
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
  if (m->threads > 1) gate_open(&m->start);
  walk(m, 0);
  return 0;
}

int32_t effc_model_invoke(effc_model *m, const void *const *inputs, void *const *outputs) {
  return effc_model_profile(m, inputs, outputs, NULL);
}
