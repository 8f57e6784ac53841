/* Bounds on stored integers. */
void NAME(const TYPE *x, TYPE *y) {
  /*CONSTANTS*/
  for (int i = 0; i < COUNT; i++) y[i] = (TYPE)effc_clamp(x[i], LOW, HIGH);
}
