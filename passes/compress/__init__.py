"""Passes that make weights smaller: 16-bit floats, block-quantized weights, palettes, binary weights."""
