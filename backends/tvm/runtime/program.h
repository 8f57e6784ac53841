/* What the generated table of a model (model.c) hands to the runtime (runtime.c). */
#ifndef EFFC_PROGRAM_H
#define EFFC_PROGRAM_H

#include "effc_model.h"

/* `arguments` are pointers in the order of the kernel's parameters; computes tasks [begin, end). */
typedef void effc_kernel(void *const *arguments, void *scratch, int32_t begin, int32_t end);

enum { EFFC_ARENA, EFFC_CONSTANT, EFFC_INPUT, EFFC_OUTPUT };

typedef struct {
  uint8_t space;
  int32_t index;   /* of the input or output */
  uint64_t offset; /* bytes into the arena, the constants, the input or the output */
} effc_argument;

typedef struct {
  effc_kernel *kernel;
  int32_t tasks;
  int32_t first; /* index of the first of its arguments */
} effc_step;

typedef struct {
  int32_t inputs, outputs, calls, arguments;
  const effc_tensor *input, *output;
  const effc_call *call;
  const effc_step *step;
  const effc_argument *argument;
  const unsigned char *constants;
  size_t arena_bytes, scratch_bytes; /* scratch of one thread */
  /* Where constants are stored smaller (decode.h): `constants` are coded, and become `decoded_bytes`. */
  const char *(*decode)(const unsigned char *data, size_t data_bytes, unsigned char *out, size_t bytes);
  size_t coded_bytes, decoded_bytes;
} effc_program;

extern const effc_program effc_the_program;

/* NULL, or the first processor feature that the kernels need and this machine lacks. */
const char *effc_missing_feature(void);

#endif
