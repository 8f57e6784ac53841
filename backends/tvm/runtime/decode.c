/* Huffman-coded constants -> memory. The form stands in core/storage.py and core/coding.py. */
#include "decode.h"

#include <stdlib.h>
#include <string.h>

#define MAX_BITS 12
#define MAX_SYMBOLS (1u << MAX_BITS)

enum { RAW, PALETTE, TABLES, GRID, WIDE };
enum { PLAIN, HUFFMAN, RUNS };

typedef struct {
  const unsigned char *at, *end;
  const char *error; /* the first one; everything reads as zeros from then on */
} reader;

static int fail(reader *r, const char *text) {
  if (!r->error) r->error = text;
  return 1;
}

static const unsigned char *take(reader *r, uint64_t bytes) {
  const unsigned char *begin = r->at;
  if (r->error || bytes > (uint64_t)(r->end - r->at)) {
    fail(r, "they end too early");
    return NULL;
  }
  r->at += bytes;
  return begin;
}

static uint64_t varint(reader *r) {
  uint64_t value = 0;
  for (int shift = 0; shift <= 56; shift += 7) {
    const unsigned char *byte = take(r, 1);
    if (!byte) return 0;
    value |= (uint64_t)(*byte & 127) << shift;
    if (*byte < 128) return value;
  }
  fail(r, "an integer is too long");
  return 0;
}

/* Bits */

typedef struct {
  const unsigned char *at, *end;
  uint64_t window; /* the next bits, from the top; zeros behind the end */
  int filled;
  uint64_t used;
} bits;

static inline uint32_t peek(bits *b) {
  if (b->filled < MAX_BITS)
    for (; b->filled <= 56; b->filled += 8)
      b->window |= (uint64_t)(b->at < b->end ? *b->at++ : 0) << (56 - b->filled);
  return (uint32_t)(b->window >> (64 - MAX_BITS));
}

static inline void skip(bits *b, int width) {
  b->window <<= width;
  b->filled -= width;
  b->used += (uint64_t)width;
}

static bits begin_bits(reader *r, uint64_t *size) {
  *size = varint(r);
  const unsigned char *begin = take(r, *size);
  bits b = {begin, begin ? begin + *size : NULL, 0, 0, 0};
  return b;
}

static int check_bits(reader *r, const bits *b, uint64_t size) {
  return (b->used + 7) / 8 == size ? 0 : fail(r, "a stream has the wrong length");
}

/* Codes: the next MAX_BITS bits -> length << MAX_BITS | symbol; 0 where no code begins so */

static int read_code(reader *r, uint64_t symbols, uint16_t *table) {
  unsigned char lengths[MAX_SYMBOLS];
  if (symbols == 0 || symbols > MAX_SYMBOLS) return fail(r, "a code has too many symbols");
  const unsigned char *raw = take(r, (symbols + 1) / 2);
  if (!raw) return 1;
  uint32_t count[MAX_BITS + 1] = {0}, next[MAX_BITS + 1], total = 0;
  for (uint32_t s = 0; s < symbols; s++) {
    lengths[s] = s & 1 ? raw[s / 2] >> 4 : raw[s / 2] & 15;
    if (lengths[s] > MAX_BITS) return fail(r, "a code is too long");
    count[lengths[s]]++;
  }
  for (int n = 1; n <= MAX_BITS; n++) { /* where the codes of this length begin in the table */
    next[n] = total;
    total += count[n] << (MAX_BITS - n);
  }
  if (total > MAX_SYMBOLS) return fail(r, "the codes overlap");
  memset(table, 0, MAX_SYMBOLS * sizeof *table);
  for (uint32_t s = 0; s < symbols; s++) {
    int n = lengths[s];
    if (!n) continue;
    uint32_t spread = 1u << (MAX_BITS - n);
    for (uint32_t i = 0; i < spread; i++)
      table[next[n] + i] = (uint16_t)(n << MAX_BITS | s);
    next[n] += spread;
  }
  return 0;
}

