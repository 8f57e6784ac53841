/* Products of matrices, convolutions among them: C[m, n] = sum over k of A[m, k] B[n, k].
 *
 * A kernel is a struct K that says what is special about it:
 *
 *     typedef effc_f16 number;               what is multiplied: effc_f16, effc_s8, effc_u8, effc_f32
 *     enum { ROWS, COLUMNS, QUADS };         m, n, and k in units of 16 bytes
 *     enum { TILE_M, TILE_N };               of a block of threads: 32, 64 or 128
 *     enum { A_BY_ROWS, B_BY_ROWS };         whether neighbouring threads fetch neighbouring rows of A (B)
 *     uint4 a(int m, int quad) const;        16 bytes of A; any m >= 0, any quad: zeros outside
 *     uint4 b(int n, int quad) const;
 *     void store(int m, int n, sum value) const;
 *
 * Four warps, two by two. Both tiles pass through shared memory, 64 bytes of k at a time, fetched into
 * registers while the ones before are multiplied. Rows in shared memory are 80 bytes apart: the eight rows and four
 * words that a warp reads at once lie in 32 different banks.
 */
#ifndef EFFC_PRODUCT_CUH
#define EFFC_PRODUCT_CUH

#include "effc_cuda.cuh"

#define EFFC_THREADS 128
#define EFFC_STEP 4 /* units of 16 bytes of k that are in shared memory */

/* A fragment at `first`, rows 80 bytes apart. */
static __device__ __forceinline__ unsigned effc_word(const uint4 *tile, int row, int word) {
  return reinterpret_cast<const unsigned *>(tile)[row * ((EFFC_STEP + 1) * 4) + word];
}

/* Tensor cores: each warp has a tile of fragments of 16 x 8. */
template <class K, class N>
struct effc_warp {
  enum { WM = K::TILE_M / 2, WN = K::TILE_N / 2, MT = WM / 16, NT = WN / 8 };
  typename N::sum c[MT][NT][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
      for (int j = 0; j < NT; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) c[i][j][e] = 0;
  }

  __device__ __forceinline__ void multiply(const uint4 *a_tile, const uint4 *b_tile) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int m0 = warp / 2 * WM + g, n0 = warp % 2 * WN + g;
    effc_converge();
#pragma unroll
    for (int w = 0; w < EFFC_STEP * 4; w += 8) {
      unsigned a[MT][4], b[NT][2];
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        a[i][0] = effc_word(a_tile, m0 + i * 16, w + t);
        a[i][1] = effc_word(a_tile, m0 + i * 16 + 8, w + t);
        a[i][2] = effc_word(a_tile, m0 + i * 16, w + t + 4);
        a[i][3] = effc_word(a_tile, m0 + i * 16 + 8, w + t + 4);
      }
#pragma unroll
      for (int j = 0; j < NT; ++j) {
        b[j][0] = effc_word(b_tile, n0 + j * 8, w + t);
        b[j][1] = effc_word(b_tile, n0 + j * 8, w + t + 4);
      }
#pragma unroll
      for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int j = 0; j < NT; ++j) N::mma(c[i][j], a[i], b[j]);
    }
  }

  __device__ __forceinline__ void store(const K &k, int m0, int n0) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    m0 += warp / 2 * WM + g;
    n0 += warp % 2 * WN + t * 2;
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
      for (int j = 0; j < NT; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int m = m0 + i * 16 + e / 2 * 8, n = n0 + j * 8 + e % 2;
          if (m < K::ROWS && n < K::COLUMNS) k.store(m, n, c[i][j][e]);
        }
  }
};

