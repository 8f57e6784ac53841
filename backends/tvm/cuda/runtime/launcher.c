/* Runs a model's table of launches on a GPU, through the CUDA driver alone.
 *
 * Everything is allocated when an instance is created: constants and arena, a buffer for each input and
 * output, a stream. The launches are captured once as a graph, so an inference is the copies and one launch; where
 * the driver can't capture, they are launched one by one.
 */
#define _POSIX_C_SOURCE 200809L
#include "launches.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "effc_cuda.h"

struct effc_model {
  cu_device device;
  cu_context context;
  cu_module module;
  cu_stream stream;
  cu_graph graph;
  cu_graph_exec graph_exec;
  cu_function *functions; /* one a call */
  cu_pointer arena, constants, *inputs, *outputs;
  cu_pointer *arguments; /* of all calls */
  void **parameters;     /* where each argument is */
  cu_event *events;      /* calls + 1 */
};

static _Thread_local char error_text[256];
static effc_driver driver;
static int loaded;
static char load_error[256];
static pthread_mutex_t load_mutex = PTHREAD_MUTEX_INITIALIZER;

static int32_t fail(const char *text) {
  snprintf(error_text, sizeof error_text, "%s", text);
  return 1;
}

static int32_t failed(cu_result status, const char *what) {
  const char *text = NULL;
  if (driver.error_string) driver.error_string(status, &text);
  snprintf(error_text, sizeof error_text, "the CUDA driver fails at %s: %s (%d)", what, text ? text : "?",
           status);
  return 1;
}

#define TRY(name, ...)                                    \
  do {                                                    \
    cu_result status_ = driver.name(__VA_ARGS__);         \
    if (status_) return failed(status_, #name);           \
  } while (0)

static int32_t load_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail("no NVIDIA driver here: libcuda.so.1 can't be loaded");
#define LOAD(text, name, parameters)                                                      \
  *(void **)&driver.name = dlsym(library, text);                                          \
  if (!driver.name) return fail("the NVIDIA driver is too old: it has no " text);
  EFFC_DRIVER(LOAD)
#undef LOAD
  cu_result status = driver.init(0);
  return status ? failed(status, "cuInit: is there a GPU, and may it be used?") : 0;
}

/* Once; the same answer for everybody after that. */
static int32_t need_driver(void) {
  pthread_mutex_lock(&load_mutex);
  if (!loaded) {
    loaded = load_driver() ? 2 : 1;
    memcpy(load_error, error_text, sizeof load_error);
  }
  int32_t found = loaded;
  pthread_mutex_unlock(&load_mutex);
  return found == 1 ? 0 : fail(load_error);
}

static int32_t find_device(effc_model *m) {
  const effc_launches *p = &effc_the_launches;
  int count = 0, major = 0, minor = 0;
  TRY(device_count, &count);
  if (count < 1) return fail("the NVIDIA driver finds no GPU");
  TRY(device_get, &m->device, 0);
  TRY(device_attribute, &major, CU_MAJOR, m->device);
  TRY(device_attribute, &minor, CU_MINOR, m->device);
  if (major != p->sm / 10 || minor < p->sm % 10) {
    snprintf(error_text, sizeof error_text, "this GPU is SM%d%d, and the model was built for SM%d", major, minor,
             p->sm);
    return 1;
  }
  return 0;
}

static int32_t allocate(cu_pointer *place, size_t bytes) {
  TRY(memory_alloc, place, bytes ? bytes : 1);
  return 0;
}

static int32_t copy_constants(effc_model *m) {
  const effc_launches *p = &effc_the_launches;
  const unsigned char *data = p->constants;
  unsigned char *decoded = NULL;
  if (allocate(&m->constants, p->constant_bytes)) return 1;
  if (!p->constant_bytes) return 0;
  if (p->decode) {
    decoded = malloc(p->constant_bytes);
    if (!decoded) return fail("out of memory for the model's constants");
    const char *wrong = p->decode(p->constants, p->coded_bytes, decoded, p->constant_bytes);
    if (wrong) {
      free(decoded);
      snprintf(error_text, sizeof error_text, "the model's constants are damaged: %s", wrong);
      return 1;
    }
    data = decoded;
  }
  cu_result status = driver.to_device(m->constants, data, p->constant_bytes, m->stream);
  if (!status) status = driver.stream_synchronize(m->stream);
  free(decoded);
  return status ? failed(status, "copying the constants") : 0;
}

static int32_t place_arguments(effc_model *m) {
  const effc_launches *p = &effc_the_launches;
  for (int32_t i = 0; i < p->arguments; i++) {
    const effc_argument *a = &p->argument[i];
    cu_pointer base = a->space == EFFC_ARENA      ? m->arena
                      : a->space == EFFC_CONSTANT ? m->constants
                      : a->space == EFFC_INPUT    ? m->inputs[a->index]
                                                  : m->outputs[a->index];
    m->arguments[i] = base + a->offset;
    m->parameters[i] = &m->arguments[i];
  }
  for (int32_t i = 0; i < p->calls; i++)
    if (p->launch[i].grid[0]) TRY(function_get, &m->functions[i], m->module, p->launch[i].kernel);
  return 0;
}

