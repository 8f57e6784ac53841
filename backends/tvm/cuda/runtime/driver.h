/* The part of the CUDA driver's interface that a launcher uses, loaded when the first model is created:
 * nothing of CUDA has to be there to link, or to ask a model about its inputs. */
#ifndef EFFC_DRIVER_H
#define EFFC_DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef int cu_result; /* 0: success */
typedef int cu_device;
typedef unsigned long long cu_pointer;
typedef struct cu_context_ *cu_context;
typedef struct cu_module_ *cu_module;
typedef struct cu_function_ *cu_function;
typedef struct cu_stream_ *cu_stream;
typedef struct cu_event_ *cu_event;
typedef struct cu_graph_ *cu_graph;
typedef struct cu_graph_exec_ *cu_graph_exec;

enum { CU_MAJOR = 75, CU_MINOR = 76 };                   /* CUdevice_attribute: compute capability */
enum { CU_STREAM_NON_BLOCKING = 1, CU_EVENT_DEFAULT = 0, CU_CAPTURE_THREAD_LOCAL = 1 };

/* X(result, name in the library, our name, parameters) */
#define EFFC_DRIVER(X)                                                                                   \
  X("cuInit", init, (unsigned flags))                                                                    \
  X("cuGetErrorString", error_string, (cu_result, const char **))                                        \
  X("cuDeviceGetCount", device_count, (int *))                                                           \
  X("cuDeviceGet", device_get, (cu_device *, int ordinal))                                               \
  X("cuDeviceGetAttribute", device_attribute, (int *, int attribute, cu_device))                         \
  X("cuDevicePrimaryCtxRetain", context_retain, (cu_context *, cu_device))                               \
  X("cuDevicePrimaryCtxRelease_v2", context_release, (cu_device))                                        \
  X("cuCtxPushCurrent_v2", context_push, (cu_context))                                                   \
  X("cuCtxPopCurrent_v2", context_pop, (cu_context *))                                                   \
  X("cuModuleLoadData", module_load, (cu_module *, const void *image))                                   \
  X("cuModuleUnload", module_unload, (cu_module))                                                        \
  X("cuModuleGetFunction", function_get, (cu_function *, cu_module, const char *name))                   \
  X("cuMemAlloc_v2", memory_alloc, (cu_pointer *, size_t))                                               \
  X("cuMemFree_v2", memory_free, (cu_pointer))                                                           \
  X("cuMemcpyHtoDAsync_v2", to_device, (cu_pointer, const void *, size_t, cu_stream))                    \
  X("cuMemcpyDtoHAsync_v2", to_host, (void *, cu_pointer, size_t, cu_stream))                            \
  X("cuStreamCreate", stream_create, (cu_stream *, unsigned flags))                                      \
  X("cuStreamDestroy_v2", stream_destroy, (cu_stream))                                                   \
  X("cuStreamSynchronize", stream_synchronize, (cu_stream))                                              \
  X("cuLaunchKernel", launch,                                                                            \
    (cu_function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,          \
     unsigned shared, cu_stream, void **parameters, void **extra))                                       \
  X("cuEventCreate", event_create, (cu_event *, unsigned flags))                                         \
  X("cuEventDestroy_v2", event_destroy, (cu_event))                                                      \
  X("cuEventRecord", event_record, (cu_event, cu_stream))                                                \
  X("cuEventElapsedTime", event_elapsed, (float *milliseconds, cu_event begin, cu_event end))            \
  X("cuStreamBeginCapture_v2", capture_begin, (cu_stream, int mode))                                     \
  X("cuStreamEndCapture", capture_end, (cu_stream, cu_graph *))                                          \
  X("cuGraphInstantiateWithFlags", graph_instantiate, (cu_graph_exec *, cu_graph, unsigned long long))   \
  X("cuGraphLaunch", graph_launch, (cu_graph_exec, cu_stream))                                           \
  X("cuGraphExecDestroy", graph_exec_destroy, (cu_graph_exec))                                           \
  X("cuGraphDestroy", graph_destroy, (cu_graph))

typedef struct {
#define EFFC_MEMBER(text, name, parameters) cu_result(*name) parameters;
  EFFC_DRIVER(EFFC_MEMBER)
#undef EFFC_MEMBER
} effc_driver;

#endif