static inline uint32_t symbol(bits *b, const uint16_t *table, int *bad) {
  uint32_t entry = table[peek(b)];
  if (!entry) *bad = 1;
  skip(b, (int)(entry >> MAX_BITS));
  return entry & (MAX_SYMBOLS - 1);
}

/* Streams */

static int plain_stream(reader *r, uint16_t *out, uint64_t count) {
  uint64_t width = varint(r), size;
  bits b = begin_bits(r, &size);
  if (r->error) return 1;
  if (width > MAX_BITS || size != (count * width + 7) / 8)
    return fail(r, "a stream has the wrong length");
  for (uint64_t i = 0; i < count; i++) {
    out[i] = (uint16_t)(width ? peek(&b) >> (MAX_BITS - width) : 0);
    skip(&b, (int)width);
  }
  return 0;
}

static int huffman_stream(reader *r, uint16_t *out, uint64_t count) {
  uint16_t table[MAX_SYMBOLS];
  uint64_t size;
  int bad = 0;
  if (read_code(r, varint(r), table)) return 1;
  bits b = begin_bits(r, &size);
  if (r->error) return 1;
  for (uint64_t i = 0; i < count; i++) out[i] = (uint16_t)symbol(&b, table, &bad);
  return bad ? fail(r, "bits that are no code") : check_bits(r, &b, size);
}

static int run_stream(reader *r, uint16_t *out, uint64_t count) {
  uint16_t tokens[MAX_SYMBOLS], symbols[MAX_SYMBOLS];
  uint64_t alphabet = varint(r), common = varint(r), filler = varint(r), size, at = 0;
  int bad = 0;
  if (!filler || filler >= MAX_SYMBOLS || common >= alphabet || alphabet > MAX_SYMBOLS)
    return fail(r, "runs of an unknown form");
  if (read_code(r, filler + 1, tokens) || read_code(r, alphabet, symbols)) return 1;
  bits b = begin_bits(r, &size);
  if (r->error) return 1;
  for (uint64_t i = 0; i < count; i++) out[i] = (uint16_t)common;
  while (at < count) {
    uint32_t token = symbol(&b, tokens, &bad);
    if (bad) return fail(r, "bits that are no code");
    at += token;
    if (at > count) return fail(r, "a run goes on behind the end");
    if (token < filler && at < count) out[at++] = (uint16_t)symbol(&b, symbols, &bad);
  }
  return bad ? fail(r, "bits that are no code") : check_bits(r, &b, size);
}

/* `count` symbols below `alphabet`, in memory that the caller frees; NULL where the data are damaged. */
static uint16_t *stream(reader *r, uint64_t count, uint64_t alphabet) {
  uint64_t kind = varint(r);
  if (r->error) return NULL;
  uint16_t *out = malloc((count + 1) * sizeof *out);
  if (!out) {
    fail(r, "there is not enough memory");
    return NULL;
  }
  int failed = kind == PLAIN     ? plain_stream(r, out, count)
               : kind == HUFFMAN ? huffman_stream(r, out, count)
               : kind == RUNS    ? run_stream(r, out, count)
                                 : fail(r, "a stream of an unknown kind");
  for (uint64_t i = 0; !failed && i < count; i++)
    if (out[i] >= alphabet) failed = fail(r, "a symbol is out of range");
  if (!failed) return out;
  free(out);
  return NULL;
}

/* Groups: the table of every element, in memory that the caller frees */

