from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from effc import passes
from effc.core.errors import FrontendError
from effc.core.ir import WORKING_OPSET
from effc.core.passinfra import PassContext
from effc.passes.canonicalize.convert_opset import bumps
from effc.passes.canonicalize.opset_adapters import ADAPTERS, SAME

PIPELINE = "lift-constants,convert-opset"


def graph(body: str, opset: int, shape: str = "2,3,4,6", out: str = "float[a,b,c,d]") -> str:
    return f'<ir_version: 8, opset_import: ["": {opset}]> g (float[{shape}] x) => ({out} y) {{ {body} }}'


CASES = {
    "Clip 6": (7, "y = Clip<min = -0.5, max = 0.5>(x)"),
    "Clip 6, one limit": (9, "y = Clip<min = 0.0>(x)"),
    "Dropout 7": (9, "y = Dropout<ratio = 0.3>(x)"),
    "Flatten and Softmax": (11, "y = Softmax<axis = 1>(x)"),
    "Softmax, default axis": (9, "y = Softmax(x)"),
    "Softmax, negative axis": (11, "y = Softmax<axis = -2>(x)"),
    "Softmax, last axis": (11, "y = Softmax<axis = 3>(x)"),
    "LogSoftmax": (12, "y = LogSoftmax<axis = 2>(x)"),
    "Hardmax": (11, "y = Hardmax<axis = 1>(x)"),
    "Pad 2": (10, "y = Pad<pads = [0, 0, 1, 2, 0, 0, 0, 1], value = 1.5>(x)"),
    "Pad 2, reflect": (10, 'y = Pad<pads = [0, 0, 1, 2, 0, 0, 0, 1], mode = "reflect">(x)'),
    "Slice 1": (9, "y = Slice<starts = [1, 0], ends = [3, -1], axes = [1, 3]>(x)"),
    "Split 11": (12, "a, b = Split<axis = 1, split = [1, 2]>(x) y = Concat<axis = 1>(b, a)"),
    "Split 13": (13, "a, b = Split<axis = 3>(x) y = Concat<axis = 3>(b, a)"),
    "Squeeze and Unsqueeze": (11, "a = Unsqueeze<axes = [0]>(x) y = Squeeze<axes = [0]>(a)"),
    "Squeeze of all": (11, "a = Unsqueeze<axes = [0, 5]>(x) y = Squeeze(a)"),
    "ReduceSum 11": (12, "y = ReduceSum<axes = [1, -1]>(x)"),
    "ReduceSum, all axes": (11, "y = ReduceSum(x)"),
    "ReduceMean 13": (17, "y = ReduceMean<axes = [2], keepdims = 1>(x)"),
    "ReduceL2 13": (13, "y = ReduceL2<axes = [2, 3]>(x)"),
    "TopK 1": (9, "y, i = TopK<axis = 3, k = 2>(x)"),
    "Upsample 7": (7, 'y = Upsample<mode = "nearest", scales = [1.0, 1.0, 2.0, 3.0]>(x)'),
    "Upsample 9, linear": (
        9,
        's = Constant<value = float[4] {1, 1, 2, 1.5}>() y = Upsample<mode = "linear">(x, s)',
    ),
    "Resize 10, up": (
        10,
        's = Constant<value = float[4] {1, 1, 2, 1.5}>() y = Resize<mode = "nearest">(x, s)',
    ),
    "Resize 10, down": (
        10,
        's = Constant<value = float[4] {1, 1, 0.5, 0.7}>() y = Resize<mode = "nearest">(x, s)',
    ),
    "Resize 10, linear": (
        10,
        's = Constant<value = float[4] {1, 1, 0.5, 2}>() y = Resize<mode = "linear">(x, s)',
    ),
    "BatchNormalization 9": (
        9,
        "a = Constant<value = float[3] {1, 2, 3}>() b = Constant<value = float[3] {0.5, 1, 2}>() "
        "y = BatchNormalization(x, a, b, a, b)",
    ),
    "AveragePool 10": (
        10,
        "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1>(x)",
    ),
    "GridSample 16": (
        16,
        "g = Constant<value = float[2,1,2,2] {-1, 0, 0.5, 1, -0.5, 0.1, 0.2, 0.9}>() "
        'y = GridSample<mode = "bilinear">(x, g)',
    ),
    "GroupNormalization 18": (
        18,
        "s = Constant<value = float[3] {1, 2, 3}>() b = Constant<value = float[3] {4, 5, 6}>() "
        "y = GroupNormalization<num_groups = 3>(x, s, b)",
    ),
    "Scatter 9": (
        10,
        "i = Constant<value = int64[1,1,1,1] {1}>() u = Constant<value = float[1,1,1,1] {9}>() "
        "y = Scatter<axis = 1>(x, i, u)",
    ),
    "DFT 17": (17, "z = Constant<value_ints = [2, 12, 6, 1]>() r = Reshape(x, z) y = DFT<axis = 2>(r)"),
    "RoiAlign 10": (
        11,
        "r = Constant<value = float[1,4] {0, 0, 3, 3}>() i = Constant<value = int64[1] {1}>() "
        "y = RoiAlign<output_height = 2, output_width = 2>(x, r, i)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("opset", "body"), CASES.values(), ids=CASES)
def test_same_numbers(apply, opset: int, body: str) -> None:
    shape = "2,72,1,1" if "DFT" in body else "2,3,4,6"
    # the AveragePool of newer opsets sums in another order
    exact = "AveragePool" not in body
    model = apply(PIPELINE, graph(body, opset, shape), infer=False, exact=exact)
    assert model.opset_imports[""] == (21 if "RoiAlign" in body else WORKING_OPSET)
    onnx.checker.check_model(ir.to_proto(model))
    assert passes.parse("convert-opset").run(model, PassContext())[0].rewrites == 0


def test_softmax_with_dynamic_extents(apply) -> None:
    model = apply(PIPELINE, graph("y = Softmax<axis = 1>(x)", 11, "N,3,M,5"), N=2, M=4)
    assert [n.op_type for n in model.graph] == ["Flatten", "Softmax", "Shape", "Reshape"]


@pytest.mark.parametrize(
    ("opset", "body", "reason"),
    [
        (
            10,
            's = Shape(x) f = Cast<to = 1>(s) y = Resize<mode = "nearest">(x, f)',
            "scales are computed",
        ),
        (
            10,
            's = Constant<value = float[4] {1, 1, 2, 0.5}>() y = Resize<mode = "nearest">(x, s)',
            "grows along one axis",
        ),
        (
            11,
            "r = Constant<value = float[0] {}>() s = Constant<value = float[4] {1, 1, 2, 2}>() "
            'y = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(x, r, s)',
            "tf_half_pixel_for_nn",
        ),
        (5, "y = PRelu(x, x)", "no adapter to version 6"),
    ],
)
def test_refuses_with_node_and_remedy(opset: int, body: str, reason: str) -> None:
    model = ir.from_onnx_text(graph(body, opset))
    node = model.graph[-1]
    node.name = "culprit"
    with pytest.raises(FrontendError, match="culprit") as caught:
        passes.parse(PIPELINE).run(model, PassContext())
    assert reason in str(caught.value)
    assert "export" in caught.value.hint


def test_a_newer_model_comes_down(apply) -> None:
    model = apply(PIPELINE, graph("a = Transpose<perm = [0, 2, 3, 1]>(x) y = Relu(a)", 25))
    assert model.opset_imports[""] == WORKING_OPSET


def test_a_newer_model_that_needs_it_stays(apply) -> None:
    model = apply(PIPELINE, graph("y = Swish(x)", 24))
    assert model.opset_imports[""] == 24


def test_a_future_opset_is_refused() -> None:
    model = ir.from_onnx_text(graph("y = Relu(x)", 9))
    model.graph.opset_imports[""] = 99
    with pytest.raises(FrontendError, match="opset 99"):
        passes.parse(PIPELINE).run(model, PassContext())


def test_custom_domains_and_lazy_weights_are_left_alone() -> None:
    text = """<ir_version: 8, opset_import: ["": 11, "my": 1]> g (float[2,3] x) => (float[2,3] y) {
      a = my.Thing<axes = [1]>(x) y = Unsqueeze<axes = [0]>(a) }"""
    model = ir.from_onnx_text(text)

    def load() -> ir.Tensor:
        raise AssertionError("a weight was loaded")

    tensor = ir.LazyTensor(load, ir.DataType.FLOAT, ir.Shape([1 << 16, 1 << 16]), name="w")
    value = ir.Value(
        name="w", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
    )
    model.graph.register_initializer(value)
    model.graph[0].resize_inputs(2)
    model.graph[0].replace_input_with(1, value)
    passes.parse(PIPELINE).run(model, PassContext())
    assert [len(n.inputs) for n in model.graph] == [2, 2]
    assert model.opset_imports == {"": WORKING_OPSET, "my": 1}


def test_functions_are_inlined(apply) -> None:
    text = """<ir_version: 8, opset_import: ["": 12, "my": 1]> g (float[2,3] x) => (float[2,3] y)
    { y = my.F(x) } <domain: "my", opset_import: ["": 12]>
    F (a) => (b) { c = Neg(a) b = Softmax<axis = 1>(c) }"""
    model = apply(passes.CANONICALIZE, text, infer=False)
    assert [n.op_type for n in model.graph] == ["Neg", "Softmax"]
    assert model.opset_imports == {"": WORKING_OPSET}


def test_every_change_of_every_operator_is_accounted_for() -> None:
    names = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    for name in sorted(names):
        for version in bumps(name, 7, WORKING_OPSET):
            first = min(bumps(name, 0, 1000))
            known = (name, version) in ADAPTERS, version in SAME.get(name, ())
            assert version == first or sum(known) == 1, (name, version)
