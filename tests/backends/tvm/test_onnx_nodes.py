"""The ONNX backend node tests through the TVM backend: canonicalize, lower, compile, run, compare.

Inputs that a case feeds but that an operator needs at compile time (shapes, axes, pads, k, ...) are
turned into initializers with the fed value, as `--shape` and constant folding would make them. Cases
that fold to constants or are mere copies are checked too, but counted apart. Everything that is not run
must be refused with a located reason; nothing may be wrong.
"""

from __future__ import annotations

import ctypes
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("tvm")

from effc.backends.tvm import tir  # noqa: E402
from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.ops.contract import KERNELS, RULES  # noqa: E402
from effc.backends.tvm.pipeline import cpu  # noqa: E402
from effc.backends.tvm.program import Program  # noqa: E402
from effc.core.errors import EffcError, UnsupportedOpError  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.frontend.onnx import load  # noqa: E402
from effc.passes import CANONICALIZE, parse  # noqa: E402

FLOOR = 1290  # cases with kernels of their own that pass
BATCH = 50  # cases compiled together

# inputs that the caller would fix with the shape: known to the operator's rule as a value, not as data
ALSO_STATIC = {"Clip": {1, 2}, "Range": {0, 1, 2}, "Pad": {1, 2, 3}, "Einsum": set[int]()}


@dataclass
class Lowered:
    case: Any
    program: Program
    feeds: dict[str, np.ndarray]
    kernels: dict[str, str]  # the program's name -> the name in the library


def static_inputs(model: onnx.ModelProto) -> set[str]:
    """Values that some node needs at compile time."""
    found = set()
    for node in model.graph.node:
        if node.op_type in ("Shape", "Size", "EyeLike", "CastLike"):
            continue  # they look at the type of their input only
        entry = RULES.get(node.op_type) or KERNELS.get(node.op_type)
        positions = set(entry.static if entry else ()) | ALSO_STATIC.get(node.op_type, set())
        found |= {name for k, name in enumerate(node.input) if k in positions}
    return found


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
    static = static_inputs(model)
    inputs = list(model.graph.input)
    del model.graph.input[:]
    for value in inputs:
        array = fed[value.name]
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
    model, feeds = bound(case)
    path = folder / f"{case.name}.onnx"
    path.write_bytes(model.SerializeToString())
    graph = load(path, allow_domains=("ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training"))
    parse(f"{CANONICALIZE},{cpu()}").run(graph, PassContext())
    program = lower(graph, host_isa())
    return Lowered(case, program, feeds, {})


def compiled(group: list[Lowered], folder: Path) -> ctypes.CDLL:
    """All kernels of a batch in one library, under names of their own."""
    funcs = []
    for i, item in enumerate(group):
        for name, kernel in item.program.kernels.items():
            unique = f"c{i}_{name}"
            item.kernels[name] = unique
            if kernel.tasks:
                funcs.append(kernel.func.with_attr("global_symbol", unique))
    target = folder / f"batch_{group[0].case.name}"  # a mapped library must not be overwritten
    if not funcs:
        return ctypes.CDLL(None)
    tir.llvm_module(funcs, host_isa().target()).write_to_file(f"{target}.o")
    subprocess.run(["gcc", "-shared", "-o", f"{target}.so", f"{target}.o", "-lm"], check=True)
    return ctypes.CDLL(f"{target}.so")


def run(item: Lowered, library: ctypes.CDLL) -> list[np.ndarray]:
    """The program's calls one after the other, the arena laid out as it was planned."""
    program = item.program
    arena = np.full(program.arena_bytes + 64, 0x7F, np.uint8)  # stale bytes are no zeros
    base = -arena.ctypes.data % 64
    kept: dict[str, np.ndarray] = {n: np.ascontiguousarray(a) for n, a in program.constants.items()}
    public = {program.public.get(n, n): n for n in program.inputs}
    for name, array in item.feeds.items():
        if name in public:
            kept[public[name]] = np.ascontiguousarray(array)
    for root in map(program.root, program.outputs):
        if root not in kept:
            kept[root] = np.zeros(max(1, program.tensors[root].bytes), np.uint8)
    scratch = np.zeros(program.scratch_bytes + 64, np.uint8)

    def address(name: str) -> int:
        root, offset = program.place(name)
        if root in kept:
            return int(kept[root].ctypes.data) + offset
        return int(arena.ctypes.data) + base + program.offsets[root] + offset

    for call in program.calls:
        kernel = program.kernels[call.kernel]
        if not kernel.tasks:
            continue
        pointers = [ctypes.c_void_p(address(a)) for a in call.args]
        if kernel.scratch_bytes:
            aligned = scratch.ctypes.data + -scratch.ctypes.data % 64
            pointers.insert(0, ctypes.c_void_p(aligned))
        library[item.kernels[call.kernel]](*pointers, ctypes.c_int(0), ctypes.c_int(kernel.tasks))
    results = []
    for name in program.outputs:
        tensor = program.tensors[name]
        raw = ctypes.string_at(address(name), tensor.bytes)
        flat = np.frombuffer(raw, np.dtype(tensor.dtype))
        results.append(tensor.layout.unpack(flat, tensor.shape))
    return results


