/* What the generated table of a model (model.c) hands to the launcher (launcher.c). */
#ifndef EFFC_LAUNCHES_H
#define EFFC_LAUNCHES_H

#include "effc_model.h"

enum { EFFC_ARENA, EFFC_CONSTANT, EFFC_INPUT, EFFC_OUTPUT };

typedef struct {
  uint8_t space;
  int32_t index;   /* of the input or output */
  uint64_t offset; /* bytes into the arena, the constants, the input or the output */
} effc_argument;

typedef struct {
  const char *kernel;
  uint32_t grid[3], block;
  int32_t first, count; /* its arguments */
} effc_launch;

typedef struct {
  int32_t inputs, outputs, calls, arguments;
  const effc_tensor *input, *output;
  const effc_call *call;
  const effc_launch *launch;
  const effc_argument *argument;
  const unsigned char *constants, *image; /* the image is a cubin */
  size_t arena_bytes, constant_bytes;
  int32_t sm; /* of the image: 75, 80, ... */
  /* Where constants are stored smaller (decode.h): `constants` are coded, and become `constant_bytes`. */
  const char *(*decode)(const unsigned char *data, size_t data_bytes, unsigned char *out, size_t bytes);
  size_t coded_bytes;
} effc_launches;

extern const effc_launches effc_the_launches;

#endif
