/* Arithmetic that the kernels share. With the DSP extension of ARM every function is one instruction;
   elsewhere plain C99 gives the same bits. */
#ifndef EFFC_KERNELS_H
#define EFFC_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__ARM_FEATURE_DSP) && defined(__arm__)
#include <arm_acle.h>
#define EFFC_DSP 1
#endif

#if defined(__GNUC__)
#define EFFC_INLINE static inline __attribute__((always_inline))
#else
#define EFFC_INLINE static inline
#endif

#if defined(__GNUC__) && !defined(__clang__)
#define EFFC_UNROLL _Pragma("GCC unroll 4")
#else
#define EFFC_UNROLL
#endif

EFFC_INLINE uint32_t effc_load4(const void *from) {
  uint32_t word;
  memcpy(&word, from, 4);
  return word;
}

EFFC_INLINE float effc_load_float(const void *from, int index) {
  float value;
  memcpy(&value, (const char *)from + 4 * index, 4);
  return value;
}

EFFC_INLINE void effc_store_float(void *to, int index, float value) {
  memcpy((char *)to + 4 * index, &value, 4);
}

/* the halves of a word as int16 */
EFFC_INLINE int32_t effc_low(uint32_t word) { return (int16_t)(word & 0xffffu); }
EFFC_INLINE int32_t effc_high(uint32_t word) { return (int16_t)(word >> 16); }

/* bytes 0 and 2 of a word, or bytes 1 and 3, as two int16 */
EFFC_INLINE uint32_t effc_even(uint32_t word) {
#ifdef EFFC_DSP
  return (uint32_t)__sxtb16(word);
#else
  return ((uint32_t)(int8_t)word & 0xffffu) | ((uint32_t)(int8_t)(word >> 16) << 16);
#endif
}

EFFC_INLINE uint32_t effc_odd(uint32_t word) {
#ifdef EFFC_DSP
  uint32_t halves;
  __asm__("sxtb16 %0, %1, ror #8" : "=r"(halves) : "r"(word));
  return halves;
#else
  return effc_even(word >> 8);
#endif
}

/* acc + both products of halves; the caller's sums fit 32 bits */
EFFC_INLINE int32_t effc_dot2(uint32_t a, uint32_t b, int32_t acc) {
#ifdef EFFC_DSP
  return __smlad((int16x2_t)a, (int16x2_t)b, acc);
#else
  return acc + effc_low(a) * effc_low(b) + effc_high(a) * effc_high(b);
#endif
}

/* a0, b0: two rows by one channel; a1, b1: by the next one. `pairs` is of effc_interleave, `taps` holds the
   weights of both channels in turn, four a word. `count` words of each; gives the place behind the weights. */
EFFC_INLINE const uint32_t *effc_dot_2x2(const uint32_t *pairs, const uint32_t *taps, int count,
                                         int32_t *a0, int32_t *b0, int32_t *a1, int32_t *b1) {
#ifdef EFFC_DSP
#define EFFC_FOUR_TAPS \
  "ldrd %[t0], %[t1], [%[w]], #8\n\t" \
  "ldrd %[u], %[v], [%[q]], #8\n\t" \
  "sxtb16 %[e], %[t0]\n\t" \
  "sxtb16 %[f], %[t1]\n\t" \
  "smlad %[a0], %[u], %[e], %[a0]\n\t" \
  "smlad %[b0], %[v], %[e], %[b0]\n\t" \
  "smlad %[a1], %[u], %[f], %[a1]\n\t" \
  "smlad %[b1], %[v], %[f], %[b1]\n\t" \
  "ldrd %[u], %[v], [%[q]], #8\n\t" \
  "sxtb16 %[e], %[t0], ror #8\n\t" \
  "sxtb16 %[f], %[t1], ror #8\n\t" \
  "smlad %[a0], %[u], %[e], %[a0]\n\t" \
  "smlad %[b0], %[v], %[e], %[b0]\n\t" \
  "smlad %[a1], %[u], %[f], %[a1]\n\t" \
  "smlad %[b1], %[v], %[f], %[b1]\n\t"
  uint32_t t0, t1, u, v, e, f;
  if (count >= 4) {
    const uint32_t *const end = pairs + count / 4 * 16;
    __asm__("1:\n\t" EFFC_FOUR_TAPS EFFC_FOUR_TAPS EFFC_FOUR_TAPS EFFC_FOUR_TAPS
            "cmp %[q], %[end]\n\t"
            "bne 1b"
            : [a0] "+r"(*a0), [b0] "+r"(*b0), [a1] "+r"(*a1), [b1] "+r"(*b1), [q] "+r"(pairs),
              [w] "+r"(taps), [t0] "=&r"(t0), [t1] "=&r"(t1), [u] "=&r"(u), [v] "=&r"(v),
              [e] "=&r"(e), [f] "=&r"(f)
            : [end] "r"(end)
            : "cc", "memory");
  }
  for (int k = 0; k < count % 4; k++) {
    __asm__(EFFC_FOUR_TAPS
            : [a0] "+r"(*a0), [b0] "+r"(*b0), [a1] "+r"(*a1), [b1] "+r"(*b1), [q] "+r"(pairs),
              [w] "+r"(taps), [t0] "=&r"(t0), [t1] "=&r"(t1), [u] "=&r"(u), [v] "=&r"(v),
              [e] "=&r"(e), [f] "=&r"(f)
            :
            : "memory");
  }
#undef EFFC_FOUR_TAPS
#else
  for (int k = 0; k < count; k++, pairs += 4, taps += 2) {
    const uint32_t e0 = effc_even(taps[0]), o0 = effc_odd(taps[0]);
    const uint32_t e1 = effc_even(taps[1]), o1 = effc_odd(taps[1]);
    *a0 = effc_dot2(pairs[2], o0, effc_dot2(pairs[0], e0, *a0));
    *b0 = effc_dot2(pairs[3], o0, effc_dot2(pairs[1], e0, *b0));
    *a1 = effc_dot2(pairs[2], o1, effc_dot2(pairs[0], e1, *a1));
    *b1 = effc_dot2(pairs[3], o1, effc_dot2(pairs[1], e1, *b1));
  }
#endif
  return taps;
}

