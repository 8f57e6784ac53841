/* Generated kernels as C++ for a CPU: what CUDA has built in, threads of a block as coroutines, and matrix
 * fragments by their definition in the PTX ISA. Included before the kernels' source. */
#define EFFC_PRIMITIVES
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __shared__ static

struct uint4 {
  unsigned x, y, z, w;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct effc_dim {
  unsigned x, y, z;
};
static effc_dim threadIdx, blockIdx;

static inline float __fmul_rn(float a, float b) { return a * b; } /* -ffp-contract=off */

/* IEEE half precision, rounded to nearest even */
static inline float effc_float(unsigned short h) {
  _Float16 v;
  memcpy(&v, &h, 2);
  return (float)v;
}
static inline unsigned short effc_half(float f) {
  _Float16 v = (_Float16)f;
  unsigned short h;
  memcpy(&h, &v, 2);
  return h;
}

/* threads of a block */

#define THREADS 128
static ucontext_t main_context, contexts[THREADS];
static char *stacks;
static int finished[THREADS], current, threads_reversed;
static void (*entry)(void **);
static void **entry_arguments;

static void run_products(void);
static inline void effc_converge() {} /* no barrier: memory is not made visible by it */

static void become(int t) {
  current = t;
  threadIdx = {(unsigned)t, 0, 0};
}

static void wait_for_all(void) { swapcontext(&contexts[current], &main_context); }
#define __syncthreads() wait_for_all()
#define __syncwarp() wait_for_all()

static void thread_main(void) {
  entry(entry_arguments);
  finished[current] = 1;
}

static void run_block(int count) {
  if (!stacks) stacks = (char *)malloc((size_t)THREADS << 17);
  for (int t = 0; t < count; ++t) {
    getcontext(&contexts[t]);
    contexts[t].uc_stack.ss_sp = stacks + ((size_t)t << 17);
    contexts[t].uc_stack.ss_size = 1 << 17;
    contexts[t].uc_link = &main_context;
    makecontext(&contexts[t], thread_main, 0);
    finished[t] = 0;
  }
  for (int left = count; left;) {
    left = 0;
    int done = 0;
    for (int i = 0; i < count; ++i) {
      int t = threads_reversed ? count - 1 - i : i;
      if (finished[t]) continue;
      become(t);
      swapcontext(&main_context, &contexts[t]);
      left += !finished[t];
      done += finished[t];
    }
    if (left && done) {
      fprintf(stderr, "some threads of a block ended at a barrier of the others\n");
      abort();
    }
    run_products();
  }
}

template <class... A, size_t... I>
static void call_with(void (*kernel)(A...), void **p, std::index_sequence<I...>) {
  kernel(*(A *)p[I]...);
}

#define EMULATED(name, count, barriers)                                                                   \
  static void call_##name(void **p) { call_with(name, p, std::make_index_sequence<count>()); }            \
  extern "C" int count_##name = count;                                                                    \
  extern "C" void launch_##name(void **p, const unsigned *grid, unsigned block, int reversed) {           \
    threads_reversed = reversed;                                                                          \
    emulate(call_##name, p, grid, block, barriers);                                                       \
  }

static void emulate(void (*kernel)(void **), void **arguments, const unsigned *grid, unsigned block, int barriers) {
  entry = kernel;
  entry_arguments = arguments;
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        if (barriers) {
          run_block((int)block);
          continue;
        }
        for (unsigned t = 0; t < block; ++t) {
          become((int)(threads_reversed ? block - 1 - t : t));
          kernel(arguments);
        }
      }
}

/* Products of a warp. A lane leaves its fragments here; the products are made at the next barrier, when the
 * 32 lanes have left theirs in the same order. */

struct request {
  void *c;
  unsigned a[4], b[2];
  int kind;
};
#define REQUESTS 4096
static request requests[THREADS][REQUESTS];
static int requested[THREADS];

static void leave(void *c, const unsigned *a, const unsigned *b, int kind) {
  if (requested[current] == REQUESTS) abort();
  request &r = requests[current][requested[current]++];
  r.c = c;
  memcpy(r.a, a, sizeof r.a);
  memcpy(r.b, b, sizeof r.b);
  r.kind = kind;
}

static double number(unsigned word, int part, int kind) {
  if (kind == 0) return effc_float((unsigned short)(word >> 16 * part));
  unsigned byte = word >> 8 * part & 255;
  return kind == 2 ? (double)byte : (double)(signed char)byte;
}

static void multiply(int warp, int i) {
  const int lane0 = warp * 32, kind = requests[lane0][i].kind, per = kind ? 4 : 2;
  static double a[16][32], b[8][32];
  for (int lane = 0; lane < 32; ++lane) {
    const request &r = requests[lane0 + lane][i];
    const int g = lane / 4, t = lane % 4;
    for (int part = 0; part < per; ++part) {
      a[g][t * per + part] = number(r.a[0], part, kind);
      a[g + 8][t * per + part] = number(r.a[1], part, kind);
      a[g][(t + 4) * per + part] = number(r.a[2], part, kind);
      a[g + 8][(t + 4) * per + part] = number(r.a[3], part, kind);
      b[g][t * per + part] = number(r.b[0], part, kind ? 1 : 0);
      b[g][(t + 4) * per + part] = number(r.b[1], part, kind ? 1 : 0);
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
      double total = 0;
      for (int k = 0; k < 8 * per; ++k) total += a[row][k] * b[column][k];
      void *c = requests[lane0 + lane][i].c;
      if (kind)
        ((int *)c)[e] = (int)((unsigned)((int *)c)[e] + (unsigned)(int)total);
      else
        ((float *)c)[e] += (float)total;
    }
}

static void run_products(void) {
  for (int warp = 0; warp < THREADS / 32; ++warp) {
    for (int lane = 1; lane < 32; ++lane)
      if (requested[warp * 32 + lane] != requested[warp * 32]) {
        fprintf(stderr, "lanes of a warp make different products\n");
        abort();
      }
    for (int i = 0; i < requested[warp * 32]; ++i) multiply(warp, i);
  }
  memset(requested, 0, sizeof requested);
}

struct effc_f16 {
  typedef float sum;
  static void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { leave(c, a, b, 0); }
};
struct effc_s8 {
  typedef int sum;
  static void mma(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { leave(c, a, b, 1); }
};
struct effc_u8 {
  typedef int sum;
  static void mma(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { leave(c, a, b, 2); }
};
