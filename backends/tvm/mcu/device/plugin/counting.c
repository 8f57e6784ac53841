/* A plugin for QEMU's TCG that counts executed instructions exactly: by function, and by call site of one of them.
 *
 * QEMU's headers are not needed: the functions of its plugin interface (version 1) are declared here. Arguments:
 *   ranges=FILE  lines "BEGIN END KIND" (hexadecimal): functions, by address; KIND 0 counts, 1 is the function
 *                whose instructions each get what is executed until its next one (so a call gets its callee's), 2 is the
 *                function around it, which begins and ends an inference, 3 an interrupt, which belongs to none
 *   out=FILE     lines "f RUN INDEX COUNT" (by function, exclusive) and "s RUN ADDRESS COUNT" (by site, inclusive)
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
typedef uint64_t plugin_id;
struct block;
struct instruction;
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct instruction *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct instruction *, void (*)(unsigned, void *), int, void *);
extern size_t qemu_plugin_tb_n_insns(const struct block *);
extern struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct instruction *);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

EXPORT int qemu_plugin_version = 1;

typedef struct {
  uint64_t begin, end, count, before;
  int kind;
} range;
typedef struct {
  uint64_t address, count;
  int kind;
} site;

static range *ranges;
static size_t range_count;
static site *sites;
static size_t site_count, site_room;
static uint64_t total, last, elsewhere;
static site *open_site;
static int inside;
static unsigned runs;
static FILE *out;

static int range_of(uint64_t address) {
  size_t low = 0, high = range_count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (address < ranges[middle].begin)
      high = middle;
    else if (address >= ranges[middle].end)
      low = middle + 1;
    else
      return (int)middle;
  }
  return -1;
}

static site *site_of(uint64_t address, int kind) {
  for (size_t i = 0; i < site_count; i++)
    if (sites[i].address == address) return &sites[i];
  if (site_count == site_room) return NULL;
  sites[site_count] = (site){address, 0, kind};
  return &sites[site_count++];
}

static void finish(void) {
  if (!inside) return;
  for (size_t i = 0; i < range_count; i++) {
    if (ranges[i].count != ranges[i].before)
      fprintf(out, "f %u %zu %llu\n", runs, i, (unsigned long long)(ranges[i].count - ranges[i].before));
  }
  for (size_t i = 0; i < site_count; i++) {
    if (sites[i].count && sites[i].kind == 1)
      fprintf(out, "s %u %llx %llu\n", runs, (unsigned long long)sites[i].address,
              (unsigned long long)sites[i].count);
    sites[i].count = 0;
  }
  fflush(out);
  runs++;
  inside = 0;
}

/* before an instruction of kind 1 or 2: what was executed since the last one belongs to that one */
static void on_site(unsigned cpu, void *data) {
  site *now = data;
  (void)cpu;
  if (open_site) open_site->count += total - last;
  last = total;
  if (now->kind == 1 && !inside) {
    inside = 1;
    for (size_t i = 0; i < range_count; i++) ranges[i].before = ranges[i].count;
  }
  if (now->kind == 2 && inside) finish();
  open_site = now->kind == 1 ? now : NULL;
}

static void on_block(plugin_id id, struct block *block) {
  (void)id;
  for (size_t i = 0, n = qemu_plugin_tb_n_insns(block); i < n; i++) {
    struct instruction *one = qemu_plugin_tb_get_insn(block, i);
    uint64_t address = qemu_plugin_insn_vaddr(one);
    int at = range_of(address);
    if (at >= 0 && (ranges[at].kind == 1 || ranges[at].kind == 2)) {
      site *place = site_of(address, ranges[at].kind);
      if (place) qemu_plugin_register_vcpu_insn_exec_cb(one, on_site, 0, place);
    }
    if (at < 0 || ranges[at].kind != 3) qemu_plugin_register_vcpu_insn_exec_inline(one, 0, &total, 1);
    qemu_plugin_register_vcpu_insn_exec_inline(one, 0, at >= 0 ? &ranges[at].count : &elsewhere, 1);
  }
}

static void at_end(plugin_id id, void *data) {
  (void)id;
  (void)data;
  fclose(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
  const char *list = NULL, *to = NULL;
  (void)info;
  for (int i = 0; i < argc; i++) {
    if (!strncmp(argv[i], "ranges=", 7)) list = argv[i] + 7;
    if (!strncmp(argv[i], "out=", 4)) to = argv[i] + 4;
  }
  FILE *in = list ? fopen(list, "r") : NULL;
  out = to ? fopen(to, "w") : NULL;
  if (!in || !out) return -1;
  size_t room = 0;
  unsigned long long begin, end;
  int kind;
  while (fscanf(in, "%llx %llx %d", &begin, &end, &kind) == 3) {
    if (range_count == room) {
      room = room ? 2 * room : 256;
      ranges = realloc(ranges, room * sizeof *ranges);
      if (!ranges) return -1;
    }
    ranges[range_count++] = (range){begin, end, 0, 0, kind};
    if (kind == 1 || kind == 2) site_room += (size_t)(end - begin) / 2 + 1;
  }
  fclose(in);
  sites = calloc(site_room + 1, sizeof *sites); /* never moved: callbacks hold their addresses */
  if (!sites) return -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
  qemu_plugin_register_atexit_cb(id, at_end, NULL);
  return 0;
}
