"""quantize: where Q/DQ go in each scheme, what they hold, and what the model still computes."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from effc import passes, zoo
from effc.core.check_quantization import check_quantization
from effc.core.data import SyntheticSamples, open_samples
from effc.core.errors import ConfigError, PassError
from effc.core.ir import const, is_op
from effc.core.measure import Array, Feeds
from effc.core.passinfra import PassContext
from effc.core.preprocess import Preprocess
from effc.core.quant import quant_params
from effc.core.quant_units import FLOAT_WEIGHTS
from effc.core.reference import record_goldens
from effc.core.schemes import SCHEMES, scheme
from effc.core.shapes import fix_shapes, infer_shapes
from effc.core.specs import static_specs
from effc.core.verify import compare_outputs
from effc.passes.quantize.quantize import CALIBRATION, Quantize
from effc.passes.quantize.ranges import CALIBRATORS

RNG = np.random.default_rng(0)


class Fixed:
    """Feeds in memory, as samples of the user."""

    synthetic = False
    fingerprint = "fixed"

    def __init__(self, feeds: list[Feeds]) -> None:
        self.feeds = feeds

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)


def build(body: str, shape: str = "1,4,8,8", **arrays: Array) -> ir.Model:
    """A graph x -> y; names that `arrays` lacks and that start with w or b are random weights."""
    text = (
        f'<ir_version: 10, opset_import: ["": 23]> g (float[{shape}] x) => (float y) {{ {body} }}'
    )
    proto = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = ir.from_proto(proto)
    for i, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{i}"
    infer_shapes(model)
    return model


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def quantized(model: ir.Model, samples: object = None, **options: object) -> ir.Model:
    found = model.clone()
    Quantize(**options).run(found, PassContext(samples=samples))  # type: ignore[arg-type]
    onnx.checker.check_model(ir.to_proto(found), full_check=True)
    return found


def pairs(model: ir.Model) -> set[str]:
    """The tensors that Q/DQ pairs stand behind, by their maker's name, and "x" for the input."""
    found = set()
    for node in model.graph:
        if is_op(node, "QuantizeLinear") and node.inputs[0] is not None:
            made = node.inputs[0].producer()
            found.add(str(node.inputs[0].name) if made is None else str(made.name))
    return found


def sqnr(model: ir.Model, other: ir.Model, feeds: list[Feeds]) -> float:
    errors = compare_outputs(record_goldens(model, feeds), record_goldens(other, feeds))
    return min(e.sqnr_db if e.sqnr_db is not None else 999.0 for e in errors)


BLOCK = {"wa": normal(4, 4, 3, 3), "wb": normal(4, 4, 3, 3), "wc": normal(3, 4, 1, 1)}
BLOCK |= {"ba": normal(4), "bb": normal(4), "bc": normal(3)}
RESIDUAL = """
    a = Conv <pads=[1,1,1,1]> (x, wa, ba)  ra = Relu (a)
    b = Conv <pads=[1,1,1,1]> (ra, wb, bb) s = Add (b, ra)  r = Relu (s)
    p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
    y = Conv (p, wc, bc)
"""
NAMES = {
    "a": "Conv_0",
    "ra": "Relu_1",
    "b": "Conv_2",
    "r": "Relu_4",
    "p": "MaxPool_5",
    "y": "Conv_6",
}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # b goes into the Add's sums as it is; max-pooling stands between two pairs of one scale
        ("vnni", "x ra r p"),
        ("ort", "x ra b r p y"),
        ("tensorrt", "x ra p"),
        ("coreml", "x ra b r p"),
        ("integer", "x ra b r p y"),
    ],
)
def test_a_residual_block(name: str, wanted: str) -> None:
    model = build(RESIDUAL, **BLOCK)
    found = quantized(model, scheme=name)
    assert pairs(found) == {NAMES.get(w, w) for w in wanted.split()}
    weights = [
        n for n in found.graph if is_op(n, "DequantizeLinear") and const(n.inputs[0]) is not None
    ]
    biased = scheme(name).bias == "int32"
    assert len(weights) == (6 if biased else 3)
    if "p" in wanted.split() and "r" in wanted.split():
        p, r = (next(n for n in found.graph if n.name == NAMES[v]) for v in ("p", "r"))
        both = [quant_params(next(iter(n.outputs[0].uses())).node) for n in (r, p)]
        assert both[0] is not None and both[1] is not None and both[0].same(both[1])


