"""A frontend: files `*.chain` with the names of unary operators, one a line, over 8 numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from effc.core.errors import FrontendError
from effc.core.source import Source, fingerprint


class Chain:
    """The frontend."""

    def accepts(self, text: str, head: bytes) -> bool:
        return text.endswith(".chain")

    def load(self, text: str, shapes: Mapping[str, tuple[int, ...]]) -> Source:
        try:
            ops = Path(text).read_text(encoding="utf-8").split()
        except OSError as error:
            raise FrontendError(f"{text!r} can't be read: {error.strerror}") from error
        if not ops:
            raise FrontendError(f"{text!r} names no operator", hint="write one a line, such as Abs")
        x = ir.Value(name="x", shape=ir.Shape((1, 8)), type=ir.TensorType(ir.DataType.FLOAT))
        nodes, last = [], x
        for op in ops:
            node = ir.Node("", op, [last])
            nodes.append(node)
            last = node.outputs[0]
        last.name = "y"
        graph = ir.Graph([x], [last], nodes=nodes, opset_imports={"": 20}, name="chain")
        model = ir.Model(graph, ir_version=10)
        last.type, last.shape = x.type, x.shape
        return Source(model=model, kind="chain", name=text, sha256=fingerprint(model))


FRONTEND = Chain()
