"""The ONNX backend node tests through IR -> MIL -> saved package -> interpreter.

Inputs that an operator needs at conversion (shapes, axes, pads, k, ...) become initializers, as --shape
and constant folding would make them. Cases that are refused have to be refused with a located reason;
those that fold to constants are counted apart; nothing may be wrong. Cases are put together in programs
of many, because coremltools' passes take a third of a second for each program.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

pytest.importorskip("coremltools")

from effc.backends.coreml.convert.program import Converted, convert  # noqa: E402
from effc.backends.coreml.interpret import Interpreter  # noqa: E402
from effc.backends.coreml.options import Options  # noqa: E402
from effc.backends.coreml.package import quiet, write_package  # noqa: E402
from effc.backends.coreml.runner import packed, unpacked  # noqa: E402
from effc.core.errors import EffcError, UnsupportedOpError  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.frontend.onnx import load  # noqa: E402
from effc.passes import CANONICALIZE, parse  # noqa: E402

FLOOR = 1040  # cases that compute something and are right
BATCH = 60

STATIC: dict[str, set[int]] = {
    "Reshape": {1}, "Expand": {1}, "Slice": {1, 2, 3, 4}, "Squeeze": {1}, "Unsqueeze": {1}, "Tile": {1},
    "Split": {1}, "Pad": {1, 2, 3}, "TopK": {1}, "OneHot": {1, 2}, "Range": {0, 1, 2}, "CumSum": {1},
    "Resize": {1, 2, 3}, "Trilu": {1}, "CenterCropPad": {1}, "ConstantOfShape": {0}, "Col2Im": {1, 2},
    "ReverseSequence": {1}, "AffineGrid": {1}, "LSTM": {1, 2, 3, 4, 7}, "GRU": {1, 2, 3, 4},
    "RNN": {1, 2, 3, 4}, "ConvTranspose": {1}, "QuantizeLinear": {1, 2}, "DequantizeLinear": {1, 2},
    "Dropout": {1, 2}, "Clip": {1, 2}, "Upsample": {1}, "GroupNormalization": {1, 2},
    **{f"Reduce{n}": {1} for n in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum",
                                   "LogSumExp", "SumSquare")},
}  # fmt: skip


@dataclass
class Lowered:
    case: Any
    model: ir.Model
    feeds: dict[str, np.ndarray]
    converted: Converted


@dataclass
class Outcome:
    passed: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


def as_array(value: Any) -> np.ndarray | None:
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    array = None if value is None or isinstance(value, (list, tuple, dict)) else np.asarray(value)
    return array if array is not None and array.dtype != object else None


def bound(case: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The case's model with fixed shapes and static values, and the feeds of its other inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    arrays = [as_array(v) for v in case.data_sets[0][0]]
    if any(a is None for a in arrays) or any(as_array(v) is None for v in case.data_sets[0][1]):
        raise EffcError("an input or output is a sequence, an optional, a map or a string")
    fed = dict(zip([i.name for i in model.graph.input], arrays, strict=False))
    static = {
        name
        for node in model.graph.node
        for k, name in enumerate(node.input)
        if k in STATIC.get(node.op_type, ())
    }
    inputs = list(model.graph.input)
    del model.graph.input[:]
    for value in inputs:
        array = fed[value.name]
        assert array is not None
        if value.name in static:
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            del fed[value.name]
            continue
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.SetInParent()
        for extent in array.shape:
            value.type.tensor_type.shape.dim.add().dim_value = extent
        model.graph.input.append(value)
    return model, fed


def lowered(case: Any, folder: Path) -> Lowered:
    proto, feeds = bound(case)
    path = folder / f"{case.name}.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load(path, allow_domains=("ai.onnx.ml", "ai.onnx.preview"))
    parse(f"{CANONICALIZE},decompose-attention,{CANONICALIZE}").run(model, PassContext())
    converted = convert(model, 17, case.name)  # refuses before anything is put together
    return Lowered(case, model, feeds, converted)


def together(items: list[Lowered]) -> ir.Model:
    """One model of all of them, their values renamed."""
    whole = ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="cases")
    for i, item in enumerate(items):
        graph = item.model.graph
        for value in list(graph.initializers.values()):
            graph.initializers.pop(value.name)
            value.name = f"c{i}_{value.name}"
            whole.register_initializer(value)
        outputs = list(graph.outputs)
        names = {id(v): v.name for v in (*graph.inputs, *outputs)}
        nodes = list(graph)
        for value in (*graph.inputs, *(v for n in nodes for v in n.outputs)):
            value.name = f"c{i}_{names.get(id(value), value.name)}" if value.name else value.name
        inputs = list(graph.inputs)
        graph.outputs.clear()
        graph.inputs.clear()
        graph.remove(nodes)
        whole.inputs.extend(inputs)
        whole.extend(nodes)
        whole.outputs.extend(outputs)
    return ir.Model(whole, ir_version=11)


def run(items: list[Lowered], folder: Path) -> list[dict[str, np.ndarray]]:
    converted = convert(together(items), 17, "cases")
    package = folder / f"{items[0].case.name}.mlpackage"
    write_package(converted, Options("iOS17", 17), package, {})
    feeds = {}
    for port in converted.inputs:
        number, _, name = port.name.partition("_")
        feeds[port.mil] = packed(port, items[int(number[1:])].feeds[name])
    found = Interpreter(package).predict(feeds)
    results: list[dict[str, np.ndarray]] = [{} for _ in items]
    for port in converted.outputs:
        number, _, name = port.name.partition("_")
        results[int(number[1:])][name] = unpacked(port, found[port.mil])
    return results


def difference(case: Any, got: dict[str, np.ndarray]) -> str:
    """What is wrong, or nothing."""
    for info, value in zip(case.model.graph.output, case.data_sets[0][1], strict=True):
        want, y = as_array(value), got[info.name]
        assert want is not None
        if y.dtype != want.dtype or y.shape != want.shape:
            return f"{y.dtype}{list(y.shape)} instead of {want.dtype}{list(want.shape)}"
        coarse = 2e-3 if want.dtype == np.float16 else 0.0
        if want.dtype.kind in "iu":
            tolerance = 1 if "linear" in case.name else 0  # rounding of a quantized value
            if not np.all(np.abs(y.astype(object) - want.astype(object)) <= tolerance):
                return f"{y.reshape(-1)[:5]} instead of {want.reshape(-1)[:5]}"
        elif not np.allclose(
            y.astype(float), want.astype(float), rtol=max(case.rtol, coarse),
            atol=max(case.atol, 1e-6), equal_nan=True,
        ):  # fmt: skip
            return f"{y.reshape(-1)[:5]} instead of {want.reshape(-1)[:5]}"
    return ""


def computes(item: Lowered) -> bool:
    """Whether the case does more than copy, and reads what is fed: else nothing is proven."""
    ops = {
        op.op_type
        for op in item.converted.program.functions["main"].operations
        if op.op_type not in ("const", "identity", "cast", "squeeze", "expand_dims")
    }
    return bool(ops) and bool(item.converted.inputs)


def conform(cases: list[Any], folder: Path) -> Outcome:
    outcome, items = Outcome(), []
    for case in cases:
        try:
            with quiet():
                items.append(lowered(case, folder))
        except UnsupportedOpError as error:
            assert all(p.reason and p.remedy or p.op in ("input", "output") for p in error.problems)
            problem = error.problems[0]
            outcome.refused[case.name] = f"{problem.op}: {problem.reason}"
        except EffcError as error:
            outcome.refused[case.name] = str(error)
    for begin in range(0, len(items), BATCH):
        group = items[begin : begin + BATCH]
        proven = [computes(item) for item in group]
        for item, real, got in zip(group, proven, run(group, folder), strict=True):
            wrong = difference(item.case, got)
            if wrong:
                outcome.wrong[item.case.name] = wrong
            elif real:
                outcome.passed.append(item.case.name)
            else:
                outcome.folded.append(item.case.name)
    return outcome


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return list(load_model_tests(kind="node"))


def report(outcome: Outcome) -> Iterator[str]:
    yield (
        f"{len(outcome.passed)} node cases pass, {len(outcome.folded)} are right but only constants or "
        f"copies, {len(outcome.refused)} are refused, {len(outcome.wrong)} are wrong"
    )
    for reason, count in Counter(outcome.refused.values()).most_common():
        yield f"{count:5d}  {reason}"


@pytest.mark.slow
def test_node_cases(cases: list[Any], tmp_path: Path, capsys: Any) -> None:
    """Every eighth case; all of them (two minutes) with EFFC_EVERY_NODE_CASE=1."""
    every = bool(os.environ.get("EFFC_EVERY_NODE_CASE"))
    outcome = conform(cases if every else cases[::8], tmp_path)
    with capsys.disabled():
        print("\n" + "\n".join(report(outcome)))
    assert not outcome.wrong
    assert len(outcome.passed) >= (FLOOR if every else FLOOR // 8)
