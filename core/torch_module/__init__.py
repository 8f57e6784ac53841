"""The IR in torch: a float model as a differentiable module, and its weights back into the IR by name.

`module.TorchModule` interprets the graph, one torch function an operator (`table.OPS`); `substitutes` compute
weights from others (learned rounding, fake quantization, signs); nothing here is imported before it is used,
because it needs the extra `torch`.
"""
