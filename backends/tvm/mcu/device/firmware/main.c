/* The firmware that effc runs and measures a model with; example.c is the one to begin a product from. */
#include "effc_device.h"

int main(void) {
  effc_link_open();
  effc_serve();
  return 0;
}