def difference(case: Any, got: list[np.ndarray]) -> str:
    """What is wrong, or nothing."""
    for y, value in zip(got, case.data_sets[0][1], strict=True):
        want = as_array(value)
        assert want is not None
        if y.dtype != want.dtype or y.shape != want.shape:
            return f"{y.dtype}{list(y.shape)} instead of {want.dtype}{list(want.shape)}"
        coarse = {"float16": 2e-3, "bfloat16": 1e-2}.get(str(want.dtype), 0.0)
        wide = "complex128" if np.iscomplexobj(want) else "float64"
        if want.dtype.kind in "iu":
            tolerance = 1 if "linear" in case.name else 0  # rounding of a quantized value
            if not np.all(np.abs(y.astype(object) - want.astype(object)) <= tolerance):
                return f"{y.reshape(-1)[:5]} instead of {want.reshape(-1)[:5]}"
        elif not np.allclose(
            y.astype(wide),
            want.astype(wide),
            rtol=max(case.rtol, coarse),
            atol=max(case.atol, 1e-6),
            equal_nan=True,
        ):
            return f"{y.reshape(-1)[:5]} instead of {want.reshape(-1)[:5]}"
    return ""


def computes(program: Program) -> bool:
    """Whether some call does more than copy, and what was fed is read: else nothing is proven."""
    reads = {
        program.root(name)
        for call in program.calls
        for name in call.args[program.kernels[call.kernel].outputs :]
    }
    copies = all(call.template in ("copy", "layout") for call in program.calls)
    return not copies and not reads.isdisjoint(program.inputs)


@dataclass
class Outcome:
    passed: list[str]
    folded: list[str]
    refused: dict[str, str]
    wrong: dict[str, str]


def conform(cases: list[Any], folder: Path) -> Outcome:
    outcome = Outcome([], [], {}, {})
    items: list[Lowered] = []
    for case in cases:
        try:
            items.append(lowered(case, folder))
        except UnsupportedOpError as error:
            assert all(p.node and p.reason and p.remedy for p in error.problems), case.name
            problem = error.problems[0]
            outcome.refused[case.name] = f"{problem.op}: {problem.reason}"
        except EffcError as error:
            outcome.refused[case.name] = str(error)
    for begin in range(0, len(items), BATCH):
        group = items[begin : begin + BATCH]
        library = compiled(group, folder)
        for item in group:
            wrong = difference(item.case, run(item, library))
            if wrong:
                outcome.wrong[item.case.name] = wrong
            elif computes(item.program):
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


FAST = (
    "test_add_bcast test_argmax_keepdims_example test_batchnorm_example test_cast_FLOAT_to_FLOAT16 "
    "test_clip_example test_concat_3d_axis_1 test_cos_example test_cumsum_2d_axis_1 "
    "test_depthtospace_example test_dequantizelinear_axis test_div_uint8 "
    "test_dynamicquantizelinear test_elu test_erf test_expand_dim_changed test_eyelike_with_dtype "
    "test_flatten_axis2 test_gather_1 test_gather_elements_1 test_gathernd_example_int32 "
    "test_gelu_tanh_1 test_globalaveragepool test_group_normalization_example test_gridsample "
    "test_hardswish test_instancenorm_example test_isinf test_layer_normalization_4d_axis1 "
    "test_leakyrelu test_less_bcast test_log test_logsoftmax_axis_1 test_lrn test_max_example "
    "test_mish test_mod_mixed_sign_int32 test_mvn test_not_3d test_onehot_with_axis test_or4d "
    "test_pow_bcast_array test_prelu_broadcast test_quantizelinear_axis "
    "test_reduce_log_sum_exp_negative_axes_keepdims_random test_reduce_mean_keepdims_random "
    "test_reduce_sum_default_axes_keepdims_random test_reflect_pad "
    "test_resize_upsample_scales_cubic test_resize_upsample_scales_nearest "
    "test_reversesequence_batch test_scatter_elements_with_axis test_sigmoid test_slice_neg_steps "
    "test_softmax_axis_1 test_split_variable_parts_2d_opset18 test_tanh test_tile "
    "test_top_k test_transpose_all_permutations_3 test_tril test_where_example test_xor3d"
).split()


def test_a_case_of_every_kind(cases: list[Any], tmp_path: Path) -> None:
    chosen = [c for c in cases if c.name in FAST]
    assert len(chosen) == len(FAST), set(FAST) - {c.name for c in chosen}
    outcome = conform(chosen, tmp_path)
    assert not outcome.wrong
    assert not outcome.refused


@pytest.mark.slow
def test_every_node_case(cases: list[Any], tmp_path: Path, capsys: Any) -> None:
    outcome = conform(cases, tmp_path)
    with capsys.disabled():
        print("\n" + "\n".join(report(outcome)))
    assert not outcome.wrong
    assert len(outcome.passed) >= FLOOR
