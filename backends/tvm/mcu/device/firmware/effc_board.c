/* The serial port of Arm's MPS2 and MPS3 boards. For another board, write these functions with its vendor's library;
 * effc_hertz, the clock of the core, may stand here too. */
#include <stdint.h>

#ifndef EFFC_UART
#define EFFC_UART 0x40004000 /* UART0 of MPS2; 0x49303000 on MPS3 AN547 */
#endif
/* Arm Cortex-M System Design Kit, Technical Reference Manual, 4.3 */
#define UART ((volatile uint32_t *)EFFC_UART)
enum { DATA = 0, STATE = 1, CTRL = 2, BAUDDIV = 4 };
enum { TX_FULL = 1, RX_FULL = 2 };

void effc_board_open(void);
int effc_board_getc(void);
void effc_board_putc(uint8_t byte);

void effc_board_open(void) {
  UART[BAUDDIV] = 217; /* 115200 baud at 25 MHz */
  UART[CTRL] = 3;      /* transmitter and receiver */
}

int effc_board_getc(void) {
  while (!(UART[STATE] & RX_FULL)) {
  }
  return (int)(UART[DATA] & 0xFF);
}

void effc_board_putc(uint8_t byte) {
  while (UART[STATE] & TX_FULL) {
  }
  UART[DATA] = byte;
}
