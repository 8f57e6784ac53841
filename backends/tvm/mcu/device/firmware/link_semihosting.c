/* The way to the host through two files that it makes: effc.in and effc.out (named pipes) in the emulator's folder. */
#include "effc_device.h"
#include "semihosting.h"

static intptr_t from_host = -1, to_host = -1;

static intptr_t open_file(const char *name, uintptr_t bytes, uintptr_t mode) {
  uintptr_t arguments[3] = {(uintptr_t)name, mode, bytes};
  return semihosting(SYS_OPEN, arguments);
}

void effc_link_open(void) {
  from_host = open_file("effc.in", 7, 1);  /* "rb" */
  to_host = open_file("effc.out", 8, 5);   /* "wb" */
  if (from_host < 0 || to_host < 0) effc_stop(97);
}

int effc_link_read(void *to, uint32_t bytes) {
  uint8_t *at = to;
  while (bytes) {
    uintptr_t arguments[3] = {(uintptr_t)from_host, (uintptr_t)at, bytes};
    intptr_t left = semihosting(SYS_READ, arguments);
    if (left < 0 || (uint32_t)left >= bytes) return -1;
    at += bytes - (uint32_t)left;
    bytes = (uint32_t)left;
  }
  return 0;
}

void effc_link_write(const void *from, uint32_t bytes) {
  const uint8_t *at = from;
  while (bytes) {
    uintptr_t arguments[3] = {(uintptr_t)to_host, (uintptr_t)at, bytes};
    intptr_t left = semihosting(SYS_WRITE, arguments);
    if (left < 0 || (uint32_t)left > bytes) effc_stop(97);
    at += bytes - (uint32_t)left;
    bytes = (uint32_t)left;
  }
}
