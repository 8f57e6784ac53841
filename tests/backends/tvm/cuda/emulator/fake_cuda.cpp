/* A libcuda.so.1 for tests, on machines without a GPU. It checks how it is called, and executes kernels on the
 * CPU where `fake_use` gave a library of them (emulate.h); else it executes nothing. It is no simulator of a GPU:
 * what is shown is that the launcher's calls are in order and that the kernels' source computes what it should. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <set>
#include <string>
#include <vector>

typedef unsigned long long pointer;
enum { INVALID = 1, NO_MEMORY = 2, NOT_INITIALIZED = 3, NO_CONTEXT = 201, NO_IMAGE = 200, NOT_FOUND = 500 };
#define GUARD 4096
#define API extern "C" __attribute__((visibility("default"))) int

struct launch_of {
  std::string name;
  unsigned grid[3], block;
  std::vector<void *> arguments;
};
struct function {
  std::string name;
  void (*run)(void **, const unsigned *, unsigned, int);
};
struct event {
  int at = -1;
};

static int initialized, contexts, retained, clock_now, capturing, reversed_threads, sm_major = 9, sm_minor;
static void *kernels;
static std::map<char *, size_t> memory;
static std::set<void *> modules, streams, events, graphs, executables;
static std::set<function *> functions;
static std::string journal, wrong;

static int refuse(int status, const char *why) {
  wrong += std::string(why) + "\n";
  return status;
}
static void note(const std::string &line) { journal += line + "\n"; }

#define READY(stream)                                                        \
  if (!initialized) return refuse(NOT_INITIALIZED, "called before cuInit");  \
  if (!contexts) return refuse(NO_CONTEXT, "called without a context");      \
  if (stream && !streams.count(stream)) return refuse(INVALID, "no stream")

static bool inside(pointer p, size_t bytes) {
  for (auto &m : memory)
    if (p >= (pointer)m.first + GUARD && p + bytes <= (pointer)m.first + GUARD + m.second) return true;
  return false;
}

/* what tests call */
API fake_use(const char *path, int reversed, int major, int minor) {
  if (kernels) dlclose(kernels);
  kernels = path && *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (path && *path && !kernels) fprintf(stderr, "%s\n", dlerror());
  reversed_threads = reversed;
  sm_major = major;
  sm_minor = minor;
  journal.clear();
  wrong.clear();
  return path && *path && !kernels;
}
extern "C" const char *fake_journal() { return journal.c_str(); }
extern "C" const char *fake_wrong() {
  for (auto &m : memory) wrong += "memory is not freed\n", (void)m;
  if (!modules.empty() || !streams.empty() || !events.empty() || !graphs.empty() || !executables.empty())
    wrong += "something is not destroyed\n";
  if (contexts || retained) wrong += "a context is left\n";
  return wrong.c_str();
}

API cuInit(unsigned flags) { return initialized = 1, flags ? INVALID : 0; }
API cuGetErrorString(int status, const char **text) {
  *text = status == NO_MEMORY ? "out of memory" : "made by the test";
  return 0;
}
API cuDeviceGetCount(int *count) { return *count = 1, 0; }
API cuDeviceGet(int *device, int ordinal) { return *device = 7, ordinal ? INVALID : 0; }
API cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (device != 7) return refuse(INVALID, "no device");
  if (attribute != 75 && attribute != 76) return refuse(INVALID, "no attribute");
  return *value = attribute == 75 ? sm_major : sm_minor, 0;
}
API cuDevicePrimaryCtxRetain(void **context, int device) {
  return ++retained, *context = &retained, device == 7 ? 0 : refuse(INVALID, "no device");
}
API cuDevicePrimaryCtxRelease_v2(int device) {
  return retained-- > 0 && device == 7 ? 0 : refuse(INVALID, "released twice");
}
API cuCtxPushCurrent_v2(void *context) {
  return ++contexts, context == &retained ? 0 : refuse(INVALID, "no context");
}
API cuCtxPopCurrent_v2(void **context) {
  return *context = &retained, contexts-- > 0 ? 0 : refuse(INVALID, "popped twice");
}
API cuModuleLoadData(void **module, const void *image) {
  READY(nullptr);
  if (memcmp(image, "\177ELF", 4)) return refuse(NO_IMAGE, "the image is no ELF file");
  *module = malloc(1);
  modules.insert(*module);
  return 0;
}
API cuModuleUnload(void *module) {
  READY(nullptr);
  if (!modules.erase(module)) return refuse(INVALID, "no module");
  free(module);
  for (auto f : functions) delete f;
  functions.clear();
  return 0;
}
API cuModuleGetFunction(function **found, void *module, const char *name) {
  READY(nullptr);
  if (!modules.count(module)) return refuse(INVALID, "no module");
  auto f = new function{name, nullptr};
  if (kernels) {
    f->run = (decltype(f->run))dlsym(kernels, (std::string("launch_") + name).c_str());
    if (!f->run) return delete f, refuse(NOT_FOUND, "no kernel of this name");
  }
  functions.insert(*found = f);
  return 0;
}
API cuMemAlloc_v2(pointer *place, size_t bytes) {
  READY(nullptr);
  if (!bytes) return refuse(INVALID, "no bytes");
  if (bytes > (1u << 30)) return NO_MEMORY;
  char *block = (char *)aligned_alloc(256, (bytes + 2 * GUARD + 255) / 256 * 256);
  memset(block, 0xff, bytes + 2 * GUARD); /* no number, whatever the type */
  memory[block] = bytes;
  *place = (pointer)(block + GUARD);
  return 0;
}
API cuMemFree_v2(pointer place) {
  READY(nullptr);
  char *block = (char *)place - GUARD;
  auto found = memory.find(block);
  if (found == memory.end()) return refuse(INVALID, "freed what was not allocated");
  for (size_t i = 0; i < GUARD; i++)
    if ((unsigned char)block[i] != 0xff || (unsigned char)block[GUARD + found->second + i] != 0xff) {
      refuse(INVALID, "written outside of a block of memory");
      break;
    }
  memory.erase(found);
  free(block);
  return 0;
}
API cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t bytes, void *stream) {
  READY(stream);
  if (!inside(to, bytes)) return refuse(INVALID, "copied outside of memory");
  note("to device " + std::to_string(bytes));
  memcpy((void *)to, from, bytes);
  return 0;
}
API cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t bytes, void *stream) {
  READY(stream);
  if (!inside(from, bytes)) return refuse(INVALID, "copied from outside of memory");
  note("to host " + std::to_string(bytes));
  memcpy(to, (void *)from, bytes);
  return 0;
}
API cuStreamCreate(void **stream, unsigned flags) {
  READY(nullptr);
  streams.insert(*stream = malloc(1));
  return flags == 1 ? 0 : refuse(INVALID, "a blocking stream");
}
API cuStreamDestroy_v2(void *stream) {
  READY(stream);
  streams.erase(stream);
  free(stream);
  return 0;
}
API cuStreamSynchronize(void *stream) {
  READY(stream);
  if (capturing) return refuse(INVALID, "synchronized while capturing");
  note("synchronize");
  return 0;
}

