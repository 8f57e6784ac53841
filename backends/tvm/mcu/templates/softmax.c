/* Softmax of rows of integers: the exponential of a distance from the largest stands in a table. */
void NAME(const TYPE_X *x, const float *exponential, TYPE_Y *y) {
  /*CONSTANTS*/
  for (int r = 0; r < ROWS; r++, x += COLUMNS) {
    int largest = x[0];
    for (int i = 1; i < COLUMNS; i++) largest = x[i] > largest ? x[i] : largest;
    float sum = 0.0f;
    for (int i = 0; i < COLUMNS; i++) sum += exponential[largest - x[i]];
    for (int i = 0; i < COLUMNS; i++) {
      const float value = exponential[largest - x[i]] / sum;
      STORE
    }
  }
}
