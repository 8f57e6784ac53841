/* What the parts of the firmware know of one another. C99, no heap, no libc but string.h. */
#ifndef EFFC_DEVICE_H
#define EFFC_DEVICE_H
#include <stddef.h>
#include <stdint.h>

/* the model's tensors, written for each model beside this file (effc_ports.c) */
typedef struct {
  const char *name;  /* as in the manifest */
  const char *dtype; /* numpy's name */
  uint32_t bytes;
} effc_port;
extern const uint32_t effc_input_count, effc_output_count;
extern const effc_port effc_input_ports[], effc_output_ports[];
void *effc_input_data(uint32_t index);
void *effc_output_data(uint32_t index);
int effc_model_run(void);

/* the way to the host: bytes in order, both block; a failed read ends the session */
void effc_link_open(void);
int effc_link_read(void *to, uint32_t bytes); /* 0, or -1 when the host has gone */
void effc_link_write(const void *from, uint32_t bytes);

/* the processor (startup_arm.c, startup_riscv.c) */
uint64_t effc_ticks(void);      /* cycles of the core on a board; see effc_hertz */
void effc_stop(int code);       /* ends an emulator; restarts or halts a board */
uint32_t *effc_stack_limit(void); /* the lowest word of the stack */

/* the clock of effc_ticks, where a board's own code knows it (effc_board.c); 0: unknown */
uint32_t effc_hertz(void);

void effc_serve(void);
#endif