def test_weights_by_channel_and_biases_in_the_sums_scale() -> None:
    model = build(RESIDUAL, **BLOCK)
    found = quantized(model)
    for node in found.graph:
        if node.op_type != "Conv":
            continue
        px, pw, pb = (quant_params(v.producer()) for v in node.inputs if v is not None)
        assert px is not None and pw is not None and pb is not None
        assert px.per_tensor and px.dtype == ir.DataType.UINT8
        assert pw.symmetric and pw.axis == 0 and pw.scale.shape == pb.scale.shape
        np.testing.assert_array_equal(pb.scale, px.scale * pw.scale)
        name = str(node.outputs[0].name)
        dq = node.inputs[1].producer()  # type: ignore[union-attr]
        real = {"a": "wa", "b": "wb"}.get(name.partition("/")[0], "wc")
        stored = const(dq.inputs[0])  # type: ignore[union-attr]
        assert (
            stored is not None
            and stored.dtype == np.int8
            and np.abs(stored.astype(int)).max() == 127
        )
        np.testing.assert_allclose(
            pw.dequantize(stored), BLOCK[real], atol=float(pw.scale.max()) / 2 * 1.001
        )
    kept = found.meta[FLOAT_WEIGHTS]
    assert sorted(kept) == sorted(f"{n}/dequantized" for n in BLOCK)
    np.testing.assert_array_equal(kept["wa/dequantized"], BLOCK["wa"])


def test_a_later_branch_is_added_in_the_sums() -> None:
    model = build(
        """a = Conv (x, wa)  b = Conv (x, wb)  s = Add (a, b)  r = Relu (s)  y = Conv (r, wc)""",
        wa=normal(4, 4, 1, 1), wb=normal(4, 4, 1, 1), wc=normal(3, 4, 1, 1),
    )  # fmt: skip
    assert pairs(quantized(model)) == {"x", "Conv_0", "Relu_3"}
    assert pairs(quantized(model, scheme="tensorrt")) == {"x", "Conv_0", "Relu_3"}
    assert pairs(quantized(model, scheme="ort")) == {"x", "Conv_0", "Conv_1", "Relu_3", "Conv_4"}


def test_a_function_of_one_tensor_is_one_table() -> None:
    model = build(
        "a = Conv (x, wa)  g = Sigmoid (a)  m = Mul (a, g)  y = Conv (m, wb)",
        wa=normal(4, 4, 1, 1), wb=normal(3, 4, 1, 1),
    )  # fmt: skip
    assert pairs(quantized(model)) == {"x", "Conv_0", "Mul_2"}
    assert pairs(quantized(model, scheme="ort")) == {"x", "Conv_0", "Sigmoid_1", "Mul_2", "Conv_3"}
    assert pairs(quantized(model, scheme="tensorrt")) == {"x", "Mul_2"}


def test_what_no_integer_wants_stays_real() -> None:
    model = build(
        "a = Conv (x, wa)  t = Transpose <perm=[0,2,3,1]> (a)  s = Softmax (t)  y = Mul (s, s)",
        wa=normal(4, 4, 1, 1),
    )
    assert pairs(quantized(model)) == {"x"}


def test_a_bias_behind_a_matmul_is_no_sum_of_two_tensors() -> None:
    model = build(
        "a = MatMul (x, wa)  b = Add (a, ba)  g = Gelu (b)  y = MatMul (g, wb)", "2,5,4",
        wa=normal(4, 6), ba=normal(6), wb=normal(6, 3),
    )  # fmt: skip
    assert pairs(quantized(model)) == {"x", "Add_1", "Gelu_2"}
    assert sqnr(model, quantized(model), [{"x": normal(2, 5, 4)}]) > 20


def test_a_concat_of_unlike_ranges_requantizes() -> None:
    text = """a = Conv (x, wa)  ra = Relu (a)  g = Sigmoid (ra)  h = Mul (g, g)
              c = Concat <axis=1> (ra, g)  d = Conv (c, wb)  e = Conv (h, wc)  y = Add (d, e)"""
    arrays = {"wa": 100 * normal(4, 4, 1, 1), "wb": normal(3, 8, 1, 1), "wc": normal(3, 4, 1, 1)}
    model = build(text, **arrays)
    found = quantized(model)
    concat = next(n for n in found.graph if n.op_type == "Concat")
    given = [quant_params(v.producer()) for v in concat.inputs if v is not None]
    assert given[0] is not None and given[1] is not None and given[0].same(given[1])
    mul = next(n for n in found.graph if n.op_type == "Mul" and n.name == "Mul_3")
    own = quant_params(mul.inputs[0].producer())  # type: ignore[union-attr]
    assert own is not None and own.scale < given[0].scale / 10
    # of like ranges they share one scale, without a second pair
    alike = build(text.replace("Sigmoid", "Abs"), **arrays)
    assert len([n for n in quantized(alike).graph if is_op(n, "QuantizeLinear")]) == len(
        pairs(quantized(alike))
    )


