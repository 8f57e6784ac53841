"""Passes that quantize: calibration, placement, recovery of accuracy, and integer form."""
