/* Average of every channel. */
void NAME(const int8_t *x, int8_t *y) {
  /*CONSTANTS*/
  for (int c = 0; c < CHANNELS; c++) {
    const int8_t *from = x + c;
    int32_t acc = -X_ZERO * POSITIONS;
    for (int p = 0; p < POSITIONS; p++, from += CHANNELS) acc += *from;
    y[c] = (int8_t)effc_requantize(acc, M, SHIFT, Y_ZERO, LOW, HIGH);
  }
}
