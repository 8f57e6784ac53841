"""train-quantized: the model as a whole learns to answer as the float model does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from effc.core.errors import ConfigError  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.core.quant import quant_params  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner  # noqa: E402
from effc.core.torch_module.rounding import TrainedIntegers  # noqa: E402
from effc.passes.quantize.adaround import Adaround  # noqa: E402
from effc.passes.quantize.learned import free_scales  # noqa: E402
from effc.passes.quantize.lint_quantization import LintQuantization  # noqa: E402
from effc.passes.quantize.quantize import Quantize  # noqa: E402
from effc.passes.quantize.train_quantized import TrainQuantized  # noqa: E402
from effc.passes.quantize.units import layers_of  # noqa: E402

# two branches whose concatenation makes their scales one, and a pooling that keeps it
NET = """net (float[1,3,10,10] x, float[6,3,3,3] w1, float[6] b1, float[4,6,1,1] w2, float[4] b2,
        float[4,6,3,3] w3, float[4] b3, float[5,8] w4, float[5] b4) => (float[1,5] y) {
    c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv(r1, w2, b2)
    r2 = Relu(c2)
    c3 = Conv <pads = [1,1,1,1]> (r1, w3, b3)
    r3 = Relu(c3)
    c = Concat <axis = 1> (r2, r3)
    p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (c)
    g = GlobalAveragePool(p)
    f = Flatten(g)
    y = Gemm <transB = 1> (f, w4, b4)
}"""


class Arrays:
    synthetic = False
    fingerprint = "arrays"

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((count, 1, 3, 12, 12))
        self.arrays = (
            sum(noise[..., i : i + 10, j : j + 10] for i in range(3) for j in range(3)) / 3
        )

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"x": a.astype(np.float32)} for a in self.arrays)


def network() -> ir.Model:
    made = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {NET}'))
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


def quantized(samples: Arrays) -> ir.Model:
    made = network()
    Quantize(weight_bits=4).run(made, PassContext(samples=samples))
    return made


def error(model: ir.Model, samples: Arrays) -> float:
    def answers(of: ir.Model) -> Any:
        with OnnxRuntimeRunner(of, optimize=False) as runner:
            return np.concatenate([runner.infer(f)["y"] for f in samples])

    want = answers(network())
    return float(((answers(model) - want) ** 2).mean() / want.var())


def test_it_learns_and_leaves_a_model_that_keeps_the_rules() -> None:
    seen, unseen = Arrays(32, 0), Arrays(16, 1)
    made = quantized(seen)
    nearest = error(made, unseen)
    heard: list[float] = []
    TrainQuantized(epochs=10, rate=5e-3).train(
        made, PassContext(samples=seen), lambda p: heard.append(p.loss)
    )
    assert len(heard) == 10 and heard[-1] < 0.5 * heard[0]
    assert error(made, unseen) < 0.5 * nearest
    assert LintQuantization().run(made, PassContext()) == 0
    for layer in layers_of(made):
        x = quant_params(layer.node.inputs[0].producer())
        bias = quant_params(layer.node.inputs[2].producer())
        assert x is not None and bias is not None
        np.testing.assert_allclose(bias.scale, x.scale * layer.params.scale, rtol=1e-6)


def test_after_adaround_it_starts_from_what_that_learned() -> None:
    seen, unseen = Arrays(32, 0), Arrays(16, 1)
    made = quantized(seen)
    Adaround(iterations=60).run(made, PassContext(samples=seen))
    assert LintQuantization().run(made, PassContext()) == 0
    rounded = error(made, unseen)
    before = {layer.value: layer.stored.astype(int) for layer in layers_of(made)}
    TrainQuantized(epochs=1, rate=1e-7).run(made, PassContext(samples=seen))
    for layer in layers_of(made):
        np.testing.assert_array_equal(layer.stored.astype(int), before[layer.value])
    assert error(made, unseen) == pytest.approx(rounded, rel=0.02)
    TrainQuantized(epochs=6, rate=2e-3).run(made, PassContext(samples=seen))
    assert error(made, unseen) < rounded


def test_what_does_not_help_is_not_kept() -> None:
    seen = Arrays(8, 0)
    made = quantized(seen)
    before = {n: v.const_value for n, v in made.graph.initializers.items()}
    assert TrainQuantized(epochs=1, rate=3.0).run(made, PassContext(samples=seen)) == 0
    after = made.graph.initializers
    assert {n: v.const_value for n, v in after.items()} == before


def test_scales_that_operators_share_are_not_learned() -> None:
    made = quantized(Arrays(4, 0))
    free = free_scales(made)
    pairs = {str(n.inputs[1].name): n for n in made.graph if n.op_type == "QuantizeLinear"}
    tied = set(pairs) - set(free)
    assert {str(pairs[name].inputs[0].name) for name in tied} >= {"r2", "r3"}
    assert {str(pairs[name].inputs[0].name) for name in free} >= {"x", "r1"}


def test_integers_begin_where_they_were_whatever_the_weight() -> None:
    made = quantized(Arrays(4, 0))
    layer = layers_of(made)[0]
    up = np.clip(layer.stored.astype(int) + 1, -7, 7)
    trained = TrainedIntegers(layer.real, up, layer.params, (-7, 7))
    np.testing.assert_array_equal(trained.integers(), up)
    np.testing.assert_allclose(
        trained().detach().numpy(), layer.params.dequantize(up.astype(np.int8)), rtol=1e-6
    )
    trained().sum().backward()
    assert trained.latent.grad is not None and bool((trained.latent.grad != 0).any())


def test_what_is_wrong_is_said() -> None:
    few = Arrays(2, 0)
    with pytest.raises(ConfigError, match="at least 1"):
        TrainQuantized(epochs=0).run(quantized(few), PassContext(samples=few))
    with pytest.raises(ConfigError, match="train-quantized learns from samples"):
        TrainQuantized().run(quantized(few), PassContext())
    assert TrainQuantized().run(network(), PassContext(samples=few)) == 0
