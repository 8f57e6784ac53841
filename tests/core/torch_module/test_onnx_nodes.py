"""The ONNX backend node cases through torch, against onnxruntime without its optimizations.

What torch has no function for is refused, all nodes at once; nothing may be wrong.
"""

from __future__ import annotations

import collections
import warnings
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from effc.core.errors import EffcError, UnsupportedOpError  # noqa: E402
from effc.core.torch_module.module import TorchModule  # noqa: E402

FLOOR = 1000  # cases that agree; onnx 1.23 with onnxruntime 1.32: 1,304
RANDOM = ("RandomUniformLike", "RandomNormalLike", "Bernoulli")


def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        return [c for c in collect_testcases(None) if c.data_sets]


def reference(case: Any, feeds: dict[str, Any]) -> list[Any] | None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results: list[Any] = session.run(None, feeds)
    except Exception:  # onnxruntime raises a type of its own for every status code
        return None
    return results


def differs(got: Any, want: Any) -> str:
    if got.dtype == torch.bfloat16:
        got = got.float()
    ours, want = got.numpy(), np.asarray(want)
    if ours.shape != want.shape:
        return f"shape {ours.shape}, not {want.shape}"
    if want.dtype.kind != "f":
        wider = want.dtype in (np.uint16, np.uint32)  # torch has them in the next wider type
        same_type = wider or ours.dtype == want.dtype or want.dtype.kind == "V"
        return "" if same_type and np.array_equal(ours, want) else f"{ours} is not {want}"
    tolerance = 4e-3 if want.dtype.itemsize < 4 else 1e-5
    close = np.allclose(want, ours, rtol=tolerance, atol=tolerance / 5, equal_nan=True)
    same_type = ours.dtype == want.dtype
    return "" if close and same_type else f"{ours.dtype} values differ"


def test_every_node_case_agrees_or_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    counts: dict[str, int] = collections.Counter()
    wrong: dict[str, str] = {}
    for case in cases():
        names = [i.name for i in case.model.graph.input]
        feeds = dict(zip(names, case.data_sets[0][0], strict=False))
        arrays = all(isinstance(v, np.ndarray) and v.dtype != object for v in feeds.values())
        if not arrays or any(n.op_type in RANDOM for n in case.model.graph.node):
            counts["no tensors, or random"] += 1
            continue
        try:
            module = TorchModule.from_ir(ir.from_proto(case.model))
            with torch.no_grad():
                got = module({k: np.array(v) for k, v in feeds.items()})
        except UnsupportedOpError as error:
            assert all(p.node and p.op and p.reason and p.remedy for p in error.problems)
            counts["refused"] += 1
            continue
        except EffcError as error:
            assert error.hint, case.name
            counts["refused with its values"] += 1
            continue
        want = reference(case, feeds)
        if want is None:
            counts["not run by onnxruntime"] += 1
            continue
        found = [
            differs(got[o.name], w) for o, w in zip(case.model.graph.output, want, strict=True)
        ]
        counts["agree"] += not any(found)
        if any(found):
            wrong[case.name] = "; ".join(filter(None, found))
    with capsys.disabled():
        print(f"\nONNX node cases in torch: {dict(counts)}, wrong: {len(wrong)}")
    assert not wrong
    assert counts["agree"] >= FLOOR
