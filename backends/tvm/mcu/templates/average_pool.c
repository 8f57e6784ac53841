/* Average of the window's elements inside the input; the count divides the multiplier. */
void NAME(const int8_t *x, const int32_t *m, int8_t *y) {
  /*CONSTANTS*/
  for (int oy = 0; oy < OUT_H; oy++) {
    for (int ox = 0; ox < OUT_W; ox++, y += CHANNELS, m += COUNTED) {
      const int top = oy * STRIDE_H - PAD_TOP, left = ox * STRIDE_W - PAD_LEFT;
      for (int c = 0; c < CHANNELS; c++) {
        int32_t acc = 0;
        for (int ky = 0; ky < KERNEL_H; ky++) {
          const int iy = top + ky * DILATION_H;
          if (iy < 0 || iy >= IN_H) continue;
          for (int kx = 0; kx < KERNEL_W; kx++) {
            const int ix = left + kx * DILATION_W;
            if (ix >= 0 && ix < IN_W) acc += x[(iy * IN_W + ix) * CHANNELS + c] - X_ZERO;
          }
        }
        y[c] = (int8_t)effc_requantize(acc, *m, SHIFT, Y_ZERO, LOW, HIGH);
      }
    }
  }
}
