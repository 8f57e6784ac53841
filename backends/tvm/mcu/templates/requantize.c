/* The same reals at another scale. */
void NAME(const TYPE_X *x, TYPE *y) {
  /*CONSTANTS*/
  for (int i = 0; i < COUNT; i++)
    y[i] = (TYPE)effc_requantize(x[i] - X_ZERO, M, SHIFT, Y_ZERO, LOW, HIGH);
}
