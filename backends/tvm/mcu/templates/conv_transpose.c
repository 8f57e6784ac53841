/* Transposed convolution: every output gathers the inputs that reach it. */
void NAME(const int8_t *x, const int8_t *w, const int32_t *bias, const int32_t *m, SHIFT_PARAMETER
          int8_t *y) {
  /*CONSTANTS*/
  for (int oy = 0; oy < OUT_H; oy++) {
    for (int ox = 0; ox < OUT_W; ox++) {
      for (int n = 0; n < OUT_C; n++) {
        const int8_t *taps = w + n * KERNEL_H * KERNEL_W * DEPTH;
        const int group = n / (OUT_C / GROUPS);
        int32_t acc = bias[n];
        for (int ky = 0; ky < KERNEL_H; ky++) {
          const int sy = oy + PAD_TOP - ky * DILATION_H;
          for (int kx = 0; kx < KERNEL_W; kx++, taps += DEPTH) {
            const int sx = ox + PAD_LEFT - kx * DILATION_W;
            if (sy < 0 || sx < 0 || sy % STRIDE_H || sx % STRIDE_W) continue;
            if (sy / STRIDE_H >= IN_H || sx / STRIDE_W >= IN_W) continue;
            const int8_t *from = x + (sy / STRIDE_H * IN_W + sx / STRIDE_W) * IN_C + group * DEPTH;
            for (int k = 0; k < DEPTH; k++) acc += (from[k] - X_ZERO) * taps[k];
          }
        }
        y[n] = (int8_t)REQUANTIZE(acc, m[n], shift[n]);
      }
      y += OUT_C;
    }
  }
}
