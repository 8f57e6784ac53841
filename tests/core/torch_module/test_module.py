"""TorchModule: real models, slices, inner values, gradients, weights there and back, refusals."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from effc.core.errors import ConfigError, LoweringError, UnsupportedOpError  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner, random_feeds  # noqa: E402
from effc.core.torch_module.module import TorchModule, write_back  # noqa: E402

TESTDATA = Path(os.environ.get("EFFC_TESTDATA", Path(__file__).parents[4] / "shared/testdata"))
MODELS = sorted((TESTDATA / "models").glob("*.onnx"))

NET = """net (float[1,2,6,6] x, float[4,2,3,3] w, float[4] b, float[3,4] v) => (float[1,3] y)
    <int64[2] shape = {1, 4}> {
    c = Conv <pads = [0, 1, 1, 0]> (x, w, b)
    r = Relu(c)
    g = GlobalAveragePool(r)
    f = Reshape(g, shape)
    y = Gemm <transB = 1, alpha = 0.5> (f, v)
}"""


def model(text: str = NET, opset: int = 20, seed: int = 0) -> ir.Model:
    """The model of `text`; its inputs but x become random initializers."""
    made = ir.from_proto(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')
    )
    rng = np.random.default_rng(seed)
    for value in list(made.graph.inputs):
        if value.name in ("w", "b", "v", "m"):
            array = rng.standard_normal([int(str(d)) for d in value.shape or ()])
            made.graph.inputs.remove(value)
            value.const_value = ir.Tensor(array.astype(np.float32), name=value.name)
            made.graph.register_initializer(value)
    return made


def reference(made: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with OnnxRuntimeRunner(made, optimize=False) as runner:
        return runner.infer(feeds)


@pytest.mark.skipif(not MODELS, reason=f"no models below {TESTDATA}: set EFFC_TESTDATA")
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_real_models_agree_with_onnxruntime(path: Path) -> None:
    made = ir.load(path)
    feeds = random_feeds(made, 1, seed=3)[0]
    want = reference(made, feeds)
    with torch.no_grad():
        got = TorchModule.from_ir(made)(feeds)
    for name, array in want.items():
        assert np.abs(got[name].numpy() - array).max() <= 1e-4 * np.ptp(array)


def test_inner_values_and_slices() -> None:
    made = model()
    module = TorchModule.from_ir(made)
    x = random_feeds(made, 1)[0]["x"]
    found = module({"x": x}, ["r", "y"])
    assert found.keys() == {"r", "y"}
    again = module({"r": found["r"]})
    torch.testing.assert_close(again["y"], found["y"])
    with pytest.raises(ConfigError, match="'x' is neither fed nor made"):
        module({"r": found["r"]}, ["c"])


def test_a_batch_runs_through_constants_that_hold_the_models_own() -> None:
    made = model()
    module = TorchModule.from_ir(made)
    feeds = random_feeds(made, 3)
    together = module({"x": np.concatenate([f["x"] for f in feeds])})["y"]
    alone = [reference(made, f)["y"] for f in feeds]
    np.testing.assert_allclose(together.detach().numpy(), np.concatenate(alone), rtol=1e-4)


@pytest.mark.parametrize(
    ("node", "shapes"),
    [
        ("Conv <pads = [1,0,2,1], strides = [2,1], dilations = [1,2]> (a, b)", ([1, 2, 7, 6], [3, 2, 3, 2])),
        ("ConvTranspose <strides = [2,2], output_padding = [1,0], pads = [0,1,1,0]> (a, b)",
         ([1, 2, 3, 4], [2, 3, 3, 2])),
        ("AveragePool <kernel_shape = [3,2], ceil_mode = 1, strides = [2,2], pads = [1,0,0,1], "
         "count_include_pad = 1> (a)", ([1, 2, 6, 5],)),
        ("LayerNormalization (a, b)", ([2, 3, 4], [4])),
        ('Resize <mode = "cubic", coordinate_transformation_mode = "half_pixel"> (a, , s)', ([1, 1, 4, 3],)),
        ("LRN <size = 3, alpha = 0.5> (a)", ([1, 4, 2, 2],)),
        ("Gemm <alpha = 0.5, beta = 2.0, transA = 1> (a, b, c)", ([3, 2], [3, 4], [4])),
        ("ScatterND (a, at, b)", ([4, 2], [2, 2])),
        ('Pad <mode = "reflect"> (a, p)', ([2, 4],)),
    ],
    ids=lambda v: v.split(" ")[0] if isinstance(v, str) else "",
)  # fmt: skip
def test_gradients_agree_with_differences(node: str, shapes: tuple[list[int], ...]) -> None:
    inputs = ", ".join(f"double{list(s)} {n}" for n, s in zip("abc", shapes, strict=False))
    text = (
        f"g ({inputs}) => (double[N] y) <float[4] s = {{1, 1, 2, 1.5}}, "
        f"int64[4] p = {{1, 2, 0, 1}}, int64[2,1] at = {{2, 0}}> {{ y = {node} }}"
    )
    module = TorchModule.from_ir(ir.from_proto(onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> {text}')))  # fmt: skip
    random = torch.Generator().manual_seed(0)
    values = [
        torch.randn(s, dtype=torch.float64, generator=random, requires_grad=True) for s in shapes
    ]
    assert torch.autograd.gradcheck(
        lambda *v: module(dict(zip("abc", v, strict=False)))["y"], values
    )


def test_weights_there_and_back() -> None:
    made = model()
    other = made.clone()
    before = {n: v.const_value.numpy().copy() for n, v in made.graph.initializers.items()}
    module = TorchModule.from_ir(made)
    assert set(module.weights) == {"w", "b", "v"}
    assert write_back(module, made) == 0
    with torch.no_grad():
        for weight in module.weights.values():
            weight.mul_(1.25)
    feeds = random_feeds(made, 1)[0]
    assert write_back(module, made, ["w", "v"]) == 2
    np.testing.assert_array_equal(
        made.graph.initializers["w"].const_value.numpy(), before["w"] * 1.25
    )
    np.testing.assert_array_equal(made.graph.initializers["b"].const_value.numpy(), before["b"])
    assert write_back(module, made) == 1  # the rest
    got = module(feeds)["y"].detach().numpy()
    np.testing.assert_allclose(reference(made, feeds)["y"], got, rtol=1e-5, atol=1e-6)
    for name, array in before.items():  # a clone shares tensors: they stay what they were
        np.testing.assert_array_equal(other.graph.initializers[name].const_value.numpy(), array)
    with pytest.raises(ConfigError, match="no initializer"):
        write_back(module, model("n (float[1] x) => (float[1] y) { y = Relu(x) }"))


def test_a_substitute_computes_a_weight_from_its_own() -> None:
    made = model()
    module = TorchModule.from_ir(made)
    feeds = random_feeds(made, 1)[0]
    plain = module(feeds)["y"]

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = torch.nn.Parameter(module.weights["v"].detach() / 2)

        def forward(self) -> torch.Tensor:
            return self.part * 4

    module.substitute("v", Twice())
    torch.testing.assert_close(module(feeds)["y"], plain * 2)
    module(feeds)["y"].sum().backward()
    assert any("part" in n and p.grad is not None for n, p in module.named_parameters())
    module.substitute("v", None)
    torch.testing.assert_close(module(feeds)["y"], plain)


PAIR = """q (float[1,8] x) => (float[1,8] y)
    <float s = {0.5}, uint8 z = {3}, float[8] m = {1, 2, 3, 4, 5, 6, 7, 8}> {
    i = QuantizeLinear(x, s, z)
    d = DequantizeLinear(i, s, z)
    y = Mul(d, m)
}"""


def test_fake_quantization_is_onnxs_and_its_gradient_goes_straight_through() -> None:
    made = model(PAIR)
    module = TorchModule.from_ir(made)
    x = np.array([[-9, -1.25, -0.75, 0.0, 0.3, 0.25, 126.0, 900]], np.float32)
    want = reference(made, {"x": x})["y"]
    fed = torch.from_numpy(x).requires_grad_()
    y = module({"x": fed})["y"]
    np.testing.assert_array_equal(y.detach().numpy(), want)
    y.sum().backward()
    # (0 - 3) * 0.5 = -1.5 and (255 - 3) * 0.5 = 126 are the ends
    np.testing.assert_array_equal(fed.grad.numpy(), [[0, 2, 3, 4, 5, 6, 7, 0]])
    assert module({"x": x}, ["i"])["i"].dtype == torch.uint8
    module.quantized = False
    real = module({"x": x})["y"].detach().numpy()
    np.testing.assert_array_equal(real, x * np.arange(1, 9, dtype=np.float32))


def test_what_torch_cannot_do_is_listed_at_once() -> None:
    text = """l (float[1,1,4,4] x, float[1,5] r) => (float[N,1,2,2] y, float[1,4] z) {
        i = Constant <value_ints = [0]> ()
        y = RoiAlign <output_height = 2, output_width = 2> (x, r, i)
        z = custom.Thing(r)
    }"""
    made = ir.from_proto(onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20, "custom": 1]> {text}'))  # fmt: skip
    with pytest.raises(UnsupportedOpError) as caught:
        TorchModule.from_ir(made)
    assert [p.op for p in caught.value.problems] == ["RoiAlign", "Thing"]
    with pytest.raises(ConfigError, match="opset 6"):
        TorchModule.from_ir(model("o (float[1] x) => (float[1] y) { y = Relu(x) }", opset=6))


def test_an_error_of_torch_names_the_node() -> None:
    made = model("o (float[A] x, float[B] y) => (float[C] z) { z = Add(x, y) }")
    with pytest.raises(LoweringError, match=r"'z' \(Add\)"):
        TorchModule.from_ir(made)({"x": np.ones(2, np.float32), "y": np.ones(3, np.float32)})
