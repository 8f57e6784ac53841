    const uint32_t *tap = w;
    for (int n = 0; n + 1 < OUT_C; n += 2) {
      const int32_t by0 = m[n], by1 = m[n + 1];
      int32_t a0 = bias[n], a1 = bias[n + 1], b0 = a0, b1 = a1;
      tap = effc_dot_2x2(pairs, tap, (TAPS + 3) / 4, &a0, &b0, &a1, &b1);
      PUT(y1, z1, n, b0, by0)
      PUT(y1, z1, n + 1, b1, by1)
      PUT(y0, z0, n, a0, by0)
      PUT(y0, z0, n + 1, a1, by1)
    }
    if (OUT_C % 2) {
      const int n = OUT_C - 1;
      int32_t a0 = bias[n], b0 = a0;
      const uint32_t *q = pairs;
      for (int k = 0; k < TAPS; k += 4, q += 4) {
        const uint32_t w0 = *tap++, even = effc_even(w0), odd = effc_odd(w0);
        a0 = effc_dot2(q[2], odd, effc_dot2(q[0], even, a0));
        b0 = effc_dot2(q[3], odd, effc_dot2(q[1], even, b0));
      }
      PUT(y1, z1, n, b0)
      PUT(y0, z0, n, a0)
    }
