/* What a model library for CUDA has beside effc_model.h. Buffers of effc_model_invoke are the host's: it copies
 * inputs to the GPU and outputs back. `threads` of effc_model_create means nothing here. */
#ifndef EFFC_CUDA_H
#define EFFC_CUDA_H

#include "effc_model.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* The time of `repeats` inferences on what the last invocation left in the GPU's memory, without copies:
 * milliseconds[i] between two events around the i-th. 0 on success. */
int32_t effc_model_time_device(effc_model *model, int32_t repeats, float *milliseconds);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif
#endif
