/* A function of one quantized tensor, by table. */
void NAME(const TYPE_X *x, const TYPE *table, TYPE *y) {
  /*CONSTANTS*/
  for (int i = 0; i < COUNT; i++) y[i] = table[x[i] - LEAST];
}
