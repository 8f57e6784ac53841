/* Startup of RISC-V (RV32, machine mode). */
#include "effc_device.h"
#ifdef EFFC_SEMIHOSTING
#include "semihosting.h"
#endif

extern uint32_t _sidata, _sdata, _edata, _sbss, _ebss, _stack_limit;
int main(void);
void effc_begin(void);

__attribute__((weak)) uint32_t effc_hertz(void) { return 0; }

uint32_t *effc_stack_limit(void) { return &_stack_limit; }

void effc_stop(int code) {
#ifdef EFFC_SEMIHOSTING
  uintptr_t arguments[2] = {0x20026 /* ADP_Stopped_ApplicationExit */, (uintptr_t)code};
  semihosting(SYS_EXIT_EXTENDED, arguments);
#else
  (void)code;
#endif
  for (;;) {
  }
}

uint64_t effc_ticks(void) {
  uint32_t high, low, again;
  do {
    __asm__ volatile("csrr %0, mcycleh\ncsrr %1, mcycle\ncsrr %2, mcycleh" : "=r"(high), "=r"(low), "=r"(again));
  } while (high != again);
  return (uint64_t)high << 32 | low;
}

__attribute__((used)) static void report_trap(uintptr_t stack) {
#ifdef EFFC_SEMIHOSTING
  char text[64]; /* data may have been written over */
  uint32_t values[3];
  __asm__ volatile("csrr %0, mcause\ncsrr %1, mepc\ncsrr %2, mtval" : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]));
  effc_fault_text(text, values, stack < (uintptr_t)&_stack_limit);
  semihosting(SYS_WRITE0, text);
#else
  (void)stack;
#endif
  effc_stop(99);
}
__attribute__((aligned(4), naked, used)) static void on_trap(void) {
  __asm__ volatile("mv a0, sp\nla sp, _estack\nj report_trap");
}

__attribute__((used)) void effc_begin(void) {
  uint32_t *from = &_sidata, *to = &_sdata;
  if (from != to)
    while (to < &_edata) *to++ = *from++;
  for (to = &_sbss; to < &_ebss;) *to++ = 0;
  __asm__ volatile("csrw mtvec, %0" : : "r"(on_trap));
  effc_stop(main());
}

__attribute__((naked, section(".isr_vector"), used)) void _start(void) {
  __asm__ volatile(
      ".option push\n.option norelax\nla gp, __global_pointer$\n.option pop\n"
      "la sp, _estack\n"
#ifdef __riscv_flen
      "li t0, 0x2000\ncsrs mstatus, t0\n"
#endif
      "j effc_begin");
}
