/* A stand-in for CUDA's runtime: host memory and the host's clock behind the functions that the script calls. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct { struct timespec at; } event;

const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "unknown error"; }
int cudaStreamCreate(void **stream) { *stream = (void *)1; return 0; }
int cudaStreamSynchronize(void *stream) { return stream == (void *)1 ? 0 : 400; }
int cudaDeviceGetAttribute(int *value, int which, int device) {
  if (device != 0) return 101;
  *value = which == 75 ? 8 : which == 76 ? 7 : -1;
  return 0;
}
int cudaMalloc(void **pointer, size_t size) {
  if (size > ((size_t)1 << 32)) return 2;
  *pointer = malloc(size);
  return *pointer ? 0 : 2;
}
int cudaFree(void *pointer) { free(pointer); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  if (stream != (void *)1 || (kind != 1 && kind != 2)) return 1;
  memcpy(to, from, size);
  return 0;
}
int cudaEventCreate(void **made) { *made = calloc(1, sizeof(event)); return 0; }
int cudaEventRecord(void *which, void *stream) {
  if (stream != (void *)1) return 400;
  return clock_gettime(CLOCK_MONOTONIC, &((event *)which)->at);
}
int cudaEventElapsedTime(float *milliseconds, void *begin, void *end) {
  struct timespec a = ((event *)begin)->at, b = ((event *)end)->at;
  *milliseconds = 1e3f * (b.tv_sec - a.tv_sec) + 1e-6f * (b.tv_nsec - a.tv_nsec);
  return 0;
}