static int32_t launch(effc_model *m, int32_t i) {
  const effc_launch *l = &effc_the_launches.launch[i];
  if (!l->grid[0]) return 0; /* nothing to compute */
  TRY(launch, m->functions[i], l->grid[0], l->grid[1], l->grid[2], l->block, 1, 1, 0, m->stream,
      m->parameters + l->first, NULL);
  return 0;
}

static int32_t launch_all(effc_model *m) {
  if (m->graph_exec) {
    TRY(graph_launch, m->graph_exec, m->stream);
    return 0;
  }
  for (int32_t i = 0; i < effc_the_launches.calls; i++)
    if (launch(m, i)) return 1;
  return 0;
}

/* Without a graph where the driver refuses: it is only a faster way. */
static void capture(effc_model *m) {
  if (driver.capture_begin(m->stream, CU_CAPTURE_THREAD_LOCAL)) return;
  int32_t wrong = launch_all(m);
  if (driver.capture_end(m->stream, &m->graph) || wrong || !m->graph) return;
  if (driver.graph_instantiate(&m->graph_exec, m->graph, 0)) m->graph_exec = NULL;
}

static int32_t prepare(effc_model *m) {
  const effc_launches *p = &effc_the_launches;
  if (allocate(&m->arena, p->arena_bytes)) return 1;
  for (int32_t i = 0; i < p->inputs; i++)
    if (allocate(&m->inputs[i], p->input[i].bytes)) return 1;
  for (int32_t i = 0; i < p->outputs; i++)
    if (allocate(&m->outputs[i], p->output[i].bytes)) return 1;
  TRY(stream_create, &m->stream, CU_STREAM_NON_BLOCKING);
  if (copy_constants(m)) return 1;
  TRY(module_load, &m->module, p->image);
  if (place_arguments(m)) return 1;
  for (int32_t i = 0; i <= p->calls; i++) TRY(event_create, &m->events[i], CU_EVENT_DEFAULT);
  capture(m);
  return 0;
}

/* An instance's arrays; NULL where there is no memory. */
static effc_model *reserve(void) {
  const effc_launches *p = &effc_the_launches;
  effc_model *m = calloc(1, sizeof *m);
  if (!m) return NULL;
  m->functions = calloc((size_t)p->calls + 1, sizeof *m->functions);
  m->events = calloc((size_t)p->calls + 1, sizeof *m->events);
  m->inputs = calloc((size_t)p->inputs + 1, sizeof *m->inputs);
  m->outputs = calloc((size_t)p->outputs + 1, sizeof *m->outputs);
  m->arguments = calloc((size_t)p->arguments + 1, sizeof *m->arguments);
  m->parameters = calloc((size_t)p->arguments + 1, sizeof *m->parameters);
  return m;
}

static void release(effc_model *m) {
  free(m->functions);
  free(m->events);
  free(m->inputs);
  free(m->outputs);
  free(m->arguments);
  free(m->parameters);
  free(m);
}

static void destroy_on_device(effc_model *m) {
  const effc_launches *p = &effc_the_launches;
  if (m->stream) driver.stream_synchronize(m->stream);
  for (int32_t i = 0; i <= p->calls; i++)
    if (m->events[i]) driver.event_destroy(m->events[i]);
  if (m->graph_exec) driver.graph_exec_destroy(m->graph_exec);
  if (m->graph) driver.graph_destroy(m->graph);
  if (m->module) driver.module_unload(m->module);
  if (m->stream) driver.stream_destroy(m->stream);
  for (int32_t i = 0; i < p->inputs; i++)
    if (m->inputs[i]) driver.memory_free(m->inputs[i]);
  for (int32_t i = 0; i < p->outputs; i++)
    if (m->outputs[i]) driver.memory_free(m->outputs[i]);
  if (m->constants) driver.memory_free(m->constants);
  if (m->arena) driver.memory_free(m->arena);
}

effc_model *effc_model_create(int32_t threads) {
  (void)threads;
  if (need_driver()) return NULL;
  effc_model *m = reserve();
  if (!m || !m->functions || !m->events || !m->inputs || !m->outputs || !m->arguments || !m->parameters) {
    if (m) release(m);
    fail("out of memory");
    return NULL;
  }
  cu_result status;
  if (find_device(m)) {
    release(m);
    return NULL;
  }
  if ((status = driver.context_retain(&m->context, m->device))) {
    failed(status, "context_retain");
    release(m);
    return NULL;
  }
  if ((status = driver.context_push(m->context))) failed(status, "context_push");
  int32_t wrong = status || prepare(m);
  if (wrong) destroy_on_device(m);
  cu_context before;
  if (!status) driver.context_pop(&before);
  if (!wrong) return m;
  driver.context_release(m->device);
  release(m);
  return NULL;
}

void effc_model_destroy(effc_model *m) {
  if (!m) return;
  cu_context before;
  if (!driver.context_push(m->context)) {
    destroy_on_device(m);
    driver.context_pop(&before);
  }
  driver.context_release(m->device);
  release(m);
}

