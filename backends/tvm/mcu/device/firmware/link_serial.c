/* The way to the host through a serial port. A board's own code gives the three functions of its port: effc_board.c has
 * them for the UART of Arm's CMSDK (the boards MPS2 and MPS3, and their models in QEMU). */
#include "effc_device.h"

void effc_board_open(void);
int effc_board_getc(void); /* waits for a byte; below 0 ends the session */
void effc_board_putc(uint8_t byte);

void effc_link_open(void) { effc_board_open(); }

int effc_link_read(void *to, uint32_t bytes) {
  uint8_t *at = to;
  while (bytes--) {
    int byte = effc_board_getc();
    if (byte < 0) return -1;
    *at++ = (uint8_t)byte;
  }
  return 0;
}

void effc_link_write(const void *from, uint32_t bytes) {
  const uint8_t *at = from;
  while (bytes--) effc_board_putc(*at++);
}
