/* Sum of two tensors, requantized; one of them may repeat. */
void NAME(const TYPE_A *a, const TYPE_B *b, TYPE *y) {
  /*CONSTANTS*/
  for (int o = 0; o < OUTER; o++, a += A_STEP, b += B_STEP, y += INNER) {
    for (int i = 0; i < INNER; i++) {
      const int32_t acc = (a[i * A_STRIDE] - A_ZERO) * A_M + (b[i * B_STRIDE] - B_ZERO) * B_M;
      y[i] = (TYPE)effc_clamp(((acc + ROUND) >> SHIFT) + Y_ZERO, LOW, HIGH);
    }
  }
}
