/* Matrix product of one row, two channels at a time. */
void NAME(const int8_t *x, Z_PARAMETER const uint32_t *w, const int32_t *bias, const int32_t *m, SHIFT_PARAMETER
          uint32_t *pairs, int8_t *y) {
  /*CONSTANTS*/
  const uint32_t *tap = w;
  effc_interleave(x, x, TAPS, pairs);
  for (int n = 0; n + 1 < OUT_C; n += 2) {
    int32_t a0 = bias[n], a1 = bias[n + 1];
    const uint32_t *q = pairs;
    EFFC_UNROLL
    for (int k = 0; k < TAPS; k += 4, q += 4, tap += 2) {
      const uint32_t w0 = tap[0], w1 = tap[1], even = q[0], odd = q[2];
      a0 = effc_dot2(odd, effc_odd(w0), effc_dot2(even, effc_even(w0), a0));
      a1 = effc_dot2(odd, effc_odd(w1), effc_dot2(even, effc_even(w1), a1));
    }
    PUT(y, z, n, a0)
    PUT(y, z, n + 1, a1)
  }
  if (OUT_C % 2) {
    int32_t a0 = bias[OUT_C - 1];
    const uint32_t *q = pairs;
    for (int k = 0; k < TAPS; k += 4, q += 4) {
      const uint32_t w0 = *tap++;
      a0 = effc_dot2(q[2], effc_odd(w0), effc_dot2(q[0], effc_even(w0), a0));
    }
    PUT(y, z, OUT_C - 1, a0)
  }
}
