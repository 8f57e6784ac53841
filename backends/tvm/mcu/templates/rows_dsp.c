/* 1x1 convolution or matrix product, two rows by two channels; an odd last row is computed twice. */
void NAME(const int8_t *x, Z_PARAMETER const uint32_t *w, const int32_t *bias, const int32_t *m, SHIFT_PARAMETER
          uint32_t *pairs, int8_t *y) {
  /*CONSTANTS*/
  for (int p = 0; p < ROWS; p += 2) {
    const int second = p + 1 < ROWS ? 1 : 0;
    int8_t *y0 = y + p * OUT_C, *y1 = y0 + second * OUT_C;
    Z_ROWS
    effc_interleave(x + p * TAPS, x + (p + second) * TAPS, TAPS, pairs);
    MULTIPLY
  }
}