static uint32_t *read_groups(reader *r, uint64_t count) {
  reader again;
  uint64_t segments = varint(r), slots = 0, elements = 0;
  again = *r;
  for (uint64_t i = 0; i < segments && !r->error; i++) {
    uint64_t k = varint(r), n = varint(r), p = varint(r), left = count - elements;
    if (r->error) break;
    if (!k || !n || !p || k > left || n > left / k || p > left / (k * n)) {
      fail(r, "groups are larger than their array");
      break;
    }
    slots += k * p;
    elements += k * n * p;
  }
  if (!r->error && elements != count) fail(r, "groups do not cover their array");
  uint64_t same = varint(r);
  if (r->error) return NULL;
  uint16_t *ids = NULL;
  if (!same && !(ids = stream(r, slots, MAX_SYMBOLS))) return NULL;
  uint32_t *out = malloc((count + 1) * sizeof *out), *to = out;
  if (!out) fail(r, "there is not enough memory");
  for (uint64_t i = 0, first = 0; out && i < segments; i++) {
    uint64_t k = varint(&again), n = varint(&again), p = varint(&again);
    for (; k; k--, first += p)
      for (uint64_t row = 0; row < n; row++)
        for (uint64_t j = first; j < first + p; j++) *to++ = ids ? ids[j] : (uint32_t)j;
  }
  free(ids);
  return out;
}

/* Records: `count` elements into `out`, which has `room` bytes left; the bytes written */

static uint64_t raw(reader *r, uint64_t count, unsigned char *out, uint64_t room) {
  const unsigned char *from = take(r, count);
  if (!from || count > room) return fail(r, "an array reaches behind the end"), 0;
  memcpy(out, from, count);
  return count;
}

static uint64_t element_size(reader *r) {
  uint64_t size = varint(r);
  if (size != 1 && size != 2 && size != 4 && size != 8) fail(r, "elements of an unknown size");
  return size;
}

static uint64_t palette(reader *r, uint64_t count, unsigned char *out, uint64_t room) {
  uint64_t size = element_size(r), n = varint(r);
  if (!n || n > MAX_SYMBOLS) return fail(r, "a palette has too many entries"), 0;
  if (r->error || count > room / size) return fail(r, "an array reaches behind the end"), 0;
  const unsigned char *entries = take(r, n * size);
  uint16_t *symbols = entries ? stream(r, count, n) : NULL;
  if (!symbols) return 0;
  for (uint64_t i = 0; i < count; i++) memcpy(out + i * size, entries + symbols[i] * size, size);
  free(symbols);
  return count * size;
}

static uint64_t tables(reader *r, uint64_t count, unsigned char *out, uint64_t room) {
  uint64_t size = element_size(r), total = 0, most = 0, written = 0;
  if (r->error || count > room / size) return fail(r, "an array reaches behind the end"), 0;
  uint32_t *groups = read_groups(r, count), *first = NULL;
  uint64_t n = groups ? varint(r) : 0;
  uint16_t *sizes = NULL, *symbols = NULL;
  if (!n || n > MAX_SYMBOLS) fail(r, "too many tables");
  if (!r->error && (sizes = stream(r, n, MAX_SYMBOLS)) && (first = malloc(n * sizeof *first))) {
    for (uint64_t t = 0; t < n; t++) {
      first[t] = (uint32_t)total;
      total += sizes[t] + 1u;
      if (sizes[t] + 1u > most) most = sizes[t] + 1u;
    }
    const unsigned char *entries = take(r, total * size);
    symbols = entries ? stream(r, count, most) : NULL;
    for (uint64_t i = 0; symbols && i < count; i++) {
      if (groups[i] >= n || symbols[i] > sizes[groups[i]]) {
        fail(r, "a symbol is outside its table");
        break;
      }
      memcpy(out + i * size, entries + (first[groups[i]] + symbols[i]) * size, size);
    }
    written = count * size;
  } else {
    fail(r, "there is not enough memory");
  }
  free(groups);
  free(sizes);
  free(first);
  free(symbols);
  return written;
}

