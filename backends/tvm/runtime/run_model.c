/* Runs a model library from the command line: raw tensors in, raw tensors out, nothing else needed.
 *
 *     ./run_model < inputs.bin > outputs.bin        any number of samples, one behind the other
 *     ./run_model --time 100 < inputs.bin           seconds of each inference, after one that is not counted
 *     ./run_model --profile 10 < inputs.bin         nanoseconds of each call, a line an inference
 *     ./run_model --describe                        the inputs, outputs and calls
 *
 * A sample is all inputs in order, each row-major in the byte order of this machine; an answer is all outputs.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "effc_model.h"

#define MOST_TENSORS 1024

static void *inputs[MOST_TENSORS], *outputs[MOST_TENSORS];
static int32_t input_count, output_count;

static int fail(const char *text) {
  fprintf(stderr, "run_model: %s\n", text);
  return 1;
}

static void describe_tensor(const char *role, const effc_tensor *t) {
  printf("%s %s %s", role, t->name, t->dtype);
  for (int32_t i = 0; i < t->ndim; i++) printf(" %lld", (long long)t->shape[i]);
  printf("\n");
}

static int describe(void) {
  for (int32_t i = 0; i < input_count; i++) describe_tensor("input", effc_model_input(i));
  for (int32_t i = 0; i < output_count; i++) describe_tensor("output", effc_model_output(i));
  for (int32_t i = 0; i < effc_model_call_count(); i++) {
    const effc_call *call = effc_model_call(i);
    printf("call %s ", call->kernel_class);
    for (const char *c = call->nodes; *c; c++) putchar(*c == '\n' ? ' ' : *c);
    putchar('\n');
  }
  return 0;
}

static int allocate(void) {
  if (input_count > MOST_TENSORS || output_count > MOST_TENSORS) return fail("too many tensors");
  for (int32_t i = 0; i < input_count; i++)
    if (!(inputs[i] = malloc(effc_model_input(i)->bytes + 1))) return fail("out of memory");
  for (int32_t i = 0; i < output_count; i++)
    if (!(outputs[i] = malloc(effc_model_output(i)->bytes + 1))) return fail("out of memory");
  return 0;
}

/* 1: a sample; 0: the end of the input; -1: the end in the middle of a sample */
static int read_sample(void) {
  for (int32_t i = 0; i < input_count; i++) {
    size_t wanted = effc_model_input(i)->bytes, got = fread(inputs[i], 1, wanted, stdin);
    if (got < wanted) return i == 0 && got == 0 ? 0 : -1;
  }
  return 1;
}

static int write_answer(void) {
  for (int32_t i = 0; i < output_count; i++) {
    size_t bytes = effc_model_output(i)->bytes;
    if (fwrite(outputs[i], 1, bytes, stdout) != bytes) return fail("the answer can't be written");
  }
  return fflush(stdout) ? fail("the answer can't be written") : 0;
}

static int invoke(effc_model *model) {
  if (!effc_model_invoke(model, (const void *const *)inputs, outputs)) return 0;
  return fail(effc_model_last_error());
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int time_it(effc_model *model, long repeats) {
  if (invoke(model)) return 1;
  for (long i = 0; i < repeats; i++) {
    double start = now();
    if (invoke(model)) return 1;
    printf("%.9f\n", now() - start);
  }
  return 0;
}

static int profile(effc_model *model, long repeats) {
  int32_t calls = effc_model_call_count();
  uint64_t *nanoseconds = calloc((size_t)calls + 1, sizeof *nanoseconds);
  if (!nanoseconds) return fail("out of memory");
  int failed = invoke(model);
  for (long i = 0; i < repeats && !failed; i++) {
    failed = effc_model_profile(model, (const void *const *)inputs, outputs, nanoseconds);
    for (int32_t k = 0; k < calls; k++) printf("%llu ", (unsigned long long)nanoseconds[k]);
    printf("\n");
  }
  free(nanoseconds);
  return failed;
}

int main(int argc, char **argv) {
  long threads = 1, times = 0, profiles = 0;
  int only_describe = 0;
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (!strcmp(argv[i], "--describe")) only_describe = 1;
    else if (!strcmp(argv[i], "--threads")) threads = strtol(value, NULL, 10), i++;
    else if (!strcmp(argv[i], "--time")) times = strtol(value, NULL, 10), i++;
    else if (!strcmp(argv[i], "--profile")) profiles = strtol(value, NULL, 10), i++;
    else return fail("usage: run_model [--threads N] [--time N | --profile N | --describe] < INPUTS > OUTPUTS"), 2;
  }
  input_count = effc_model_input_count();
  output_count = effc_model_output_count();
  if (only_describe) return describe();
  effc_model *model = effc_model_create((int32_t)threads);
  if (!model) return fail(effc_model_last_error());
  if (allocate()) return 1;
  int failed = 0, got = 0;
  if (times > 0 || profiles > 0) {
    if (input_count && read_sample() != 1) return fail("there is no whole sample on the standard input");
    failed = times > 0 ? time_it(model, times) : profile(model, profiles);
  } else if (!input_count) {
    failed = invoke(model) || write_answer();
  } else {
    while (!failed && (got = read_sample()) == 1) failed = invoke(model) || write_answer();
    if (got < 0) failed = fail("the input ends in the middle of a sample");
  }
  effc_model_destroy(model);
  return failed;
}
