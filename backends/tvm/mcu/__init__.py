"""Firmware: an integer graph as C99 files for microcontrollers, without heap, operating system or library.

`lower` makes a `Program` of kernels that are written for the shapes of the model, `memory` places its
tensors in one block of RAM, `sources` writes it as `model.h`, `model.c`, `kernels.h` and `kernels.c`,
`host_build` compiles the same files for this machine.
"""
