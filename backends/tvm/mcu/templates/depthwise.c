/* Depthwise convolution: a channel's plane is copied with its border, then every output is summed from it,
   so that the result may take the place of the input. */
void NAME(const int8_t *x, const int8_t *w, const int32_t *bias, const int32_t *m, SHIFT_PARAMETER
          int8_t *plane, int8_t *y) {
  /*CONSTANTS*/
  memset(plane, X_ZERO, PLANE);
  for (int c = 0; c < CHANNELS; c++) {
    const int8_t *from = x + c;
    for (int iy = 0; iy < COPY_H; iy++) {
      int8_t *to = plane + (iy + PAD_TOP) * ROW + PAD_LEFT;
      for (int ix = 0; ix < COPY_W; ix++) to[ix] = from[(iy * IN_W + ix) * CHANNELS];
    }
    for (int n = c * MULTIPLIER; n < (c + 1) * MULTIPLIER; n++) {
      const int8_t *taps = w + n * (KERNEL_H * KERNEL_W);
      int8_t *to = y + n;
      const int32_t start = bias[n], by = m[n];
      BITS
      for (int oy = 0; oy < OUT_H; oy++) {
        for (int ox = 0; ox < OUT_W; ox++) {
          const int8_t *window = plane + oy * STRIDE_H * ROW + ox * STRIDE_W;
          int32_t acc = start;
          EFFC_UNROLL
          for (int ky = 0; ky < KERNEL_H; ky++)
            EFFC_UNROLL
            for (int kx = 0; kx < KERNEL_W; kx++)
              acc += window[ky * DILATION_H * ROW + kx * DILATION_W] * taps[ky * KERNEL_W + kx];
          *to = (int8_t)REQUANTIZE(acc, by, bits);
          to += CHANNELS * MULTIPLIER;
        }
      }
    }
  }
}
