/* Softmax of rows of reals. */
void NAME(const void *x, void *y) {
  /*CONSTANTS*/
  for (int r = 0; r < ROWS; r++) {
    const int at = r * COLUMNS;
    float largest = effc_load_float(x, at), sum = 0.0f;
    for (int i = 1; i < COLUMNS; i++)
      if (effc_load_float(x, at + i) > largest) largest = effc_load_float(x, at + i);
    for (int i = 0; i < COLUMNS; i++) {
      const float power = expf(effc_load_float(x, at + i) - largest);
      effc_store_float(y, at + i, power);
      sum += power;
    }
    for (int i = 0; i < COLUMNS; i++) effc_store_float(y, at + i, effc_load_float(y, at + i) / sum);
  }
}
