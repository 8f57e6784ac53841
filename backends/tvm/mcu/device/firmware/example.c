/* Where a product begins: fill the inputs, run, read the outputs. It gives 0, or what effc_invoke gave. */
#include "effc_device.h"
#include <string.h>

int main(void) {
  int status;
  for (uint32_t i = 0; i < effc_input_count; i++)
    memset(effc_input_data(i), 0, effc_input_ports[i].bytes); /* here goes what the camera or microphone gave */
  status = effc_model_run();
  /* effc_output_data(0) points at the first output, of effc_output_ports[0].bytes bytes */
  return status;
}
