/* Startup of Cortex-M: vectors, memory, floating point, the tick counter, faults. */
#include "effc_device.h"
#ifdef EFFC_SEMIHOSTING
#include "semihosting.h"
#endif

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define CCR REGISTER(0xE000ED14)
#define CFSR REGISTER(0xE000ED28)
#define CPACR REGISTER(0xE000ED88)
#define SYST_CSR REGISTER(0xE000E010)
#define SYST_RVR REGISTER(0xE000E014)
#define SYST_CVR REGISTER(0xE000E018)

extern uint32_t _sidata, _sdata, _edata, _sbss, _ebss, _estack, _stack_limit;
int main(void);
void effc_reset(void);

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

/* SysTick counts the clock of the core down from 2^24 - 1; its interrupt counts how often */
static volatile uint32_t wraps;
static void on_tick(void) { wraps++; }

uint64_t effc_ticks(void) {
  uint32_t high, low;
  do {
    high = wraps;
    low = 0xFFFFFFu - SYST_CVR;
  } while (high != wraps);
  return ((uint64_t)high << 24) + low;
}

#ifdef EFFC_SEMIHOSTING
__attribute__((used)) static void report_fault(const uint32_t *frame, uint32_t exception) {
  char text[64]; /* data may have been written over */
  uint32_t values[3] = {exception & 0x1FF, frame[6], CFSR};
  effc_fault_text(text, values, (uintptr_t)frame < (uintptr_t)&_stack_limit);
  semihosting(SYS_WRITE0, text);
  effc_stop(99);
}
__attribute__((naked)) static void on_fault(void) {
  __asm__ volatile("mov r0, sp\nmrs r1, ipsr\nldr r2, =_estack\nmov sp, r2\nldr r2, =report_fault\nbx r2\n");
}
#else
static void on_fault(void) { effc_stop(99); }
#endif

__attribute__((noreturn)) void effc_reset(void) {
#if __ARM_ARCH >= 7
  CPACR |= 0xFu << 20; /* the floating-point and vector unit */
#if __ARM_ARCH >= 8
  CCR |= 1u << 19; /* low-overhead loops (LOB), which MVE code uses */
#endif
  __asm__ volatile("dsb\nisb");
#else
  CCR |= 1u << 3; /* UNALIGN_TRP: where a core with Armv7-M plays one with Armv6-M, it has to fault like that */
#endif
  uint32_t *from = &_sidata, *to = &_sdata;
  if (from != to)
    while (to < &_edata) *to++ = *from++;
  for (to = &_sbss; to < &_ebss;) *to++ = 0;
  SYST_RVR = 0xFFFFFF;
  SYST_CVR = 0;
  SYST_CSR = 7; /* the core's clock, with interrupts */
  effc_stop(main());
  for (;;) {
  }
}

typedef void (*vector)(void);
__attribute__((section(".isr_vector"), used)) static const vector vectors[16] = {
    (vector)(uintptr_t)&_estack, effc_reset, on_fault, on_fault, on_fault, on_fault, on_fault, on_fault, 0, 0, 0,
    on_fault, on_fault, 0, on_fault, on_tick};