static std::vector<launch_of> *recorded;

static void execute(const launch_of &l, function *f) {
  note("launch " + l.name);
  if (!f->run) return;
  std::vector<void *> parameters;
  for (auto &a : l.arguments) parameters.push_back((void *)&a);
  f->run(parameters.data(), l.grid, l.block, reversed_threads);
}

static function *find(const std::string &name) {
  for (auto f : functions)
    if (f->name == name) return f;
  return nullptr;
}

API cuLaunchKernel(function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
  READY(stream);
  if (!functions.count(f)) return refuse(INVALID, "no function");
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535) return refuse(INVALID, "no such grid");
  if (bx * by * bz > 1024 || bx % 32 || shared > 49152 || extra) return refuse(INVALID, "no such block");
  launch_of l{f->name, {gx, gy, gz}, bx, {}};
  int count = 1;
  if (kernels) {
    int *known = (int *)dlsym(kernels, ("count_" + f->name).c_str());
    count = known ? *known : 0;
  }
  for (int i = 0; i < count; i++) {
    pointer p = *(pointer *)parameters[i];
    if (!inside(p, 1)) return refuse(INVALID, "an argument is outside of memory");
    l.arguments.push_back((void *)p);
  }
  if (capturing)
    recorded->push_back(l);
  else
    execute(l, f);
  return 0;
}
API cuStreamBeginCapture_v2(void *stream, int mode) {
  READY(stream);
  if (capturing || mode != 1) return refuse(INVALID, "no capture");
  recorded = new std::vector<launch_of>;
  return capturing = 1, 0;
}
API cuStreamEndCapture(void *stream, void **graph) {
  READY(stream);
  if (!capturing) return refuse(INVALID, "no capture to end");
  capturing = 0;
  graphs.insert(*graph = recorded);
  return 0;
}
API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  READY(nullptr);
  if (!graphs.count(graph) || flags) return refuse(INVALID, "no graph");
  executables.insert(*executable = new std::vector<launch_of>(*(std::vector<launch_of> *)graph));
  return 0;
}
API cuGraphLaunch(void *executable, void *stream) {
  READY(stream);
  if (!executables.count(executable)) return refuse(INVALID, "no executable graph");
  note("graph");
  for (auto &l : *(std::vector<launch_of> *)executable) execute(l, find(l.name));
  return 0;
}
API cuGraphExecDestroy(void *executable) {
  if (!executables.erase(executable)) return refuse(INVALID, "no executable graph");
  delete (std::vector<launch_of> *)executable;
  return 0;
}
API cuGraphDestroy(void *graph) {
  if (!graphs.erase(graph)) return refuse(INVALID, "no graph");
  delete (std::vector<launch_of> *)graph;
  return 0;
}
API cuEventCreate(event **e, unsigned flags) {
  READY(nullptr);
  events.insert(*e = new event);
  return flags ? INVALID : 0;
}
API cuEventDestroy_v2(event *e) {
  if (!events.erase(e)) return refuse(INVALID, "no event");
  delete e;
  return 0;
}
API cuEventRecord(event *e, void *stream) {
  READY(stream);
  if (!events.count(e)) return refuse(INVALID, "no event");
  e->at = clock_now++;
  return 0;
}
API cuEventElapsedTime(float *milliseconds, event *begin, event *end) {
  READY(nullptr);
  if (begin->at < 0 || end->at < begin->at) return refuse(INVALID, "events out of order");
  *milliseconds = (float)(end->at - begin->at);
  return 0;
}
