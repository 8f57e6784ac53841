"""IR -> MIL: one ONNX operator, one function (`table.OPS`); `program.convert` walks the graph."""
