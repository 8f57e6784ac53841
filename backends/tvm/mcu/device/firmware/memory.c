/* The four functions of memory that C compilers call, for toolchains without a C library. */
#include <string.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
  unsigned char *t = to;
  const unsigned char *f = from;
  if (!(((__UINTPTR_TYPE__)t | (__UINTPTR_TYPE__)f) & 3))
    for (; bytes >= 4; bytes -= 4, t += 4, f += 4)
      *(__UINT32_TYPE__ __attribute__((may_alias)) *)t = *(const __UINT32_TYPE__ __attribute__((may_alias)) *)f;
  while (bytes--) *t++ = *f++;
  return to;
}

void *memset(void *to, int value, size_t bytes) {
  unsigned char *t = to;
  while (bytes--) *t++ = (unsigned char)value;
  return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
  unsigned char *t = to;
  const unsigned char *f = from;
  if (t < f) {
    while (bytes--) *t++ = *f++;
  } else {
    while (bytes--) t[bytes] = f[bytes];
  }
  return to;
}

int memcmp(const void *a, const void *b, size_t bytes) {
  const unsigned char *x = a, *y = b;
  for (; bytes; bytes--, x++, y++)
    if (*x != *y) return *x < *y ? -1 : 1;
  return 0;
}

size_t strlen(const char *text) {
  size_t count = 0;
  while (text[count]) count++;
  return count;
}
