"""The fusion report: which layers an engine is made of, and which ONNX nodes each of them computes.

Two sources say the same: the verbose log of a build (one layer a line, checked against TensorRT for RTX
1.7.1), and the engine inspector's JSON (TensorRT 10 and 11, where the engine can be loaded).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

# layers that move or wait, and compute nothing
_PLUMBING = frozenset({"signal", "wait", "memset", "copy", "jmp", "cjmp", "NoOp", "Signal", "Wait"})
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


class Port(msgspec.Struct, frozen=True):
    """A tensor as a layer reads or writes it; `format` is TensorRT's name of the memory layout."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str


class EngineLayer(msgspec.Struct, frozen=True):
    """One layer: a kernel, or a wait or signal between streams."""

    name: str
    type: str
    nodes: tuple[str, ...]  # of the ONNX graph, without repetitions
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: tuple[Port, ...] = ()
    tactic: str = ""

    @property
    def computes(self) -> bool:
        return self.type not in _PLUMBING


class FusionReport(msgspec.Struct, frozen=True):
    """All layers in order, and the nodes of the graph that no layer names: folded away, or free."""

    layers: tuple[EngineLayer, ...]
    unnamed: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """What the manifest says: counts, not the layers."""
        kernels = [x for x in self.layers if x.computes]
        return {
            "layers": len(kernels),
            "types": dict(sorted(Counter(x.type for x in kernels).items())),
            "dtypes": dict(
                sorted(Counter(o.dtype for x in kernels for o in x.outputs[:1]).items())
            ),
            "nodes": len({n for x in kernels for n in x.nodes}),
            "fused": [list(x.nodes) for x in kernels if len(x.nodes) > 1],
            "reformats": [x.name for x in kernels if not x.nodes],
            "folded": list(self.unnamed),
        }


def read_layers(text: str, nodes: Iterable[str] = ()) -> FusionReport:
    """The report of a build: its log's list of layers, or the inspector's JSON; "" has no layers.

    `nodes` are the names of the graph's nodes. ValueError where the text is neither.
    """
    if text.lstrip().startswith("{"):
        layers = tuple(_from_json(x) for x in json.loads(text).get("Layers", ()))
    else:
        layers = tuple(_from_line(x) for x in text.splitlines() if x.startswith("Name: "))
        if text and not layers:
            raise ValueError("TensorRT's log lists no layers in the known form")
    seen = {n for x in layers for n in x.nodes}
    return FusionReport(layers, tuple(n for n in nodes if n not in seen))


def _from_line(line: str) -> EngineLayer:
    """`Name: a, LayerType: b, Inputs: [ { ... }], ..., Metadata: [ONNX Layer: x][ONNX Layer: y]`."""
    fields = dict(_fields(line))
    if "LayerType" not in fields:
        raise ValueError(f"no layer: {line[:100]}")
    return EngineLayer(
        fields["Name"],
        fields["LayerType"],
        nodes_of(fields.get("Metadata", "")),
        tuple(_ports(fields.get("Inputs", ""))),
        tuple(_ports(fields.get("Outputs", ""))),
        tuple(_ports(fields.get("Constants", ""))),
        fields.get("TacticName", ""),
    )


def _fields(text: str) -> Iterator[tuple[str, str]]:
    """`key: value` pairs; commas inside brackets do not part them, and Metadata takes the rest."""
    head, metadata, rest = text.partition(", Metadata: ")
    if metadata:
        yield "Metadata", rest
    start = depth = 0
    for at, letter in enumerate(f"{head}, "):
        depth += {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(letter, 0)
        if letter == "," and depth <= 0:
            key, colon, value = head[start:at].partition(": ")
            if colon:
                yield key.strip(), value.strip()
            start = at + 1


def _ports(text: str) -> Iterator[Port]:
    """`[ { Name: x, Dimensions: [1,3], ..., Datatype: Half, Format: (NHWC) Channel major }, ...]`."""
    for inner in re.findall(r"\{ (.*?) ?\}", text):
        fields = dict(_fields(inner))
        shape = re.findall(r"-?\d+", fields.get("Dimensions", ""))
        yield Port(
            fields.get("Name", ""),
            tuple(int(d) for d in shape),
            fields.get("Datatype", ""),
            fields.get("Format", ""),
        )


def _from_json(layer: Any) -> EngineLayer:
    """One layer of the inspector; without detailed verbosity it is its name only."""
    if isinstance(layer, str):
        return EngineLayer(layer, "", (), (), ())
    return EngineLayer(
        str(layer.get("Name", "")),
        str(layer.get("LayerType", "")),
        nodes_of(str(layer.get("Metadata", ""))),
        tuple(_port(p) for p in layer.get("Inputs", ())),
        tuple(_port(p) for p in layer.get("Outputs", ())),
        tuple(_port(p) for p in layer.get("Constants", ())),
        str(layer.get("TacticName", "")),
    )


def _port(port: dict[str, Any]) -> Port:
    shape = tuple(int(d) for d in port.get("Dimensions", ()))
    form = str(port.get("Format", port.get("Format/Datatype", "")))
    return Port(str(port.get("Name", "")), shape, str(port.get("Datatype", "")), form)


def nodes_of(metadata: str) -> tuple[str, ...]:
    """The ONNX nodes that a text of TensorRT's names, each once; one in a subgraph is `inner | outer`."""
    names = (n.partition(" | ")[0].strip() for n in _NODE.findall(metadata))
    return tuple(dict.fromkeys(n for n in names if n))
