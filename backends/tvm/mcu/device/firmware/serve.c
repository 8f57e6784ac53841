/* Serves the host: takes inputs, runs the model, gives outputs, the depth of the stack and the ticks.
 *
 * A frame is 0xEF 0xC0, a number, a command, a length (32 bits, little-endian), so many bytes, and the CRC-32
 * (IEEE 802.3) of all that from the number on. The answer has the same number and command, or the command 'E' and a
 * text; number 0 where the frame could not be read. A host that gets no answer with its number sends the frame again.
 * So a frame may come twice: only 'R' does something each time, and a second one with the same number is answered
 * without running again. An input that a damaged frame may have reached has to be written again before 'R'.
 */
#include "effc_device.h"
#include <string.h>

#define MAGIC0 0xEFu
#define MAGIC1 0xC0u
#define PAINT 0xA5C3E1F7u
#define MARGIN 32 /* words below the stack pointer that the painting itself may use */

static const uint32_t crc_table[16] = {
    0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
    0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};

static uint32_t crc_add(uint32_t crc, const void *data, uint32_t bytes) {
  const uint8_t *at = data;
  while (bytes--) {
    crc ^= *at++;
    crc = (crc >> 4) ^ crc_table[crc & 15];
    crc = (crc >> 4) ^ crc_table[crc & 15];
  }
  return crc;
}

static uint32_t load32(const uint8_t *at) {
  return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void store32(uint8_t *at, uint32_t value) {
  for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (8 * i));
}

/* an answer is begun with its whole length, then given in pieces */
static uint32_t sum;
static uint8_t number; /* of the frame that is answered */

static void put(const void *data, uint32_t bytes) {
  sum = crc_add(sum, data, bytes);
  effc_link_write(data, bytes);
}

static void begin(char command, uint32_t bytes) {
  uint8_t head[8] = {MAGIC0, MAGIC1, number, (uint8_t)command};
  store32(head + 4, bytes);
  sum = crc_add(0xFFFFFFFFu, head + 2, 6);
  effc_link_write(head, sizeof head);
}

static void end(void) {
  uint8_t tail[4];
  store32(tail, ~sum);
  effc_link_write(tail, sizeof tail);
}

static void refuse(const char *why) {
  uint32_t bytes = (uint32_t)strlen(why);
  begin('E', bytes);
  put(why, bytes);
  end();
}

static uint32_t decimal(uint32_t value, char *text) {
  char digits[10];
  uint32_t count = 0, i = 0;
  do digits[count++] = (char)('0' + value % 10);
  while ((value /= 10) != 0);
  while (count) text[i++] = digits[--count];
  return i;
}

static uint32_t describe(const char *role, const effc_port *port, int write) {
  char number[10];
  uint32_t digits = decimal(port->bytes, number), name = (uint32_t)strlen(port->name);
  uint32_t dtype = (uint32_t)strlen(port->dtype), kind = (uint32_t)strlen(role);
  if (write) {
    put(role, kind);
    put(" ", 1);
    put(port->dtype, dtype);
    put(" ", 1);
    put(number, digits);
    put(" ", 1);
    put(port->name, name);
    put("\n", 1);
  }
  return kind + dtype + digits + name + 4;
}

/* "effc 1 HERTZ\n", then a line a tensor: role, dtype, bytes, name */
static void inform(void) {
  char head[20] = "effc 1 ";
  uint32_t first = 7 + decimal(effc_hertz(), head + 7), bytes;
  head[first++] = '\n';
  bytes = first;
  for (int write = 0; write < 2; write++) {
    if (write) {
      begin('I', bytes);
      put(head, first);
    }
    for (uint32_t i = 0; i < effc_input_count; i++)
      bytes += describe("input", &effc_input_ports[i], write);
    for (uint32_t i = 0; i < effc_output_count; i++)
      bytes += describe("output", &effc_output_ports[i], write);
  }
  end();
}

/* the counting of instructions begins and ends at the borders of effc_invoke, as this function calls it */
__attribute__((noinline)) int effc_counted_invoke(void) {
  int status = effc_model_run();
  __asm__ volatile("" ::: "memory"); /* no tail call: the end has to come back here */
  return status;
}

static int32_t status;
static uint32_t depth;
static uint64_t ticks;
static uint32_t written; /* a bit an input that is whole; effc_invoke may write over them */
static uint8_t last_run; /* the number of the frame that ran */

