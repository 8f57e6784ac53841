"""Canonicalize and fuse keep the result of every ONNX backend node case that onnxruntime runs.

Each case runs as it is, and with every input but the first turned into an initializer, so that there is
something to fold. The reference is onnxruntime, without its optimizations, on the untouched model.
"""

from __future__ import annotations

import collections
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from effc import passes
from effc.core.passinfra import PassContext, Pipeline

# results that differ from run to run: only their types and shapes can be compared
RANDOM = {
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Multinomial", "Bernoulli"),
}
# onnx 1.23 has 1,884 cases, of which onnxruntime 1.31 runs 1,352; older ones have fewer
FEWEST_CASES = 1000


def _cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        return [c for c in collect_testcases(None) if c.data_sets]


def _run(model: bytes, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, feeds)
    return results


def _freeze(
    model: onnx.ModelProto, feeds: dict[str, Any]
) -> tuple[onnx.ModelProto, dict[str, Any]] | None:
    """All tensors but the first become initializers; None where there is nothing to freeze."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    frozen.ir_version = max(frozen.ir_version, 4)
    kept: list[onnx.ValueInfoProto] = []
    for info in frozen.graph.input:
        array = feeds.get(info.name)
        if kept and isinstance(array, np.ndarray) and info.type.HasField("tensor_type"):
            tensor = onnx.numpy_helper.from_array(array, info.name)
            if tensor.data_type == info.type.tensor_type.elem_type:
                frozen.graph.initializer.append(tensor)
                continue
        kept.append(info)
    if len(kept) == len(model.graph.input):
        return None
    names = {i.name for i in kept}
    del frozen.graph.input[:]
    frozen.graph.input.extend(kept)
    return frozen, {k: v for k, v in feeds.items() if k in names}


def _differs(want: Any, got: Any, random: bool) -> bool:
    if isinstance(want, list):
        return not isinstance(got, list) or len(want) != len(got) or any(
            _differs(w, g, random) for w, g in zip(want, got, strict=True)
        )  # fmt: skip
    if want is None or got is None:
        return want is not got
    want, got = np.asarray(want), np.asarray(got)
    if want.dtype != got.dtype or want.shape != got.shape:
        return True
    if random:
        return False
    if want.dtype.kind not in "fc":
        return not np.array_equal(want, got)
    # onnxruntime computes neighbouring half-precision nodes in float32, so one node less rounds less
    tolerance = 4e-3 if want.dtype.itemsize < 4 else 1e-5
    return not np.allclose(want, got, rtol=tolerance, atol=tolerance / 10, equal_nan=True)


def _check(
    canonicalize: Pipeline,
    fuse: Pipeline,
    model: onnx.ModelProto,
    feeds: dict[str, Any],
    counts: dict[str, int],
) -> str:
    try:
        want = _run(model.SerializeToString(), feeds)
    except Exception:  # onnxruntime raises a type of its own for every status code
        counts["not run by onnxruntime"] += 1
        return ""
    random = any(n.op_type in RANDOM for n in model.graph.node)
    try:
        rewritten = ir.from_proto(model)
        records = canonicalize.run(rewritten, PassContext())
        once = ir.to_proto(rewritten).SerializeToString()
        records += fuse.run(rewritten, PassContext())
        got = _run(ir.to_proto(rewritten).SerializeToString(), feeds)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    counts["kept"] += 1
    counts["rewritten"] += any(r.rewrites for r in records)
    if len(want) != len(got) or any(_differs(w, g, random) for w, g in zip(want, got, strict=True)):
        return "wrong result"
    again = canonicalize.run(ir.from_proto(onnx.ModelProto.FromString(once)), PassContext())
    changed = [r.id for r in again if r.rewrites]
    return f"not idempotent: {changed}" if changed else ""


@pytest.mark.parametrize("variant", ["as it is", "inputs frozen"])
def test_every_node_case_keeps_its_result(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipelines = passes.parse(passes.CANONICALIZE), passes.parse(passes.FUSE)
    counts: dict[str, int] = collections.Counter()
    wrong: dict[str, str] = {}
    for case in _cases():
        names = [i.name for i in case.model.graph.input]
        feeds = dict(zip(names, case.data_sets[0][0], strict=False))
        pair = (case.model, feeds) if variant == "as it is" else _freeze(case.model, feeds)
        if pair is None:
            continue
        counts["cases"] += 1
        reason = _check(*pipelines, *pair, counts)
        if reason:
            wrong[case.name] = reason
    with capsys.disabled():
        print(f"\nONNX node cases, {variant}: {dict(counts)}, wrong: {len(wrong)}")
    assert not wrong
    assert counts["kept"] >= FEWEST_CASES * (1 if variant == "as it is" else 0.6)
    assert counts["rewritten"] > 0.5 * counts["kept"]
