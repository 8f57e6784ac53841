/* An operator on two tensors of reals; one of them may repeat. */
void NAME(const void *a, const void *b, void *y) {
  /*CONSTANTS*/
  for (int o = 0; o < OUTER; o++) {
    for (int i = 0; i < INNER; i++) {
      const float u = effc_load_float(a, o * A_STEP + i * A_STRIDE);
      const float v = effc_load_float(b, o * B_STEP + i * B_STRIDE);
      effc_store_float(y, o * INNER + i, EXPRESSION);
    }
  }
}