/* The stack is painted from its limit up to here; what is overwritten afterwards was used by the inference. */
__attribute__((noinline)) static void run(void) {
  uint32_t here = 0;
  uint32_t *limit = effc_stack_limit(), *top = (uint32_t *)((uintptr_t)&here & ~(uintptr_t)3);
  uint64_t before;
  for (volatile uint32_t *at = limit; at + MARGIN < top; at++) *at = PAINT;
  before = effc_ticks();
  status = effc_counted_invoke();
  ticks = effc_ticks() - before;
  while (limit + MARGIN < top && *(volatile uint32_t *)limit == PAINT) limit++;
  depth = (uint32_t)((uintptr_t)top - (uintptr_t)limit);
  if (limit == effc_stack_limit()) depth |= 0x80000000u; /* the whole stack, and maybe more */
}

static void answer_run(void) {
  uint8_t answer[16];
  if (number != last_run) {
    uint32_t all = effc_input_count < 32 ? (1u << effc_input_count) - 1 : 0xFFFFFFFFu;
    if ((written & all) != all) {
      refuse("inputs");
      return;
    }
    run();
    written = 0;
    last_run = number;
  }
  store32(answer, (uint32_t)status);
  store32(answer + 4, depth);
  store32(answer + 8, (uint32_t)ticks);
  store32(answer + 12, (uint32_t)(ticks >> 32));
  begin('R', sizeof answer);
  put(answer, sizeof answer);
  end();
}

/* the bytes of a frame after its head go to `to`; more than `most` are passed over */
static int take(uint8_t *to, uint32_t bytes, uint32_t most, uint32_t *crc) {
  uint8_t lost;
  for (uint32_t i = 0; i < bytes;) {
    uint32_t part = i < most ? (bytes < most ? bytes : most) - i : 1;
    uint8_t *place = i < most ? to + i : &lost;
    if (effc_link_read(place, part)) return -1;
    *crc = crc_add(*crc, place, part);
    i += part;
  }
  return 0;
}

static int receive(uint8_t *command, uint8_t *index, uint32_t *bytes) {
  uint8_t head[6], tail[4], seen = 0;
  uint32_t crc, most = 0, length;
  uint8_t *to = NULL;
  for (;;) {
    uint8_t byte;
    if (effc_link_read(&byte, 1)) return -1;
    if (seen && byte == MAGIC1) break;
    seen = byte == MAGIC0;
  }
  if (effc_link_read(head, sizeof head)) return -1;
  crc = crc_add(0xFFFFFFFFu, head, sizeof head);
  *command = head[1];
  *bytes = length = load32(head + 2);
  *index = 0;
  number = 0;
  /* the only long frame fills an input, where it lies */
  if ((*command == 'W' || *command == 'O') && length) {
    if (take(index, 1, 1, &crc)) return -1;
    length--;
    if (*command == 'W' && *index < effc_input_count) {
      to = effc_input_data(*index);
      most = effc_input_ports[*index].bytes;
    }
  }
  if (length > most && length > 64) return 1; /* no frame of ours: look for the next */
  if (*command == 'W' && length != most) written = 0;
  if (take(to, length, most, &crc) || effc_link_read(tail, sizeof tail)) return -1;
  if (load32(tail) != ~crc) {
    if (to) written = 0;
    return 1;
  }
  number = head[0];
  return 0;
}

void effc_serve(void) {
  for (;;) {
    uint8_t command, index;
    uint32_t bytes;
    int bad = receive(&command, &index, &bytes);
    if (bad < 0) return;
    if (bad) {
      refuse("checksum");
    } else if (command == 'I') {
      last_run = 0; /* a new session */
      inform();
    } else if (command == 'W' && index < effc_input_count &&
               bytes == effc_input_ports[index].bytes + 1) {
      written |= 1u << index;
      begin('W', 0);
      end();
    } else if (command == 'R') {
      answer_run();
    } else if (command == 'O' && bytes == 1 && index < effc_output_count) {
      begin('O', effc_output_ports[index].bytes);
      put(effc_output_data(index), effc_output_ports[index].bytes);
      end();
    } else if (command == 'Q') {
      begin('Q', 0);
      end();
      return;
    } else {
      refuse("unknown command");
    }
  }
}