def test_parts_of_a_split_share_its_scale() -> None:
    model = build(
        "p, q = Split <axis=1, num_outputs=2> (x)  c = Concat <axis=1> (q, p)  y = Conv (c, wa)",
        wa=normal(3, 4, 1, 1),
    )
    found = quantized(model, scheme="integer")
    assert not check_quantization(found.graph, scheme("integer"))
    assert {"x", "Split_0", "Concat_1", "Conv_2"} == pairs(found)


@pytest.mark.parametrize("name", SCHEMES)
def test_quantized_twice_is_quantized_once(name: str) -> None:
    model = zoo_model("tiny-resnet")[0].clone()
    first = Quantize(scheme=name).run(model, PassContext())
    assert first > 0 and Quantize(scheme=name).run(model, PassContext()) == 0


def test_kept_nodes_stay_real() -> None:
    model = build(RESIDUAL, **BLOCK)
    found = quantized(model, keep_float=("Conv_6",))
    last = next(n for n in found.graph if n.name == "Conv_6")
    assert const(last.inputs[1]) is not None
    assert pairs(found) == {"x", "Relu_1"}
    with pytest.raises(ConfigError, match="nothing_like_it"):
        quantized(model, keep_float=("nothing_like_it",))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weight_bits(bits: int) -> None:
    model = build(RESIDUAL, **BLOCK)
    found = quantized(model, weight_bits=bits)
    for node in found.graph:
        stored = const(node.inputs[0]) if is_op(node, "DequantizeLinear") else None
        if stored is not None and stored.dtype != np.int32:
            top = 2 ** (bits - 1) - 1
            assert np.abs(stored.astype(int)).max() == top
            assert stored.dtype == (np.int8 if bits == 8 else ir.DataType.INT4.numpy())
    record_goldens(found, [{"x": normal(1, 4, 8, 8)}])


def test_clipped_weights_err_less() -> None:
    w = normal(8, 16, 1, 1) ** 3
    model = build("y = Conv (x, w)", "1,16,4,4", w=w)
    errors = {}
    for clip in (False, True):
        found = quantized(model, weight_bits=4, weight_clip=clip)
        dq = next(n for n in found.graph if n.op_type == "Conv").inputs[1].producer()  # type: ignore[union-attr]
        params, stored = quant_params(dq), const(dq.inputs[0])  # type: ignore[union-attr]
        assert params is not None and stored is not None
        errors[clip] = float(((params.dequantize(stored) - w) ** 2).sum())
    assert errors[True] < 0.95 * errors[False]


def test_dead_channels_and_huge_biases() -> None:
    w = normal(4, 4, 1, 1)
    w[1] = 0
    w[2] *= 1e-12
    b = np.array([1, 2, 3e4, 0], np.float32)
    model = build("a = Conv (x, w, b)  z = Sub (a, a)  m = Mul (z, z)  c = Add (a, m)  y = Conv (c, v)",
                  w=w, b=b, v=normal(3, 4, 1, 1))  # fmt: skip
    feeds = [{"x": normal(1, 4, 8, 8)} for _ in range(3)]
    found = quantized(model, Fixed(feeds))
    (answer,) = record_goldens(found, feeds[:1])[0].values()
    assert np.isfinite(answer).all()
    assert sqnr(model, found, feeds) > 30
    bias = next(n for n in found.graph if str(n.name) == "b/dequantized")
    stored = const(bias.inputs[0])
    assert stored is not None and np.abs(stored.astype(np.int64)).max() <= 1.001 * (1 << 29)


def test_a_model_of_zeros_survives() -> None:
    model = build(
        "a = Conv (x, w)  y = Conv (a, v)",
        w=np.zeros((4, 4, 1, 1), np.float32),
        v=normal(3, 4, 1, 1),
    )
    (answer,) = record_goldens(quantized(model), [{"x": normal(1, 4, 8, 8)}])[0].values()
    assert not answer.any()


def test_known_bounds_hold_where_samples_go_beyond_them() -> None:
    """A moving average of a Relu6 can't leave 0..6, and percentiles of a Sigmoid stay in 0..1."""
    six = np.array(6, np.float32)
    model = build(
        "a = Conv (x, wa)  c = Clip (a, zero, six)  y = Conv (c, wb)",
        wa=normal(4, 4, 1, 1), wb=normal(3, 4, 1, 1), zero=np.array(0, np.float32), six=six,
    )  # fmt: skip
    feeds = [{"x": 20 * normal(1, 4, 8, 8)} for _ in range(2)]
    q = next(n for n in quantized(model, Fixed(feeds)).graph if str(n.name).startswith("c/quant"))
    params = quant_params(q)
    assert params is not None and params.zero_point == 0
    assert params.scale == pytest.approx(6 / 255)


