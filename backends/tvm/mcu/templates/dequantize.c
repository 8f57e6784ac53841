/* DequantizeLinear. */
void NAME(const TYPE *x, void *y) {
  /*CONSTANTS*/
  for (int i = 0; i < COUNT; i++) effc_store_float(y, i, (float)(x[i] - X_ZERO) * SCALE);
}
