/* Depthwise convolution: a channel's plane is copied with its border, then two outputs at a time are summed
   from it, so that the result may take the place of the input. */
void NAME(const int8_t *x, const uint32_t *w, const int32_t *bias, const int32_t *m, SHIFT_PARAMETER
          int8_t *plane, int8_t *y) {
  /*CONSTANTS*/
  memset(plane, X_ZERO, PLANE);
  for (int n = 0; n < CHANNELS; n++, w += WORDS) {
    const int8_t *source = x + n;
    for (int iy = 0; iy < COPY_H; iy++) {
      int8_t *to = plane + (iy + PAD_TOP) * ROW + PAD_LEFT;
      EFFC_UNROLL
      for (int ix = 0; ix < COPY_W; ix++, source += CHANNELS) *to++ = *source;
      source += (IN_W - COPY_W) * CHANNELS;
    }
    WEIGHTS
    const int32_t start = bias[n], by = m[n];
    BITS
    int8_t *to = y + n;
    for (int oy = 0; oy < OUT_H; oy++) {
      const int8_t *from = plane + oy * STRIDE_H * ROW;
      for (int ox = 0; ox < OUT_W; ox += 2, from += 2 * STRIDE_W) {
        int32_t a = start, b = start;
        uint32_t word, even, odd;
PRODUCTS
        *to = (int8_t)REQUANTIZE(a, by, bits);
        to += CHANNELS;
        if (OUT_W % 2 == 0 || ox + 1 < OUT_W) {
          *to = (int8_t)REQUANTIZE(b, by, bits);
          to += CHANNELS;
        }
      }
    }
  }
}
