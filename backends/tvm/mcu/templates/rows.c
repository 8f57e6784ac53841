/* 1x1 convolution or matrix product: every row of x with the weights of every channel. */
void NAME(const int8_t *x, Z_PARAMETER const int8_t *w, const int32_t *bias, const int32_t *m, SHIFT_PARAMETER
          int8_t *y) {
  /*CONSTANTS*/
  for (int p = 0; p < ROWS; p++) {
    const int8_t *window = x;
    MULTIPLY_BYTES
    x += TAPS;
    y += OUT_C;
    Z_NEXT
  }
}
