/* Convolution: a window is gathered as one row of bytes, then multiplied with the weights of every channel. */
void NAME(const int8_t *x, Z_PARAMETER const int8_t *w, const int32_t *bias, const int32_t *m, SHIFT_PARAMETER
          int8_t *window, int8_t *y) {
  /*CONSTANTS*/
  for (int oy = 0; oy < OUT_H; oy++) {
    for (int ox = 0; ox < OUT_W; ox++) {
      int8_t *at = window;
      for (int g = 0; g < GROUPS; g++) {
        for (int ky = 0; ky < KERNEL_H; ky++) {
          const int iy = oy * STRIDE_H - PAD_TOP + ky * DILATION_H;
          for (int kx = 0; kx < KERNEL_W; kx++, at += DEPTH) {
            const int ix = ox * STRIDE_W - PAD_LEFT + kx * DILATION_W;
            if (iy < 0 || iy >= IN_H || ix < 0 || ix >= IN_W)
              memset(at, X_ZERO, DEPTH);
            else
              memcpy(at, x + (iy * IN_W + ix) * IN_C + g * DEPTH, DEPTH);
          }
        }
      }
    MULTIPLY_BYTES
      y += OUT_C;
      Z_NEXT
    }
  }
}