static int32_t copy_in(effc_model *m, const void *const *inputs) {
  const effc_launches *p = &effc_the_launches;
  for (int32_t i = 0; i < p->inputs; i++)
    if (p->input[i].bytes) TRY(to_device, m->inputs[i], inputs[i], p->input[i].bytes, m->stream);
  return 0;
}

static int32_t copy_out(effc_model *m, void *const *outputs) {
  const effc_launches *p = &effc_the_launches;
  for (int32_t i = 0; i < p->outputs; i++)
    if (p->output[i].bytes) TRY(to_host, outputs[i], m->outputs[i], p->output[i].bytes, m->stream);
  TRY(stream_synchronize, m->stream);
  return 0;
}

static int32_t timed(effc_model *m, uint64_t *nanoseconds) {
  const effc_launches *p = &effc_the_launches;
  TRY(event_record, m->events[0], m->stream);
  for (int32_t i = 0; i < p->calls; i++) {
    if (launch(m, i)) return 1;
    TRY(event_record, m->events[i + 1], m->stream);
  }
  TRY(stream_synchronize, m->stream);
  for (int32_t i = 0; i < p->calls; i++) {
    float milliseconds = 0;
    TRY(event_elapsed, &milliseconds, m->events[i], m->events[i + 1]);
    nanoseconds[i] = (uint64_t)(milliseconds * 1e6f);
  }
  return 0;
}

static int32_t walk(effc_model *m, const void *const *inputs, void *const *outputs, uint64_t *nanoseconds) {
  if (copy_in(m, inputs)) return 1;
  if (nanoseconds ? timed(m, nanoseconds) : launch_all(m)) return 1;
  return copy_out(m, outputs);
}

int32_t effc_model_profile(effc_model *m, const void *const *inputs, void *const *outputs,
                           uint64_t *nanoseconds) {
  const effc_launches *p = &effc_the_launches;
  if (!m) return fail("the model is NULL");
  for (int32_t i = 0; i < p->inputs; i++)
    if (!inputs || (!inputs[i] && p->input[i].bytes)) return fail("an input is NULL");
  for (int32_t i = 0; i < p->outputs; i++)
    if (!outputs || (!outputs[i] && p->output[i].bytes)) return fail("an output is NULL");
  cu_context before;
  TRY(context_push, m->context);
  int32_t wrong = walk(m, inputs, outputs, nanoseconds);
  driver.context_pop(&before);
  return wrong;
}

int32_t effc_model_invoke(effc_model *m, const void *const *inputs, void *const *outputs) {
  return effc_model_profile(m, inputs, outputs, NULL);
}

static int32_t time_on_device(effc_model *m, int32_t repeats, float *milliseconds, cu_event *ends) {
  for (int32_t i = 0; i < repeats; i++) {
    TRY(event_record, ends[0], m->stream);
    if (launch_all(m)) return 1;
    TRY(event_record, ends[1], m->stream);
    TRY(stream_synchronize, m->stream);
    TRY(event_elapsed, &milliseconds[i], ends[0], ends[1]);
  }
  return 0;
}

int32_t effc_model_time_device(effc_model *m, int32_t repeats, float *milliseconds) {
  if (!m) return fail("the model is NULL");
  cu_context before;
  cu_event ends[2] = {NULL, NULL};
  TRY(context_push, m->context);
  int32_t wrong = driver.event_create(&ends[0], CU_EVENT_DEFAULT) || driver.event_create(&ends[1], CU_EVENT_DEFAULT);
  wrong = wrong ? fail("the CUDA driver makes no event") : time_on_device(m, repeats, milliseconds, ends);
  if (ends[0]) driver.event_destroy(ends[0]);
  if (ends[1]) driver.event_destroy(ends[1]);
  driver.context_pop(&before);
  return wrong;
}

int32_t effc_model_set_threads(effc_model *m, int32_t threads) {
  if (!m) return fail("the model is NULL");
  return threads < 1 ? fail("threads must be 1 or more") : 0;
}

size_t effc_model_arena_bytes(const effc_model *m) { return m ? effc_the_launches.arena_bytes : 0; }
int32_t effc_model_api_version(void) { return EFFC_MODEL_API; }
int32_t effc_model_input_count(void) { return effc_the_launches.inputs; }
int32_t effc_model_output_count(void) { return effc_the_launches.outputs; }
int32_t effc_model_call_count(void) { return effc_the_launches.calls; }

const effc_tensor *effc_model_input(int32_t i) {
  return i >= 0 && i < effc_the_launches.inputs ? &effc_the_launches.input[i] : NULL;
}

const effc_tensor *effc_model_output(int32_t i) {
  return i >= 0 && i < effc_the_launches.outputs ? &effc_the_launches.output[i] : NULL;
}

const effc_call *effc_model_call(int32_t i) {
  return i >= 0 && i < effc_the_launches.calls ? &effc_the_launches.call[i] : NULL;
}

const char *effc_model_last_error(void) { return error_text; }
