"""adaround: rounding learned is nearer to the float model than rounding to nearest, and stays rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from effc.core.errors import ConfigError  # noqa: E402
from effc.core.ir import const, is_op  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.core.quant import make_params, quant_params  # noqa: E402
from effc.core.quant_units import FLOAT_WEIGHTS  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner  # noqa: E402
from effc.core.torch_module.rounding import LearnedRounding  # noqa: E402
from effc.passes.quantize.adaround import Adaround  # noqa: E402
from effc.passes.quantize.learned import free_scales, write_learned  # noqa: E402
from effc.passes.quantize.quantize import Quantize  # noqa: E402
from effc.passes.quantize.units import layers_of, units_of  # noqa: E402

# a stem, a residual block, a depthwise layer, a classifier
NET = """net (float[1,3,12,12] x, float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2,
        float[8,8,1,1] w3, float[8] b3, float[8,1,3,3] w4, float[8] b4, float[5,8] w5, float[5] b5)
        => (float[1,5] y) <int64[2] shape = {1, 8}> {
    c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)
    r2 = Relu(c2)
    c3 = Conv(r2, w3, b3)
    a = Add(c3, r1)
    r3 = Relu(a)
    c4 = Conv <group = 8, strides = [2,2]> (r3, w4, b4)
    r4 = Relu(c4)
    g = GlobalAveragePool(r4)
    f = Reshape(g, shape)
    y = Gemm <transB = 1> (f, w5, b5)
}"""
FAST = Adaround(iterations=120, samples=24)


class Arrays:
    """Smooth pictures: neighbouring elements are alike, as in photographs."""

    synthetic = False
    fingerprint = "arrays"

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((count, 1, 3, 15, 15))
        self.arrays = (
            sum(noise[..., i : i + 12, j : j + 12] for i in range(4) for j in range(4)) / 4
        )

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"x": a.astype(np.float32)} for a in self.arrays)


def network(text: str = NET) -> ir.Model:
    made = ir.from_proto(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    )
    rng = np.random.default_rng(1)
    for value in list(made.graph.inputs)[1:]:
        shape = [int(str(d)) for d in value.shape or ()]
        array = rng.standard_normal(shape) * (np.sqrt(2 / np.prod(shape[1:])) if shape[1:] else 0.2)
        made.graph.inputs.remove(value)
        value.const_value = ir.Tensor(array.astype(np.float32), name=value.name)
        made.graph.register_initializer(value)
    for node in made.graph:
        node.name = f"{node.op_type}_{node.outputs[0].name}"
    return made


def quantized(samples: Arrays, bits: int = 4, scheme: str = "vnni") -> ir.Model:
    made = network()
    Quantize(scheme=scheme, weight_bits=bits).run(made, PassContext(samples=samples))
    return made


def answers(model: ir.Model, samples: Arrays) -> Any:
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        return np.concatenate([runner.infer(f)["y"] for f in samples])


def error(model: ir.Model, samples: Arrays) -> float:
    want = answers(network(), samples)
    return float(((answers(model, samples) - want) ** 2).mean() / want.var())


@pytest.fixture(scope="module")
def samples() -> tuple[Arrays, Arrays]:
    return Arrays(24, 0), Arrays(16, 1)


@pytest.mark.parametrize("unit", ["layer", "block"])
def test_learned_rounding_is_nearer_on_pictures_it_has_not_seen(
    unit: str, samples: tuple[Arrays, Arrays]
) -> None:
    seen, unseen = samples
    made = quantized(seen)
    nearest = error(made, unseen)
    count = Adaround(unit=unit, iterations=120).run(made, PassContext(samples=seen))
    assert count == 5
    assert error(made, unseen) < 0.5 * nearest


def test_what_it_leaves_is_a_valid_quantization(samples: tuple[Arrays, Arrays]) -> None:
    """Weights within one step of their float ones and in the narrow range; biases in units of sx * sw."""
    seen, _ = samples
    made = quantized(seen)
    before = {layer.value: layer for layer in layers_of(made)}
    FAST.run(made, PassContext(samples=seen))
    after = layers_of(made)
    assert [layer.value for layer in after] == list(before)
    moved = 0
    for layer in after:
        start = before[layer.value]
        ratio = start.params.dequantize(start.stored) * 0 + start.real
        scale = start.params.dequantize(np.ones_like(start.stored))
        steps = layer.stored.astype(int) - np.clip(ratio / scale, -7, 7)
        assert np.abs(steps).max() < 1 + 1e-4
        change = layer.params.scale / start.params.scale
        assert 0.8 < change.min() < change.max() < 1.25 and change.min() < change.max()
        assert np.abs(layer.stored.astype(int)).max() <= 7
        moved += int((layer.stored.astype(int) != start.stored.astype(int)).sum())
        x = quant_params(layer.node.inputs[0].producer())
        bias = quant_params(layer.node.inputs[2].producer())
        assert x is not None and bias is not None and bias.dtype == ir.DataType.INT32
        np.testing.assert_allclose(bias.scale, x.scale * layer.params.scale, rtol=1e-6)
    assert moved > 20
    for name, value in made.graph.initializers.items():
        assert value.uses(), name
    for node in made.graph:
        if is_op(node, "QuantizeLinear"):  # both ends of a pair read the same scale
            pair = next(iter(node.outputs[0].consumers()))
            assert np.array_equal(const(node.inputs[1]), const(pair.inputs[1]))


def test_the_ir_computes_what_was_learned(samples: tuple[Arrays, Arrays]) -> None:
    """Up to the rounding of biases to int32: weights, their scales, those of activations, biases."""
    from effc.passes.quantize import reconstruct

    few = Arrays(8, 2)
    made = quantized(few)
    scales = free_scales(made)
    assert len(scales) >= 3
    recipe = reconstruct.Recipe(40, 8, 0.1, 0.2, 0.3, 0.5, True, True)
    work = reconstruct.Reconstruction(made, units_of(made, blocks=True), scales, recipe, 0)
    outcomes = work.run(few, lambda what, share: None)
    assert len(outcomes) == 2 and all(o.after < o.before for o in outcomes)
    with torch.no_grad():
        learned = np.concatenate([work.quantized(f)["y"].numpy() for f in samples[1]])
    write_learned(made, work.roundings, work.biases, work.learned_scales)
    written = answers(made, samples[1])
    assert np.abs(written - learned).max() < 1e-2 * np.ptp(learned)
    assert len(work.learned_scales) == len(scales)


def test_the_float_weights_stay_known(samples: tuple[Arrays, Arrays]) -> None:
    """So that blame and mixed precision can still put the float layers back."""
    from effc.core.quant_units import quantized_nodes, restore

    seen, unseen = samples
    made = quantized(seen)
    FAST.run(made, PassContext(samples=seen))
    restore(made, {str(n.name) for n in quantized_nodes(made)})
    np.testing.assert_allclose(answers(made, unseen), answers(network(), unseen), atol=1e-5)


def test_the_same_seed_gives_the_same_bits(samples: tuple[Arrays, Arrays]) -> None:
    few = Arrays(4, 2)
    short = Adaround(iterations=10, samples=4)
    made = [quantized(few) for _ in range(3)]
    for model, seed in zip(made, (0, 0, 1), strict=True):
        short.run(model, PassContext(samples=few, seed=seed))
    stored = [[layer.stored.astype(int) for layer in layers_of(m)] for m in made]
    assert all(np.array_equal(a, b) for a, b in zip(stored[0], stored[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(stored[0], stored[2], strict=True))


def test_units_follow_the_graph(samples: tuple[Arrays, Arrays]) -> None:
    made = quantized(samples[0])
    layers = units_of(made, blocks=False)
    assert [len(u.layers) for u in layers] == [1] * 5
    blocks = units_of(made, blocks=True)
    # the residual block is not cut: its input is read at its end again
    assert [u.name for u in blocks] == ["Conv_c1 + Conv_c2 + Conv_c3", "Conv_c4 + Gemm_y"]
    for units in (layers, blocks):
        made_before = {str(made.graph.inputs[0].name)}
        for unit in units:
            assert set(unit.inputs) <= made_before
            made_before |= set(unit.outputs)
        assert "y" in made_before or any("y" in name for name in units[-1].outputs)


def test_progress_is_told_and_an_interrupt_changes_nothing(samples: tuple[Arrays, Arrays]) -> None:
    few = Arrays(4, 2)
    made = quantized(few)
    before = [layer.stored.copy() for layer in layers_of(made)]
    heard: list[tuple[str, float]] = []

    def interrupt(what: str, share: float) -> None:
        heard.append((what, share))
        if share > 0:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        Adaround(iterations=3).learn(made, PassContext(samples=few), interrupt)
    assert heard[0] == ("Conv_c1 + Conv_c2 + Conv_c3", 0.0) and torch.get_num_threads() == threads
    for layer, stored in zip(layers_of(made), before, strict=True):
        np.testing.assert_array_equal(layer.stored.astype(int), stored.astype(int))


def test_the_cache_bounds_the_samples(samples: tuple[Arrays, Arrays]) -> None:
    from effc.passes.quantize.reconstruct import samples_that_fit

    made = quantized(samples[0])
    units = units_of(made, blocks=True)
    # widest is the first block: 3 * 144 in, 8 * 144 out, of both models, 4 bytes each
    each = 2 * 4 * (3 + 8) * 144
    assert samples_that_fit(units, made, 10 * each) == 10
    assert samples_that_fit(units, made, 1) == 1


def test_without_float_weights_nothing_happens_and_what_is_wrong_is_said() -> None:
    few = Arrays(2, 2)
    imported = quantized(few).clone()
    assert FLOAT_WEIGHTS not in imported.meta
    assert FAST.run(imported, PassContext(samples=few)) == 0
    with pytest.raises(ConfigError, match="there are none"):
        FAST.run(quantized(few), PassContext())
    with pytest.raises(ConfigError, match="unit='net'"):
        Adaround(unit="net").run(quantized(few), PassContext(samples=few))


def test_rounding_begins_at_the_weight_and_decides_what_leans_most() -> None:
    weight = np.array([[0.10, 0.24, -0.26], [1.0, -3.0, 0.4]], np.float32)
    params = make_params(ir.DataType.INT4, [0.1, 0.5], 0, axis=0)
    rounding = LearnedRounding(weight, params, (-7, 7))
    # -3 / 0.5 = -6 is an integer; what is representable begins as it is, up to the clip of the logits
    np.testing.assert_allclose(rounding().detach().numpy(), weight, atol=1e-3)
    np.testing.assert_array_equal(rounding.integers(), [[1, 2, -3], [2, -6, 1]])
    rounding.decide(0.5)
    h = rounding.up()
    assert int(((h == 0) | (h == 1)).sum()) >= 3
    rounding.hard = True
    made = rounding().detach().numpy()
    np.testing.assert_allclose(made, rounding.integers() * params.scale[:, None], rtol=1e-6)


def test_scales_stay_shared_and_can_be_learned_again(samples: tuple[Arrays, Arrays]) -> None:
    made = quantized(samples[0])
    free = len(free_scales(made))
    Adaround(iterations=5, samples=4).run(made, PassContext(samples=samples[0]))
    assert len(free_scales(made)) == free >= 3


def test_a_block_begins_with_a_depthwise_layer() -> None:
    made = network(
        """net (float[1,3,8,8] x, float[6,3,3,3] w1, float[6,1,3,3] w2, float[8,6,1,1] w3,
        float[8,1,3,3] w4, float[5,8,1,1] w5) => (float[1,5,4,4] y) {
    c1 = Conv <pads = [1,1,1,1]> (x, w1)
    r1 = Relu(c1)
    c2 = Conv <group = 6, pads = [1,1,1,1]> (r1, w2)
    r2 = Relu(c2)
    c3 = Conv(r2, w3)
    r3 = Relu(c3)
    c4 = Conv <group = 8, strides = [2,2], pads = [1,1,1,1]> (r3, w4)
    r4 = Relu(c4)
    y = Conv(r4, w5)
}"""
    )
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}

    class One(Arrays):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter([inputs])

    Quantize().run(made, PassContext(samples=One(1, 0)))
    names = [u.name for u in units_of(made, blocks=True)]
    assert names == ["Conv_c1", "Conv_c2 + Conv_c3", "Conv_c4 + Conv_y"]
