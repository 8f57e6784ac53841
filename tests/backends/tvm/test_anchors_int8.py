"""Models of integer convolutions and products, lowered, compiled and run, against the numpy reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from effc.backends.tvm.candidates import Space  # noqa: E402
from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.core.errors import UnsupportedOpError  # noqa: E402
from effc.core.integers import reference  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402

U8, I8, FLOAT = TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT
Array = np.ndarray[Any, Any]


class Net:
    """A model with integer operators, put together node by node."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.types: dict[str, tuple[int, list[int]]] = {}

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def weights(self, shape: tuple[int, ...], outputs: int) -> list[str]:
        """Weights of `shape`, a bias and multipliers that keep results in range."""
        depth = int(np.prod(shape)) // outputs
        w = self.rng.integers(-127, 128, shape).astype(np.int8)
        bias = self.rng.integers(-5000, 5000, outputs).astype(np.int32)
        m = (self.rng.uniform(0.5, 1, outputs) / (60 * np.sqrt(depth))).astype(np.float32)
        return [self.constant(w), self.constant(bias), self.constant(m)]

    def conv(
        self,
        x: str,
        y: str,
        ic: int,
        oc: int,
        size: int,
        kernel: int = 1,
        stride: int = 1,
        group: int = 1,
        z: str = "",
        to: int = U8,
        **attributes: Any,
    ) -> None:
        """A square convolution with an output of `size`."""
        weights = self.weights((oc, ic // group, kernel, kernel), oc)
        inputs = [x, *weights, *([z] if z else [])]
        self.nodes.append(helper.make_node(
            "Conv", inputs, [y], name=f"{y}_conv", domain="effc.integer", group=group, to=to,
            strides=[stride] * 2, pads=[(kernel - 1) // 2] * 4, dilations=[1, 1], **attributes,
        ))  # fmt: skip
        self.types[y] = (to, [1, oc, size, size])

    def node(self, op: str, inputs: list[str], y: str, domain: str = "", **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [y], name=y, domain=domain, **attributes))

    def model(self, x: tuple[int, list[int]], outputs: dict[str, tuple[int, Any]]) -> ir.Model:
        known = [helper.make_tensor_value_info(k, *t) for k, t in self.types.items()]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", *x)],
            [helper.make_tensor_value_info(k, *t) for k, t in outputs.items()],
            self.constants,
            value_info=[v for v in known if v.name not in outputs],
        )
        imports = [helper.make_opsetid("", 23), helper.make_opsetid("effc.integer", 1)]
        model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))
        infer_shapes(model)
        return model


def test_a_network_of_integers(build: Callable[..., Any]) -> None:
    """Stem from planes, depthwise, residual, real outputs behind it, product; every bit."""
    net = Net()
    net.conv("x", "a", 3, 20, 8, 3, 2, x_zero_point=114, low=3)
    net.conv("a", "b", 20, 20, 8, 3, group=20, x_zero_point=3, y_zero_point=7, low=7, high=200)
    net.conv("b", "c", 20, 40, 8, x_zero_point=7)
    net.conv("c", "d", 40, 40, 8, 3, y_zero_point=128)
    net.conv(
        "d", "e", 40, 40, 8, 3, z="c", x_zero_point=128, y_zero_point=90, z_zero_point=3,
        z_multiplier=0.73,
    )  # fmt: skip
    net.conv("e", "f", 40, 3, 8, to=FLOAT, x_zero_point=90)
    net.conv("e", "h", 40, 33, 8, to=I8, x_zero_point=90, y_zero_point=-20)
    net.node("Relu", ["f"], "g")
    net.node("Flatten", ["e"], "flat")
    net.node(
        "MatMul", ["flat", *net.weights((40 * 64, 10), 10)], "y", "effc.integer",
        x_zero_point=90, y_zero_point=100, to=U8,
    )  # fmt: skip
    net.types["y"] = (U8, [1, 10])
    outputs = {"g": (FLOAT, [1, 3, 8, 8]), "h": (I8, [1, 33, 8, 8]), "y": (U8, [1, 10])}
    model = net.model((U8, [1, 3, 16, 16]), outputs)
    feeds = {"x": net.rng.integers(0, 256, (1, 3, 16, 16)).astype(np.uint8)}
    wanted = reference.run(model, feeds)
    built = build(model)
    templates = [c.template for c in built.program.calls]
    assert templates.count("conv_int8") == 6 and {"depthwise_int8", "gemm_int8"} < set(templates)
    with built.model(2) as compiled:
        found = compiled.run(feeds)
    for name, expected in wanted.items():
        assert len(np.unique(expected)) > 3, name
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected, name)


