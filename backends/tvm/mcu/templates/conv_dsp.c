/* Convolution: the windows of two outputs are gathered as pairs of int16, then multiplied two channels at a
   time; an odd last output is computed twice. */
static void NAME_window(const int8_t *x, int oy, int ox, int8_t *at) {
  /*CONSTANTS*/
  for (int ky = 0; ky < KERNEL_H; ky++) {
    const int iy = oy * STRIDE_H - PAD_TOP + ky * DILATION_H;
    for (int kx = 0; kx < KERNEL_W; kx++, at += IN_C) {
      const int ix = ox * STRIDE_W - PAD_LEFT + kx * DILATION_W;
      if (iy < 0 || iy >= IN_H || ix < 0 || ix >= IN_W)
        memset(at, X_ZERO, IN_C);
      else
        memcpy(at, x + (iy * IN_W + ix) * IN_C, IN_C);
    }
  }
}
void NAME(const int8_t *x, Z_PARAMETER const uint32_t *w, const int32_t *bias, const int32_t *m, SHIFT_PARAMETER
          uint32_t *pairs, int8_t *windows, int8_t *y) {
  /*CONSTANTS*/
  int oy = 0, ox = 0;
  for (int p = 0; p < OUT_H * OUT_W; p += 2) {
    const int second = p + 1 < OUT_H * OUT_W ? 1 : 0;
    int8_t *y0 = y + p * OUT_C, *y1 = y0 + second * OUT_C;
    Z_ROWS
    const int iy = oy * STRIDE_H - PAD_TOP, ix = ox * STRIDE_W - PAD_LEFT;
    const int inside = UNDILATED && iy >= 0 && iy + KERNEL_H <= IN_H && ix >= 0 &&
                       ix + STRIDE_W + KERNEL_W <= IN_W && ox + 1 < OUT_W;
    if (inside) {
      const int8_t *from = x + (iy * IN_W + ix) * IN_C;
      for (int ky = 0; ky < KERNEL_H; ky++, from += IN_W * IN_C) {
        if (RUN % 4 == 0) {
          effc_interleave(from, from + STRIDE_W * IN_C, RUN, pairs + ky * RUN);
        } else {
          memcpy(windows + ky * RUN, from, RUN);
          memcpy(windows + TAPS + ky * RUN, from + STRIDE_W * IN_C, RUN);
        }
      }
      if (RUN % 4) effc_interleave(windows, windows + TAPS, TAPS, pairs);
      ox += 2;
    } else {
      NAME_window(x, oy, ox, windows);
      ox++;
      if (ox == OUT_W) ox = 0, oy++;
      if (second) NAME_window(x, oy, ox, windows + TAPS);
      effc_interleave(windows, windows + second * TAPS, TAPS, pairs);
      ox++;
    }
    if (ox == OUT_W) ox = 0, oy++;
    MULTIPLY
  }
}
