"""binarize: what it stores, and a network of scikit-learn's digits that learns to work with signs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from effc.core.errors import ConfigError  # noqa: E402
from effc.core.ir import const  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner  # noqa: E402
from effc.core.torch_module.module import TorchModule, write_back  # noqa: E402
from effc.core.torch_module.training import Progress, Training, finetune  # noqa: E402
from effc.passes.compress.binarize import Binarize  # noqa: E402

NET = """digits (float[1,1,8,8] x, float[16,1,3,3] w1, float[16] b1, float[32,16,3,3] w2,
        float[32] b2, float[128,64] w3, float[64] b3, float[10,64] w4, float[10] b4) => (float[1,10] y)
    <int64[2] shape = {1, 128}> {
    c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu(c1)
    p1 = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r1)
    c2 = Conv <pads = [1,1,1,1]> (p1, w2, b2)
    r2 = Relu(c2)
    p2 = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r2)
    f = Reshape(p2, shape)
    g = Gemm(f, w3, b3)
    r3 = Relu(g)
    y = Gemm <transB = 1> (r3, w4, b4)
}"""


class Digits:
    """Pictures with their labels, as core.data has them."""

    synthetic = False
    fingerprint = "digits"

    def __init__(self, pictures: Any, labels: Any) -> None:
        self.pictures, self.labels = pictures, labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (f for f, _ in self.labelled())

    def labelled(self) -> Iterator[tuple[dict[str, Any], int]]:
        for picture, label in zip(self.pictures, self.labels, strict=True):
            yield {"x": picture[None]}, int(label)


class Unlabelled(Digits):
    labelled = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"x": p[None]} for p in self.pictures)


def network() -> ir.Model:
    made = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {NET}'))
    rng = np.random.default_rng(0)
    for value in list(made.graph.inputs)[1:]:
        shape = [int(str(d)) for d in value.shape or ()]
        fan_in = shape[0] if value.name == "w3" else int(np.prod(shape[1:]))
        array = rng.standard_normal(shape) * (np.sqrt(2 / fan_in) if len(shape) > 1 else 0)
        made.graph.inputs.remove(value)
        value.const_value = ir.Tensor(array.astype(np.float32), name=value.name)
        made.graph.register_initializer(value)
    return made


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, Digits]:
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    pictures = (data.images[:, None] / 8 - 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pictures))
    train, test = order[:1300], order[1300:]
    return Digits(pictures[train], data.target[train]), Digits(pictures[test], data.target[test])


@pytest.fixture(scope="module")
def trained(digits: tuple[Digits, Digits]) -> ir.Model:
    made = network()
    module = TorchModule.from_ir(made)
    x, labels = torch.from_numpy(digits[0].pictures), torch.from_numpy(digits[0].labels)

    def loss(batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(module({"x": x[batch]})["y"], labels[batch])

    losses = finetune(list(module.parameters()), len(x), loss, Training(8, 32, 3e-3))
    assert losses[-1] < 0.1 * losses[0]
    assert write_back(module, made) == 8
    return made


def accuracy(model: ir.Model, samples: Digits) -> float:
    with OnnxRuntimeRunner(model) as runner:
        right = [int(runner.infer(f)["y"].argmax()) == label for f, label in samples.labelled()]
    return float(np.mean(right))


@pytest.mark.parametrize("values", [2, 3])
def test_a_small_network_learns_to_work_with_signs(
    values: int, digits: tuple[Digits, Digits], trained: ir.Model
) -> None:
    """Nearly all of the float accuracy stays, where signs put in untrained lose a lot more."""
    train, test = digits
    real = accuracy(trained, test)
    assert real > 0.95
    learned, untrained = trained.clone(), trained.clone()
    assert Binarize(values, epochs=0, ends=True).run(untrained, PassContext()) == 4
    count = Binarize(values, epochs=8, ends=True).run(learned, PassContext(samples=train))
    assert count == 4
    kept = accuracy(learned, test)
    assert kept > 0.96 * real
    assert kept > accuracy(untrained, test) + 0.02
    for node in learned.graph:
        if node.op_type in ("Conv", "Gemm"):
            integers = const(node.inputs[1].producer().inputs[0])
            found = set(np.unique(integers.astype(int)).tolist())
            assert found == ({-1, 1} if values == 2 else {-1, 0, 1})
            assert node.inputs[1].producer().inputs[0].dtype == ir.DataType.INT4


def test_without_labels_it_learns_the_float_models_answers(
    digits: tuple[Digits, Digits], trained: ir.Model
) -> None:
    train, test = digits
    learned = trained.clone()
    heard: list[Progress] = []
    unlabelled = Unlabelled(train.pictures[:600], train.labels[:600])
    count = Binarize(epochs=6).train(learned, PassContext(samples=unlabelled), heard.append)  # type: ignore[arg-type]
    assert count == 2  # the first and the last stay
    assert [p.epoch for p in heard] == [1, 2, 3, 4, 5, 6]
    assert accuracy(learned, test) > 0.96 * accuracy(trained, test)


def test_scales_are_the_best_in_squared_error() -> None:
    made = network()
    weight = const(made.graph.initializers["w3"])
    Binarize(epochs=0, bits=8).run(made, PassContext())
    pair = next(n for n in made.graph if n.op_type == "DequantizeLinear" and "w3" in n.name)
    signs, scale = const(pair.inputs[0]), const(pair.inputs[1])
    assert signs.dtype == np.int8 and scale.shape == (64,)
    np.testing.assert_array_equal(signs, np.where(weight >= 0, 1, -1))
    best = (signs * weight).sum(0) / (signs * signs).sum(0)
    np.testing.assert_allclose(scale, best, rtol=1e-5)


def test_the_threshold_of_ternary_weights() -> None:
    made = network()
    weight = const(made.graph.initializers["w2"])
    Binarize(3, epochs=0).run(made, PassContext())
    pair = next(n for n in made.graph if n.op_type == "DequantizeLinear" and "w2" in n.name)
    signs, scale = const(pair.inputs[0]).astype(int), const(pair.inputs[1])
    size = np.abs(weight)
    kept = size > 0.7 * size.mean((1, 2, 3), keepdims=True)
    np.testing.assert_array_equal(signs, np.sign(weight) * kept)
    np.testing.assert_allclose(scale, (size * kept).sum((1, 2, 3)) / kept.sum((1, 2, 3)), rtol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_a_stop_is_heard(
    digits: tuple[Digits, Digits], trained: ir.Model
) -> None:
    few = Digits(digits[0].pictures[:64], digits[0].labels[:64])
    made = [trained.clone() for _ in range(3)]
    for i, model in enumerate(made):
        heard: list[Progress] = []

        def stop(progress: Progress, heard: list[Progress] = heard) -> bool:
            heard.append(progress)
            return progress.epoch < 2

        Binarize(epochs=5).train(model, PassContext(samples=few, seed=i // 2), stop)
        assert len(heard) == 2
    scales = [const(m.graph.initializers["w2/scale"]) for m in made]
    np.testing.assert_array_equal(scales[0], scales[1])
    assert not np.array_equal(scales[0], scales[2])


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ConfigError, match="values are 2 or 3"):
        Binarize(4).run(network(), PassContext())
    with pytest.raises(ConfigError, match="there are none"):
        Binarize().run(network(), PassContext())
    wild = Binarize(rate=1e30, epochs=3, ends=True)
    samples = Digits(np.ones((8, 1, 8, 8), np.float32), np.zeros(8, int))
    before = network()
    with pytest.raises(ConfigError, match="the loss is"):
        wild.run(before, PassContext(samples=samples))
    assert all(n.op_type != "DequantizeLinear" for n in before.graph)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_graph_that_holds_its_own_batch_trains_sample_by_sample(
    digits: tuple[Digits, Digits], labelled: bool
) -> None:
    """At a rate of nothing the mean loss does not depend on the batch."""
    kind = Digits if labelled else Unlabelled
    few = kind(digits[0].pictures[:8], digits[0].labels[:8])

    def mean_loss(batch: int) -> float:
        made = network()
        end = made.graph.outputs[0]
        # folds all rows into one: of a larger batch it would mix up the samples
        whole = ir.tensor(np.array([2, -1], np.int64), name="whole")
        rows = ir.tensor(np.array([1, 10], np.int64), name="rows")
        constants = [ir.Value(name=t.name, const_value=t) for t in (whole, rows)]
        for value in constants:
            made.graph.register_initializer(value)
        folded = ir.node("Reshape", [end, constants[0]])
        summed = ir.node("ReduceSum", [folded.outputs[0]])
        added = ir.node("Add", [folded.outputs[0], summed.outputs[0]])
        last = ir.node("Reshape", [added.outputs[0], constants[1]])
        made.graph.extend([folded, summed, added, last])
        for i, node in enumerate((folded, summed, added, last)):
            node.outputs[0].name = f"end{i}"
        last.outputs[0].dtype, last.outputs[0].shape = end.dtype, end.shape
        made.graph.outputs[:] = [last.outputs[0]]
        heard: list[float] = []
        Binarize(epochs=1, batch=batch, rate=1e-12).train(
            made, PassContext(samples=few), lambda p: heard.append(p.loss)
        )
        return heard[0]

    assert mean_loss(4) == pytest.approx(mean_loss(1), rel=1e-3)
