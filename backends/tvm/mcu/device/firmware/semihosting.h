/* Semihosting: calls to the host of an emulator or a debugger ("Semihosting for AArch32 and AArch64", Arm 2022). */
#ifndef EFFC_SEMIHOSTING_H
#define EFFC_SEMIHOSTING_H
#include <stdint.h>

#define SYS_OPEN 0x01
#define SYS_WRITE0 0x04
#define SYS_WRITE 0x05
#define SYS_READ 0x06
#define SYS_EXIT_EXTENDED 0x20

static inline intptr_t semihosting(intptr_t operation, const void *arguments) {
#if defined(__riscv)
  register intptr_t a0 __asm__("a0") = operation;
  register const void *a1 __asm__("a1") = arguments;
  /* the three instructions are known by their uncompressed form, in one page */
  __asm__ volatile(
      ".option push\n.option norvc\n.balign 16\n"
      "slli x0, x0, 0x1f\nebreak\nsrai x0, x0, 7\n.option pop"
      : "+r"(a0) : "r"(a1) : "memory");
  return a0;
#else
  register intptr_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = arguments;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
#endif
}

/* "fault CAUSE at ADDRESS status STATUS", with " stack" where the stack was left */
static inline void effc_fault_text(char *text, const uint32_t *values, int below) {
  const char *form = "fault # at # status #";
  for (; *form; form++) {
    if (*form != '#') {
      *text++ = *form;
      continue;
    }
    for (int i = 28; i >= 0; i -= 4) *text++ = "0123456789abcdef"[*values >> i & 15];
    values++;
  }
  for (form = below ? " stack\n" : "\n"; *form;) *text++ = *form++;
  *text = 0;
}
#endif