@pytest.mark.parametrize(
    ("group", "kernel", "stride", "pads", "extra", "dilation"),
    [
        (1, 4, 2, [1, 1, 1, 1], 0, 1),
        (1, 3, 2, [1, 0, 0, 1], 1, 1),
        (1, 2, 2, [0, 0, 0, 0], 0, 1),
        (1, 1, 2, [0, 0, 0, 0], 1, 1),
        (2, 3, 1, [0, 2, 1, 0], 0, 2),
        (20, 5, 3, [2, 2, 2, 2], 2, 1),
    ],
)
def test_transposed_convolutions(
    build: Callable[..., Any], group: int, kernel: int, stride: int, pads: list[int], extra: int,
    dilation: int,
) -> None:  # fmt: skip
    """A shifted input, so that every border has biases of its own, and phases without taps."""
    net = Net()
    weights = net.weights((20, 40 // group, kernel, kernel), 40)
    inputs = [*weights[:1], *net.weights((40, 20 // group, kernel, kernel), 40)[1:]]
    size = [
        (6 - 1) * stride + extra + (kernel - 1) * dilation + 1 - pads[i] - pads[2 + i]
        for i in range(2)
    ]
    net.nodes.append(
        helper.make_node(
            "ConvTranspose",
            ["x", *inputs],
            ["y"],
            name="y",
            domain="effc.integer",
            to=U8,
            group=group,
            strides=[stride] * 2,
            pads=pads,
            dilations=[dilation] * 2,
            output_padding=[extra] * 2,
            x_zero_point=100,
            y_zero_point=120,
        )  # fmt: skip
    )
    net.types["y"] = (U8, [2, 40, *size])
    model = net.model((U8, [2, 20, 6, 6]), {"y": (U8, [2, 40, *size])})
    feeds = {"x": net.rng.integers(0, 256, (2, 20, 6, 6)).astype(np.uint8)}
    wanted = reference.run(model, feeds)["y"]
    assert len(np.unique(wanted)) > 9
    with build(model).model(2) as compiled:
        np.testing.assert_array_equal(compiled.run(feeds)["y"], wanted)


def test_four_bit_weights(build: Callable[..., Any]) -> None:
    net = Net()
    net.conv("x", "y", 16, 16, 4)
    small = net.rng.integers(-8, 8, (16, 16, 1, 1))
    packed = helper.make_tensor(
        net.constants[0].name, TensorProto.INT4, small.shape, small.ravel().tolist()
    )
    net.constants[0] = packed
    model = net.model((U8, [1, 16, 4, 4]), {"y": (U8, [1, 16, 4, 4])})
    feeds = {"x": net.rng.integers(0, 256, (1, 16, 4, 4)).astype(np.uint8)}
    with build(model).model() as compiled:
        found = compiled.run(feeds)["y"]
    wanted = reference.run(model, feeds)["y"]
    assert len(np.unique(wanted)) > 3
    np.testing.assert_array_equal(found, wanted)


def _spaces() -> list[Space]:
    net = Net()
    net.conv("x", "a", 32, 48, 9, 3, x_zero_point=1)
    net.conv("a", "b", 48, 48, 9, 3, group=48)
    net.node("Flatten", ["b"], "flat")
    net.node("MatMul", ["flat", *net.weights((48 * 81, 40), 40)], "y", "effc.integer", to=U8)
    net.types["y"] = (U8, [1, 40])
    program = lower(net.model((U8, [1, 32, 9, 9]), {"y": (U8, [1, 40])}), host_isa())
    return [site.space() for site in program.sites.values()]


def test_every_kernel_can_be_tuned() -> None:
    from effc.backends.tvm.kernels.choice import Blocking

    spaces = _spaces()
    assert len(spaces) == 3 and all(s is not None for s in spaces)
    assert len({s.key for s in spaces}) == 3
    for space in spaces:
        every = {space.effective(b) for b in space.candidates(Blocking())} - {None}
        assert len(every) > 1, space.key


def test_tuned_kernels_compute_the_same(build: Callable[..., Any], tmp_path: Any) -> None:
    from effc.backends.tvm.kernels.choice import Blocking
    from effc.backends.tvm.library import write_library
    from effc.core.native import Model

    net = Net()
    net.conv("x", "a", 32, 48, 9, 3, x_zero_point=1)
    net.conv("a", "b", 48, 48, 9, 3, group=48, x_zero_point=5)
    model = net.model((U8, [1, 32, 9, 9]), {"b": (U8, [1, 48, 9, 9])})
    feeds = {"x": net.rng.integers(0, 256, (1, 32, 9, 9)).astype(np.uint8)}
    program = lower(model, host_isa())
    choices = {}
    for name, site in program.sites.items():
        space = site.space()
        rule = space.effective(Blocking())
        others = (b for b in space.candidates(Blocking()) if space.effective(b) not in (None, rule))
        choices[name] = next(others)
    write_library(program.cut(choices), tmp_path)
    with Model(tmp_path, 1) as compiled:
        found = compiled.run(feeds)["b"]
    np.testing.assert_array_equal(found, reference.run(model, feeds)["b"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rounding": "tflite"}, "rounded by the rule"),
        ({"to": FLOAT, "z": "x"}, "residual input and a real result"),
    ],
)
def test_refusals_name_the_node(change: dict[str, Any], reason: str) -> None:
    net = Net()
    net.conv("x", "y", 16, 16, 4, **change)
    kind = change.get("to", U8)
    model = net.model((U8, [1, 16, 4, 4]), {"y": (kind, [1, 16, 4, 4])})
    with pytest.raises(UnsupportedOpError) as caught:
        lower(model, host_isa())
    (problem,) = caught.value.problems
    assert problem.node == "y_conv" and reason in problem.reason and problem.remedy


@pytest.mark.parametrize("constant", [False, True])
def test_products_that_pack_nothing(build: Callable[..., Any], constant: bool) -> None:
    """Two computed operands, and a constant one with a zero point of its own."""
    net = Net()
    net.conv("x", "a", 4, 4, 8, to=I8, y_zero_point=-9)
    right = "a"
    if constant:
        right = net.constant(net.rng.integers(0, 256, (1, 4, 8, 8)).astype(np.uint8))
    bias = net.constant(net.rng.integers(-99, 99, 8).astype(np.int32))
    m = net.constant(np.array([0.004], np.float32))
    zero = 120 if constant else -9
    net.node(
        "MatMul", ["a", right, bias, m], "y", "effc.integer", to=U8, x_zero_point=-9,
        w_zero_point=zero, y_zero_point=128,
    )  # fmt: skip
    net.types["y"] = (U8, [1, 4, 8, 8])
    model = net.model((U8, [1, 4, 8, 8]), {"y": (U8, [1, 4, 8, 8])})
    feeds = {"x": net.rng.integers(0, 256, (1, 4, 8, 8)).astype(np.uint8)}
    wanted = reference.run(model, feeds)["y"]
    assert len(np.unique(wanted)) > 9
    built = build(model)
    assert "matmul_int8" in [c.template for c in built.program.calls]
    with built.model(2) as compiled:
        np.testing.assert_array_equal(compiled.run(feeds)["y"], wanted)