@pytest.mark.parametrize("how", ["unit", "raw", "mean=83,std=1.7102668,scale=1", "inception"])
def test_pixels_stay_on_their_grid(tmp_path: Path, how: str) -> None:
    """Whatever few pixels calibration saw: x/255, x, (x - 83)/1.7 are exact; x/127.5 - 1 can't be."""
    model = build("y = Conv (x, w)", "1,3,8,8", w=normal(4, 3, 1, 1))
    np.save(tmp_path / "x.npy", RNG.integers(90, 110, (3, 8, 8, 3), np.uint8))
    preprocess = Preprocess.parse(how)
    samples = open_samples(
        Path(f"{tmp_path / 'x.npy'}[:2]"), static_specs(model.graph.inputs), preprocess
    )
    found = quantized(model, samples)
    params = quant_params(next(n for n in found.graph if n.op_type == "QuantizeLinear"))
    assert params is not None
    levels = preprocess.reals(np.arange(256))
    error = np.abs(params.dequantize(params.quantize(levels)) - levels)
    step = (levels.max() - levels.min()) / 255
    assert error.max() < (1e-4 * step if how != "inception" else 1.02 * step)
    assert np.sqrt((error**2).mean()) < 0.31 * step


def test_a_tensor_that_is_not_finite_is_named() -> None:
    model = build(
        "a = Conv (x, w)  l = Log (a)  y = Conv (l, v)", w=normal(4, 4, 1, 1), v=normal(3, 4, 1, 1)
    )
    with pytest.raises(PassError, match="'l'"):
        quantized(model)


def test_the_model_says_what_it_was_calibrated_on() -> None:
    model = build(RESIDUAL, **BLOCK)
    made_up = json.loads(quantized(model).metadata_props[CALIBRATION])
    given = json.loads(
        quantized(model, Fixed([{"x": normal(1, 4, 8, 8)}])).metadata_props[CALIBRATION]
    )
    assert made_up["synthetic"] and not given["synthetic"]
    assert given["samples"] == 1 and given["fingerprint"] == "fixed"


@pytest.mark.parametrize(
    "option", [{"scheme": "gpu"}, {"weight_bits": 3}, {"percentile": 30.0}, {"calibrator": "kl"}]
)
def test_unknown_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        quantized(build(RESIDUAL, **BLOCK), **option)


@cache
def zoo_model(name: str) -> tuple[ir.Model, list[Feeds]]:
    model = zoo.build(name)
    if name == "tiny-dynamic":
        fix_shapes(model, {"image": (2, 3, 16, 16)})
    passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}").run(model, PassContext())
    samples = SyntheticSamples(static_specs(model.graph.inputs), count=6, seed=5)
    return model, list(samples)


@pytest.mark.parametrize("name", zoo.MODELS.table())
def test_every_calibrator_and_scheme_on_the_zoo(name: str) -> None:
    model, feeds = zoo_model(name)
    chosen = [(c, "vnni") for c in CALIBRATORS] + [("min-max", s) for s in SCHEMES if s != "vnni"]
    for calibrator, target in chosen:
        found = quantized(model, Fixed(feeds[:3]), calibrator=calibrator, scheme=target)
        assert any(n.op_type == "QuantizeLinear" for n in found.graph)
        assert not check_quantization(found.graph, scheme(target))
        # three samples of noise: entropy and averages may clip what a fourth one holds
        least = 17 if calibrator == "min-max" and target != "integer" else 8
        assert sqnr(model, found, feeds[3:]) > least, (calibrator, target)


def test_calibration_is_deterministic() -> None:
    model, feeds = zoo_model("tiny-mobilenetv2")
    for calibrator in CALIBRATORS:
        one, two = (quantized(model, Fixed(feeds), calibrator=calibrator) for _ in range(2))
        assert ir.to_proto(one).SerializeToString(deterministic=True) == ir.to_proto(
            two
        ).SerializeToString(deterministic=True)


class Stream:
    """Samples that exist one at a time."""

    synthetic = False
    fingerprint = "stream"

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.count = count
        self.shape = shape

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Feeds]:
        rng = np.random.default_rng(0)
        return (
            {"x": rng.standard_normal(self.shape).astype(np.float32)} for _ in range(self.count)
        )


def test_memory_does_not_grow_with_the_samples() -> None:
    """A sample is 0.8 MB with its tensors: kept, 290 more of them would be 230 MB."""
    model = build(
        "a = Conv <pads=[1,1,1,1]> (x, wa)  r = Relu (a)  y = Conv (r, wb)", "1,4,160,160",
        wa=normal(4, 4, 3, 3), wb=normal(2, 4, 1, 1),
    )  # fmt: skip
    peaks = []
    for count in (10, 300):
        quantized(model, Stream(count, (1, 4, 160, 160)), calibrator="entropy")
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[1] - peaks[0] < 50_000  # KiB
