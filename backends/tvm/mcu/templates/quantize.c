/* QuantizeLinear. */
void NAME(const void *x, TYPE *y) {
  /*CONSTANTS*/
  for (int i = 0; i < COUNT; i++)
    y[i] = (TYPE)effc_quantize(effc_load_float(x, i) / SCALE, Y_ZERO, LOW, HIGH);
}
