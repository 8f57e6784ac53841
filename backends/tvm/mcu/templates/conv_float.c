/* Convolution of integers whose result is real. */
void NAME(const int8_t *x, const int8_t *w, const int32_t *bias, const float *m, void *y) {
  /*CONSTANTS*/
  for (int oy = 0; oy < OUT_H; oy++) {
    for (int ox = 0; ox < OUT_W; ox++) {
      for (int n = 0; n < OUT_C; n++) {
        const int8_t *taps = w + n * KERNEL_H * KERNEL_W * DEPTH;
        const int group = n / (OUT_C / GROUPS);
        int32_t acc = bias[n];
        for (int ky = 0; ky < KERNEL_H; ky++) {
          const int iy = oy * STRIDE_H - PAD_TOP + ky * DILATION_H;
          for (int kx = 0; kx < KERNEL_W; kx++, taps += DEPTH) {
            const int ix = ox * STRIDE_W - PAD_LEFT + kx * DILATION_W;
            const int inside = iy >= 0 && iy < IN_H && ix >= 0 && ix < IN_W;
            const int8_t *from = inside ? x + (iy * IN_W + ix) * IN_C + group * DEPTH : x;
            for (int k = 0; k < DEPTH; k++) acc += (inside ? from[k] : X_ZERO) * taps[k];
          }
        }
        effc_store_float(y, (oy * OUT_W + ox) * OUT_C + n, (float)acc * m[n]);
      }
    }
  }
}
