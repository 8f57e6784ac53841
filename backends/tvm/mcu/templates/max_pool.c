/* Largest element of every window. */
void NAME(const TYPE *x, TYPE *y) {
  /*CONSTANTS*/
  for (int oy = 0; oy < OUT_H; oy++) {
    for (int ox = 0; ox < OUT_W; ox++, y += CHANNELS) {
      const int top = oy * STRIDE_H - PAD_TOP, left = ox * STRIDE_W - PAD_LEFT;
      for (int c = 0; c < CHANNELS; c++) {
        int best = LEAST;
        for (int ky = 0; ky < KERNEL_H; ky++) {
          const int iy = top + ky * DILATION_H;
          if (iy < 0 || iy >= IN_H) continue;
          for (int kx = 0; kx < KERNEL_W; kx++) {
            const int ix = left + kx * DILATION_W;
            if (ix < 0 || ix >= IN_W) continue;
            const int value = x[(iy * IN_W + ix) * CHANNELS + c];
            if (value > best) best = value;
          }
        }
        y[c] = (TYPE)best;
      }
    }
  }
}
