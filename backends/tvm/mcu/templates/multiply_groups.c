    const int8_t *row = w;
    for (int n = 0; n < OUT_C; n++) {
      const int8_t *from = window + n / (OUT_C / GROUPS) * TAPS;
      int32_t acc = bias[n];
      for (int k = 0; k < TAPS; k++) acc += *from++ * *row++;
      PUT(y, z, n, acc)
    }