EFFC_INLINE int32_t effc_clamp(int32_t value, int32_t low, int32_t high) {
#ifdef EFFC_DSP
  if (low == -128 && high == 127) return __ssat(value, 8);
#endif
  return value < low ? low : value > high ? high : value;
}

/* zero + (acc * m) / 2^32, rounded once, halves up */
EFFC_INLINE int32_t effc_high_product(int32_t acc, int32_t m, int32_t zero) {
#ifdef EFFC_DSP
  int32_t result;
  __asm__("smmlar %0, %1, %2, %3" : "=r"(result) : "r"(acc), "r"(m), "r"(zero));
  return result;
#else
  return zero + (int32_t)(((int64_t)acc * m + ((int64_t)1 << 31)) >> 32);
#endif
}

/* acc * 2^bits */
EFFC_INLINE int32_t effc_left(int32_t acc, int bits) { return (int32_t)((uint32_t)acc << bits); }

/* the rule `fixed`: acc * m / 2^shift, rounded once, halves up; then the zero point and the bounds */
EFFC_INLINE int32_t effc_requantize(int32_t acc, int32_t m, int shift, int32_t zero, int32_t low,
                                    int32_t high) {
  if (shift == 32) return effc_clamp(effc_high_product(acc, m, zero), low, high);
  const int64_t value = (((int64_t)acc * m + ((int64_t)1 << (shift - 1))) >> shift) + zero;
  return (int32_t)(value < low ? low : value > high ? high : value);
}

/* the same of a sum with a second tensor: `other` is scaled by m_other / 2^shift_other */
EFFC_INLINE int32_t effc_requantize_sum(int32_t acc, int32_t m, int shift, int32_t other,
                                        int32_t m_other, int shift_other, int32_t zero, int32_t low,
                                        int32_t high) {
  const int64_t second = (int64_t)other * m_other * ((int64_t)1 << (shift - shift_other));
  const int64_t value = (((int64_t)acc * m + second + ((int64_t)1 << (shift - 1))) >> shift) + zero;
  return (int32_t)(value < low ? low : value > high ? high : value);
}

/* float -> integer, ties to even, as QuantizeLinear; what is out of range meets a bound, NaN is 0 */
EFFC_INLINE int32_t effc_quantize(float value, int32_t zero, int32_t low, int32_t high) {
  if (value != value) return effc_clamp(zero, low, high);
  if (value < -1024.0f) return low;
  if (value > 1024.0f) return high;
  int32_t whole = (int32_t)value;
  const float rest = value - (float)whole;
  if (rest > 0.5f || (rest == 0.5f && (whole & 1))) whole++;
  if (rest < -0.5f || (rest == -0.5f && (whole & 1))) whole--;
  return effc_clamp(whole + zero, low, high);
}

/* two rows of bytes as pairs of int16 for effc_dot2: of every four bytes the even ones of both rows, then the odd
   ones */
EFFC_INLINE void effc_interleave(const int8_t *x0, const int8_t *x1, int count, uint32_t *pairs) {
  int k = 0;
  EFFC_UNROLL
  for (; k + 4 <= count; k += 4, pairs += 4) {
    const uint32_t u = effc_load4(x0 + k), v = effc_load4(x1 + k);
    pairs[0] = effc_even(u);
    pairs[1] = effc_even(v);
    pairs[2] = effc_odd(u);
    pairs[3] = effc_odd(v);
  }
  if (k < count) {
    uint32_t u = 0, v = 0;
    memcpy(&u, x0 + k, (size_t)(count - k));
    memcpy(&v, x1 + k, (size_t)(count - k));
    pairs[0] = effc_even(u);
    pairs[1] = effc_even(v);
    pairs[2] = effc_odd(u);
    pairs[3] = effc_odd(v);
  }
}

/*DECLARATIONS*/
#endif
