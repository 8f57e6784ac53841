/* A function of reals. */
void NAME(const void *x, void *y) {
  /*CONSTANTS*/
  for (int i = 0; i < COUNT; i++) {
    const float u = effc_load_float(x, i);
    effc_store_float(y, i, EXPRESSION);
  }
}