/* float32 without tensor cores: each thread has every 16th row and every 8th column. */
template <class K>
struct effc_warp<K, effc_f32> {
  enum { MT = K::TILE_M / 16, NT = K::TILE_N / 8 };
  float c[MT][NT];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
      for (int j = 0; j < NT; ++j) c[i][j] = 0;
  }

  __device__ __forceinline__ void multiply(const uint4 *a_tile, const uint4 *b_tile) {
    const int row = threadIdx.x / 8, column = threadIdx.x % 8;
#pragma unroll
    for (int w = 0; w < EFFC_STEP * 4; ++w) {
      float a[MT], b[NT];
#pragma unroll
      for (int i = 0; i < MT; ++i) a[i] = effc_bits<float>(effc_word(a_tile, row + i * 16, w));
#pragma unroll
      for (int j = 0; j < NT; ++j) b[j] = effc_bits<float>(effc_word(b_tile, column + j * 8, w));
#pragma unroll
      for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int j = 0; j < NT; ++j) c[i][j] += a[i] * b[j];
    }
  }

  __device__ __forceinline__ void store(const K &k, int m0, int n0) {
    m0 += threadIdx.x / 8;
    n0 += threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
      for (int j = 0; j < NT; ++j) {
        const int m = m0 + i * 16, n = n0 + j * 8;
        if (m < K::ROWS && n < K::COLUMNS) k.store(m, n, c[i][j]);
      }
  }
};

/* Blocks: x along m, y along n. */
template <class K>
static __device__ __forceinline__ void effc_product(const K &k) {
  enum {
    LA = K::TILE_M * EFFC_STEP / EFFC_THREADS,
    LB = K::TILE_N * EFFC_STEP / EFFC_THREADS,
    STEPS = (K::QUADS + EFFC_STEP - 1) / EFFC_STEP
  };
  __shared__ uint4 a_tile[2][K::TILE_M][EFFC_STEP + 1];
  __shared__ uint4 b_tile[2][K::TILE_N][EFFC_STEP + 1];
  const int m0 = blockIdx.x * K::TILE_M, n0 = blockIdx.y * K::TILE_N;
  uint4 a[LA], b[LB];
  effc_warp<K, typename K::number> warp;
  warp.clear();
  for (int step = 0; step <= STEPS; ++step) {
    if (step < STEPS) {
#pragma unroll
      for (int i = 0; i < LA; ++i) {
        const int f = threadIdx.x + i * EFFC_THREADS;
        const int row = K::A_BY_ROWS ? f % K::TILE_M : f / EFFC_STEP;
        const int quad = K::A_BY_ROWS ? f / K::TILE_M : f % EFFC_STEP;
        a[i] = k.a(m0 + row, step * EFFC_STEP + quad);
      }
#pragma unroll
      for (int i = 0; i < LB; ++i) {
        const int f = threadIdx.x + i * EFFC_THREADS;
        const int row = K::B_BY_ROWS ? f % K::TILE_N : f / EFFC_STEP;
        const int quad = K::B_BY_ROWS ? f / K::TILE_N : f % EFFC_STEP;
        b[i] = k.b(n0 + row, step * EFFC_STEP + quad);
      }
    }
    if (step > 0) warp.multiply(&a_tile[(step - 1) % 2][0][0], &b_tile[(step - 1) % 2][0][0]);
    if (step < STEPS) {
#pragma unroll
      for (int i = 0; i < LA; ++i) {
        const int f = threadIdx.x + i * EFFC_THREADS;
        a_tile[step % 2][K::A_BY_ROWS ? f % K::TILE_M : f / EFFC_STEP]
              [K::A_BY_ROWS ? f / K::TILE_M : f % EFFC_STEP] = a[i];
      }
#pragma unroll
      for (int i = 0; i < LB; ++i) {
        const int f = threadIdx.x + i * EFFC_THREADS;
        b_tile[step % 2][K::B_BY_ROWS ? f % K::TILE_N : f / EFFC_STEP]
              [K::B_BY_ROWS ? f / K::TILE_N : f % EFFC_STEP] = b[i];
      }
      __syncthreads();
    }
  }
  __syncwarp();
  warp.store(k, m0, n0);
}

#endif
