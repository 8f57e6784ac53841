/* Where a product begins: fill the inputs, run, read the outputs. */
#include "effc_device.h"
#include <string.h>

int main(void) {
  for (uint32_t i = 0; i < effc_input_count; i++)
    memset(effc_input_data(i), 0, effc_input_ports[i].bytes); /* the camera's or the microphone's data */
  if (effc_model_run()) return 1;
  const int8_t *scores = effc_output_data(0);
  return scores == 0; /* what the product does with them */
}
