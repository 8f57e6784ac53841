"""CUDA: the same programs as for CPUs, printed as kernels for NVIDIA GPUs and a launcher in C."""
