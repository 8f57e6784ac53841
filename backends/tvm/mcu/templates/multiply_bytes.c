    const int8_t *row = w;
    int n = 0;
    for (; n + 1 < OUT_C; n += 2, row += 2 * TAPS) {
      int32_t a0 = bias[n], a1 = bias[n + 1];
      EFFC_UNROLL
      for (int k = 0; k < TAPS; k++) {
        const int32_t value = window[k];
        a0 += value * row[k];
        a1 += value * row[TAPS + k];
      }
      PUT(y, z, n, a0)
      PUT(y, z, n + 1, a1)
    }
    if (OUT_C % 2) {
      int32_t acc = bias[n];
      for (int k = 0; k < TAPS; k++) acc += window[k] * row[k];
      PUT(y, z, n, acc)
    }
