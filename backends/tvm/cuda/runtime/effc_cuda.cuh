/* What generated kernels use: numbers, and products on tensor cores.
 *
 * Only built-ins of the compiler, so that NVRTC needs no header of CUDA. Whoever executes these sources
 * elsewhere (tests do, on a CPU) defines EFFC_PRIMITIVES and brings its own.
 */
#ifndef EFFC_CUDA_CUH
#define EFFC_CUDA_CUH

#ifndef EFFC_PRIMITIVES

static __device__ __forceinline__ float effc_float(unsigned short h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}

static __device__ __forceinline__ unsigned short effc_half(float f) {
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

/* The lanes of a warp, together again after branches, as products need them. */
static __device__ __forceinline__ void effc_converge() { __syncwarp(); }

/* c += a b for a 16 x 8 tile of a warp and eight 32-bit words of the inner dimension: two halves or four
 * bytes each. With g = lane / 4 and t = lane % 4, `a` holds the words (row g, t), (g + 8, t), (g, t + 4),
 * (g + 8, t + 4), `b` the words (column g, t), (g, t + 4), `c` the elements (g, 2t), (g, 2t + 1),
 * (g + 8, 2t), (g + 8, 2t + 1). Source: PTX ISA, matrix fragments of mma.m16n8k16 and mma.m16n8k32. */
struct effc_f16 {
  typedef float sum;
  static __device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
  }
};

#if __CUDA_ARCH__ >= 800
#define EFFC_BYTES(type)                                                                              \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." type ".s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, " \
      "{%0,%1,%2,%3};"                                                                                \
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                                \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#else
#define EFFC_QUARTER(type, c0, c1, a0, b0)                                                   \
  asm("mma.sync.aligned.m8n8k16.row.col.s32." type ".s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" \
      : "+r"(c0), "+r"(c1) : "r"(a0), "r"(b0))
#define EFFC_BYTES(type)                          \
  EFFC_QUARTER(type, c[0], c[1], a[0], b[0]);     \
  EFFC_QUARTER(type, c[0], c[1], a[2], b[1]);     \
  EFFC_QUARTER(type, c[2], c[3], a[1], b[0]);     \
  EFFC_QUARTER(type, c[2], c[3], a[3], b[1])
#endif

struct effc_s8 {
  typedef int sum;
  static __device__ __forceinline__ void mma(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    EFFC_BYTES("s8");
  }
};

struct effc_u8 {
  typedef int sum;
  static __device__ __forceinline__ void mma(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    EFFC_BYTES("u8");
  }
};

#endif /* EFFC_PRIMITIVES */

struct effc_f32 {
  typedef float sum;
};

template <class To, class From>
static __device__ __forceinline__ To effc_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of another size");
  union {
    From from;
    To to;
  } u;
  u.from = from;
  return u.to;
}

static __device__ __forceinline__ float effc_rounded(float f) { return effc_float(effc_half(f)); }
static __device__ __forceinline__ float effc_infinity() { return effc_bits<float>(0x7f800000u); }
static __device__ __forceinline__ float effc_nan() { return effc_bits<float>(0x7fc00000u); }
static __device__ __forceinline__ double effc_infinity_double() {
  return effc_bits<double>(0x7ff0000000000000ull);
}
static __device__ __forceinline__ double effc_nan_double() {
  return effc_bits<double>(0x7ff8000000000000ull);
}
template <class T>
static __device__ __forceinline__ bool effc_isnan(T x) { return x != x; }
template <class T>
static __device__ __forceinline__ bool effc_isfinite(T x) { return x - x == T(0); }
template <class T>
static __device__ __forceinline__ bool effc_isinf(T x) { return x == x && !(x - x == T(0)); }
template <class T>
static __device__ __forceinline__ T effc_abs(T x) { return x < T(0) ? -x : x; }
/* as TIR's: the second where one is no number */
template <class T, class U>
static __device__ __forceinline__ auto effc_min(T a, U b) -> decltype(a + b) { return a < b ? a : b; }
template <class T, class U>
static __device__ __forceinline__ auto effc_max(T a, U b) -> decltype(a + b) { return a > b ? a : b; }
/* a shift by more than the bits that there are leaves none, or the sign */
template <class T, class U>
static __device__ __forceinline__ T effc_shift_left(T a, U b) {
  return (unsigned long long)b >= sizeof(T) * 8 ? T(0) : T(a << b);
}
template <class T, class U>
static __device__ __forceinline__ T effc_shift_right(T a, U b) {
  return (unsigned long long)b >= sizeof(T) * 8 ? (a < T(0) ? T(~T(0)) : T(0)) : T(a >> b);
}
/* rounded down, for any sign */
template <class T, class U>
static __device__ __forceinline__ auto effc_floor_mod(T a, U b) -> decltype(a % b) {
  decltype(a % b) r = a % b;
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
template <class T, class U>
static __device__ __forceinline__ auto effc_floor_div(T a, U b) -> decltype(a / b) {
  return a / b - (a % b != 0 && (a % b < 0) != (b < 0) ? 1 : 0);
}

#endif
