/* Decodes constants that were stored smaller; core/storage.py is the encoder and says what the form is. */
#ifndef EFFC_DECODE_H
#define EFFC_DECODE_H

#include <stddef.h>
#include <stdint.h>

/* Fills all of `out`. NULL, or what is wrong with the data; nothing outside `data` and `out` is touched,
 * whatever the data are. */
const char *effc_decode(const unsigned char *data, size_t data_bytes, unsigned char *out, size_t bytes);

#endif