static uint64_t grid(reader *r, uint64_t count, unsigned char *out, uint64_t room) {
  if (count > room / 4) return fail(r, "an array reaches behind the end"), 0;
  uint32_t *groups = read_groups(r, count);
  uint64_t n = varint(r), is_short = varint(r), width = is_short ? 2 : 4;
  if (is_short > 1 || n > (uint64_t)(r->end - r->at) / width) fail(r, "scales of an unknown form");
  const unsigned char *scales = r->error ? NULL : take(r, n * width);
  uint64_t coded = varint(r);
  int64_t low = coded & 1 ? -(int64_t)(coded / 2) - 1 : (int64_t)(coded / 2);
  uint16_t *levels = r->error ? NULL : stream(r, count, MAX_SYMBOLS);
  for (uint64_t i = 0; levels && i < count; i++) {
    uint32_t word = 0;
    float scale, real;
    if (groups[i] >= n) {
      fail(r, "an element of a scale that is not there");
      break;
    }
    const unsigned char *s = scales + groups[i] * width;
    word = is_short ? (uint32_t)s[0] << 16 | (uint32_t)s[1] << 24
                    : s[0] | (uint32_t)s[1] << 8 | (uint32_t)s[2] << 16 | (uint32_t)s[3] << 24;
    memcpy(&scale, &word, 4);
    real = (float)(low + levels[i]) * scale;
    memcpy(out + 4 * i, &real, 4);
  }
  free(groups);
  free(levels);
  return count * 4;
}

static uint32_t float_of_half(uint32_t half) {
  uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ffu;
  if (exponent == 31) return sign | 0x7f800000u | mantissa << 13;
  if (exponent) return sign | (exponent + 112) << 23 | mantissa << 13;
  if (!mantissa) return sign;
  for (exponent = 113; !(mantissa & 0x400u); exponent--) mantissa <<= 1;
  return sign | exponent << 23 | (mantissa & 0x3ffu) << 13;
}

static uint64_t wide(reader *r, uint64_t count, unsigned char *out, uint64_t room) {
  uint64_t kind = varint(r);
  if (kind > 1) return fail(r, "floats of an unknown type"), 0;
  if (r->error || count > room / 4) return fail(r, "an array reaches behind the end"), 0;
  uint16_t *upper = stream(r, count, 256), *lower = upper ? stream(r, count, 256) : NULL;
  for (uint64_t i = 0; lower && i < count; i++) {
    uint32_t half = (uint32_t)upper[i] << 8 | lower[i];
    uint32_t word = kind ? half << 16 : float_of_half(half);
    memcpy(out + 4 * i, &word, 4);
  }
  free(upper);
  free(lower);
  return count * 4;
}

static uint32_t crc32_of(const unsigned char *data, size_t bytes) {
  uint32_t table[256], crc = ~0u;
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
    table[i] = c;
  }
  for (size_t i = 0; i < bytes; i++) crc = table[(crc ^ data[i]) & 255] ^ crc >> 8;
  return ~crc;
}

const char *effc_decode(const unsigned char *data, size_t data_bytes, unsigned char *out,
                        size_t bytes) {
  static uint64_t (*const codecs[])(reader *, uint64_t, unsigned char *, uint64_t) = {
      raw, palette, tables, grid, wide};
  if (data_bytes < 8 || memcmp(data, "EFCC", 4)) return "they do not begin as they should";
  uint32_t wanted = data[4] | (uint32_t)data[5] << 8 | (uint32_t)data[6] << 16 | (uint32_t)data[7] << 24;
  if (crc32_of(data + 8, data_bytes - 8) != wanted) return "their checksum is wrong";
  reader r = {data + 8, data + data_bytes, NULL};
  if (varint(&r) != 1 || varint(&r) != bytes) return "they are of another version or size";
  memset(out, 0, bytes);
  for (uint64_t records = varint(&r); records && !r.error; records--) {
    uint64_t codec = varint(&r), offset = varint(&r), count = varint(&r);
    if (r.error) break;
    if (codec > WIDE || offset > bytes || count > bytes) return "a record of an unknown form";
    codecs[codec](&r, count, out + offset, bytes - offset);
  }
  if (!r.error && r.at != r.end) return "something is behind the last record";
  return r.error;
}
