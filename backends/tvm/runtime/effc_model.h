/* The C interface of a model that effc built: one shared library, no other run-time dependency.
 *
 *     effc_model *model = effc_model_create(2);            // two threads
 *     if (!model) { fprintf(stderr, "%s\n", effc_model_last_error()); ... }
 *     const void *inputs[] = {image};                      // row-major, effc_model_input(i)->bytes each
 *     void *outputs[] = {scores};
 *     if (effc_model_invoke(model, inputs, outputs)) ...
 *     effc_model_destroy(model);
 *
 * An instance serves one caller at a time; any number of instances may run side by side. Buffers need the
 * alignment of their elements only; inputs and outputs must not overlap. Invoking allocates nothing.
 * Subnormal numbers count as zero inside the model; the caller's floating-point mode is left as it was.
 */
#ifndef EFFC_MODEL_H
#define EFFC_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EFFC_MODEL_API 1

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

typedef struct effc_model effc_model;

typedef struct {
  const char *name;
  const char *dtype; /* numpy's name: "float32", "int64", "bool" (one byte), ... */
  int32_t ndim;
  const int64_t *shape;
  size_t bytes;
} effc_tensor;

typedef struct {
  const char *nodes;        /* names of the model's nodes that this call computes, one a line */
  const char *kernel_class; /* "conv", "depthwise", "gemm", "elementwise", ... */
} effc_call;

/* Facts about the model; they need no instance. The pointers stay valid while the library is loaded. */
int32_t effc_model_api_version(void);
int32_t effc_model_input_count(void);
int32_t effc_model_output_count(void);
const effc_tensor *effc_model_input(int32_t index);  /* NULL when out of range */
const effc_tensor *effc_model_output(int32_t index); /* NULL when out of range */
int32_t effc_model_call_count(void);
const effc_call *effc_model_call(int32_t index); /* NULL when out of range */

/* An instance with its own memory and `threads` threads, the caller's included (1 to 256). NULL on failure. */
effc_model *effc_model_create(int32_t threads);
void effc_model_destroy(effc_model *model); /* NULL is fine */

/* One inference; 0 on success. */
int32_t effc_model_invoke(effc_model *model, const void *const *inputs, void *const *outputs);

/* The same, and the nanoseconds of each call in `nanoseconds[effc_model_call_count()]`. */
int32_t effc_model_profile(effc_model *model, const void *const *inputs, void *const *outputs,
                           uint64_t *nanoseconds);

int32_t effc_model_set_threads(effc_model *model, int32_t threads); /* 0 on success */

/* Bytes that the instance holds for intermediate tensors, scratch of all its threads included. */
size_t effc_model_arena_bytes(const effc_model *model);

/* What went wrong in the last call of this thread that failed; "" if none did. */
const char *effc_model_last_error(void);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif
#endif
