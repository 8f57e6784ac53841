"""Every operator against TFLite's reference kernels, in float32 and quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

SAME, VALID = 0, 1
_rng = np.random.default_rng(7)
# name -> (op, shapes of the inputs, constants, options, values of the options); a constant may be
# ("real", array), which is quantized with the others
CASES: dict[str, tuple[str, list[tuple[int, ...]], list[Any], str, dict[str, Any]]] = {}


def case(name: str, op: str, shapes: Any, *consts: Any, options: str = "", **values: Any) -> None:
    CASES[name] = (op, list(shapes), list(consts), options, values)


def real(*shape: int, low: float = -1.0, high: float = 1.0) -> tuple[str, np.ndarray]:
    return "real", _rng.uniform(low, high, shape).astype(np.float32)


def ints(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int32)


IMAGE = (1, 7, 9, 4)
for padding in (SAME, VALID):
    for stride in (1, 2):
        for dilation in (1, 2) if stride == 1 else (1,):
            case(
                f"conv-p{padding}s{stride}d{dilation}", "CONV_2D", [IMAGE], real(6, 3, 3, 4), real(6),
                options="Conv2DOptions", Padding=padding, StrideH=stride, StrideW=stride,
                DilationHFactor=dilation, DilationWFactor=dilation, FusedActivationFunction=1,
            )  # fmt: skip
            case(
                f"depthwise-p{padding}s{stride}d{dilation}", "DEPTHWISE_CONV_2D", [IMAGE],
                real(1, 3, 2, 8), real(8), options="DepthwiseConv2DOptions", Padding=padding,
                StrideH=stride, StrideW=stride, DepthMultiplier=2, DilationHFactor=dilation,
                DilationWFactor=dilation, FusedActivationFunction=3,
            )  # fmt: skip
        case(
            f"transpose-conv-p{padding}s{stride}", "TRANSPOSE_CONV", [],
            ints(1, *((7 * stride, 9 * stride) if padding == SAME else (6 * stride + 3, 8 * stride + 3)), 5),
            real(5, 3, 3, 4), "input", options="TransposeConvOptions", Padding=padding,
            StrideH=stride, StrideW=stride,
        )  # fmt: skip
        for op in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
            case(
                f"{op}-p{padding}s{stride}", op, [IMAGE], options="Pool2DOptions", Padding=padding,
                StrideH=stride, StrideW=stride, FilterHeight=3, FilterWidth=2,
            )  # fmt: skip
case(
    "fully-connected",
    "FULLY_CONNECTED",
    [(3, 8)],
    real(5, 8),
    real(5),
    options="FullyConnectedOptions",
    FusedActivationFunction=1,
)
case(
    "fully-connected-4d",
    "FULLY_CONNECTED",
    [(1, 2, 3, 8)],
    real(5, 8),
    options="FullyConnectedOptions",
    KeepNumDims=True,
)
case(
    "fully-connected-flat",
    "FULLY_CONNECTED",
    [(1, 2, 2, 4)],
    real(5, 16),
    real(5),
    options="FullyConnectedOptions",
)
for op, options in (("ADD", "AddOptions"), ("SUB", "SubOptions"), ("MUL", "MulOptions")):
    case(op, op, [IMAGE, IMAGE], options=options, FusedActivationFunction=1)
    case(f"{op}-channel", op, [IMAGE], real(4), options=options, FusedActivationFunction=3)
case("DIV", "DIV", [IMAGE], real(4, low=0.5, high=2), options="DivOptions")
for op in ("MAXIMUM", "MINIMUM"):
    case(op, op, [IMAGE, (1, 1, 1, 4)], options="MaximumMinimumOptions")
case("SQUARED_DIFFERENCE", "SQUARED_DIFFERENCE", [IMAGE, IMAGE], options="SquaredDifferenceOptions")
for op in ("RELU", "RELU6", "RELU_N1_TO_1", "LOGISTIC", "TANH", "ABS", "NEG", "EXP", "FLOOR", "CEIL",
           "ROUND", "SIN", "COS", "ELU", "SQUARE"):  # fmt: skip
    case(op, op, [IMAGE])
case("HARD_SWISH", "HARD_SWISH", [IMAGE], options="HardSwishOptions")
case("GELU", "GELU", [IMAGE], options="GeluOptions", Approximate=False)
case("LEAKY_RELU", "LEAKY_RELU", [IMAGE], options="LeakyReluOptions", Alpha=0.2)
case("PRELU", "PRELU", [IMAGE], real(1, 1, 4))
for axis in ([1, 2], [3], [2], [-1, 0]):
    for keep in (False, True):
        for op in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
            case(
                f"{op}-{axis}-{keep}",
                op,
                [(2, 7, 9, 4)],
                ints(*axis),
                options="ReducerOptions",
                KeepDims=keep,
            )
case("RESHAPE", "RESHAPE", [IMAGE], ints(7, 36), options="ReshapeOptions", NewShape=[7, 36])
case("SQUEEZE", "SQUEEZE", [(1, 1, 5)], options="SqueezeOptions", SqueezeDims=[0])
case("EXPAND_DIMS", "EXPAND_DIMS", [(2, 5)], ints(1), options="ExpandDimsOptions")
case("SOFTMAX", "SOFTMAX", [(2, 10)], options="SoftmaxOptions", Beta=1.0)
case("SOFTMAX-beta", "SOFTMAX", [(2, 3, 10)], options="SoftmaxOptions", Beta=0.5)
case("LOG_SOFTMAX", "LOG_SOFTMAX", [(2, 10)], options="LogSoftmaxOptions")
case("L2_NORMALIZATION", "L2_NORMALIZATION", [(2, 10)], options="L2NormOptions")
case("CONCATENATION", "CONCATENATION", [IMAGE, IMAGE], options="ConcatenationOptions", Axis=3)
case("CONCATENATION-1", "CONCATENATION", [IMAGE, IMAGE], options="ConcatenationOptions", Axis=-3)
case("PAD", "PAD", [IMAGE], ints([0, 0], [1, 2], [3, 0], [0, 1]), options="PadOptions")
case(
    "PADV2",
    "PADV2",
    [IMAGE],
    ints([0, 0], [1, 2], [3, 0], [0, 1]),
    ("real", np.float32(0.5)),
    options="PadV2Options",
)
for mode in (0, 1):
    case(
        f"MIRROR_PAD-{mode}",
        "MIRROR_PAD",
        [IMAGE],
        ints([0, 0], [1, 2], [3, 0], [0, 1]),
        options="MirrorPadOptions",
        Mode=mode,
    )
for align, half in ((False, False), (True, False), (False, True)):
    for size in ((14, 18), (10, 5)):
        case(
            f"bilinear-{align}-{half}-{size}",
            "RESIZE_BILINEAR",
            [IMAGE],
            ints(*size),
            options="ResizeBilinearOptions",
            AlignCorners=align,
            HalfPixelCenters=half,
        )
        case(
            f"nearest-{align}-{half}-{size}",
            "RESIZE_NEAREST_NEIGHBOR",
            [IMAGE],
            ints(*size),
            options="ResizeNearestNeighborOptions",
            AlignCorners=align,
            HalfPixelCenters=half,
        )
case("TRANSPOSE", "TRANSPOSE", [IMAGE], ints(0, 3, 1, 2), options="TransposeOptions")
case("SLICE", "SLICE", [IMAGE], ints(0, 1, 2, 1), ints(1, 4, -1, 2), options="SliceOptions")
case(
    "STRIDED_SLICE",
    "STRIDED_SLICE",
    [IMAGE],
    ints(0, 1, 8, 1),
    ints(1, -1, 0, 4),
    ints(1, 2, -3, 1),
    options="StridedSliceOptions",
    BeginMask=1,
    EndMask=8,
)
case(
    "STRIDED_SLICE-shrink",
    "STRIDED_SLICE",
    [IMAGE],
    ints(0, -2, 0, 1),
    ints(1, 0, 9, 4),
    ints(1, 1, 1, 1),
    options="StridedSliceOptions",
    EndMask=4,
    ShrinkAxisMask=2,
)
case("GATHER", "GATHER", [IMAGE], ints(3, 0, 1), options="GatherOptions", Axis=3)
case("GATHER_ND", "GATHER_ND", [(4, 5)], ints([0, 1], [3, 2]), options="GatherNdOptions")
case(
    "DEPTH_TO_SPACE", "DEPTH_TO_SPACE", [(1, 3, 5, 12)], options="DepthToSpaceOptions", BlockSize=2
)
case("SPACE_TO_DEPTH", "SPACE_TO_DEPTH", [(1, 4, 6, 3)], options="SpaceToDepthOptions", BlockSize=2)
case(
    "SPACE_TO_BATCH_ND",
    "SPACE_TO_BATCH_ND",
    [(2, 5, 6, 3)],
    ints(2, 3),
    ints([1, 0], [2, 1]),
    options="SpaceToBatchNDOptions",
)
case(
    "BATCH_TO_SPACE_ND",
    "BATCH_TO_SPACE_ND",
    [(12, 3, 3, 2)],
    ints(2, 3),
    ints([1, 0], [2, 1]),
    options="BatchToSpaceNDOptions",
)
case("BATCH_MATMUL", "BATCH_MATMUL", [(2, 3, 4), (2, 4, 5)], options="BatchMatMulOptions")
case(
    "BATCH_MATMUL-adj",
    "BATCH_MATMUL",
    [(2, 4, 3), (2, 5, 4)],
    options="BatchMatMulOptions",
    AdjX=True,
    AdjY=True,
)
case("PACK", "PACK", [(3, 4), (3, 4)], options="PackOptions", ValuesCount=2, Axis=1)
case("TILE", "TILE", [(2, 3)], ints(2, 2), options="TileOptions")
case("BROADCAST_TO", "BROADCAST_TO", [(2, 1, 3)], ints(2, 4, 3), options="BroadcastToOptions")
case("CUMSUM", "CUMSUM", [(3, 4)], np.array(1, np.int32), options="CumsumOptions", Exclusive=True)
case("REVERSE_V2", "REVERSE_V2", [(3, 4)], ints(1), options="ReverseV2Options")
for op in ("SQRT", "RSQRT", "LOG"):
    case(f"{op}+", op, [IMAGE])
case("POW+", "POW", [IMAGE], real(4), options="PowOptions")
case("FLOOR_DIV+", "FLOOR_DIV", [IMAGE], real(4, low=0.2, high=1), options="FloorDivOptions")
case("FLOOR_MOD+", "FLOOR_MOD", [IMAGE], real(4, low=0.2, high=1), options="FloorModOptions")

# several outputs, or an output of another type
TYPED: dict[str, tuple[str, list[tuple[int, ...]], list[Any], list[Any], str, dict[str, Any]]] = {
    "SPLIT": (
        "SPLIT",
        [IMAGE],
        [np.array(3, np.int32), "input"],
        [np.float32] * 2,
        "SplitOptions",
        {"NumSplits": 2},
    ),
    "SPLIT_V": (
        "SPLIT_V",
        [IMAGE],
        [ints(1, -1, 2), np.array(3, np.int32)],
        [np.float32] * 3,
        "SplitVOptions",
        {"NumSplits": 3},
    ),
    "UNPACK": ("UNPACK", [(3, 4)], [], [np.float32] * 3, "UnpackOptions", {"Num": 3, "Axis": 0}),
    "ARG_MAX": (
        "ARG_MAX",
        [(3, 4)],
        [np.array(-1, np.int32)],
        [np.int32],
        "ArgMaxOptions",
        {"OutputType": 2},
    ),
    "ARG_MIN": (
        "ARG_MIN",
        [(3, 4)],
        [np.array(0, np.int32)],
        [np.int64],
        "ArgMinOptions",
        {"OutputType": 4},
    ),
    "TOPK_V2": (
        "TOPK_V2",
        [(3, 6)],
        [np.array(4, np.int32)],
        [np.float32, np.int32],
        "TopKV2Options",
        {},
    ),
    "CAST": ("CAST", [(3, 6)], [], [np.int32], "CastOptions", {"InDataType": 0, "OutDataType": 2}),
    "SHAPE": ("SHAPE", [(3, 6)], [], [np.int32], "ShapeOptions", {"OutType": 2}),
}
for op in ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"):
    names = {"EQUAL": "EqualOptions", "NOT_EQUAL": "NotEqualOptions", "LESS": "LessOptions",
             "LESS_EQUAL": "LessEqualOptions", "GREATER": "GreaterOptions",
             "GREATER_EQUAL": "GreaterEqualOptions"}  # fmt: skip
    TYPED[op] = (op, [(3, 6), (3, 6)], [], [np.bool_], names[op], {})

# TFLite's kernels take no integers there, or compute another function of them
FLOAT_ONLY = {
    "DIV", "SQUARED_DIFFERENCE", "FLOOR", "CEIL", "ROUND", "SIN", "COS", "SQUARE", "NEG", "EXP",
    "CUMSUM", "BROADCAST_TO", "GATHER_ND", "TILE", "SQRT+", "RSQRT+", "LOG+", "POW+",
    "FLOOR_DIV+", "FLOOR_MOD+", "ABS", "SQUEEZE", "EXPAND_DIMS", "REVERSE_V2", "RELU_N1_TO_1",
    "BATCH_MATMUL", "BATCH_MATMUL-adj",
}  # fmt: skip
# the same bits in and out: TFLite demands one quantization for both
MOVES = ("RESHAPE", "CONCAT", "PAD", "MIRROR", "nearest", "bilinear", "TRANSPOSE", "SLICE", "STRIDED",
         "GATHER", "DEPTH", "SPACE", "BATCH_TO", "PACK", "MAX_POOL", "AVERAGE_POOL", "REDUCE_M",
         "MAXIMUM", "MINIMUM")  # fmt: skip


def _input_late(consts: list[Any]) -> bool:
    """Whether the operator takes constants before its input, as "input" among them says."""
    return any(isinstance(c, str) for c in consts)


def _feeds(name: str, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    rng = np.random.default_rng(len(name))
    low = 0.1 if name.endswith("+") else -4.0
    return [rng.uniform(low, 4, s).astype(np.float32) for s in shapes]


@pytest.mark.parametrize("name", CASES)
def test_float(tfl: Any, name: str) -> None:
    op, shapes, consts, options, values = CASES[name]
    net = tfl.Net()
    late = _input_late(consts)
    shapes = shapes or [IMAGE]
    inputs = [net.input(s) for s in shapes]
    more = [
        inputs[0] if isinstance(c, str) else net.const(c[1] if isinstance(c, tuple) else c)
        for c in consts
    ]
    y = net.tensor(())
    net.outputs = [y]
    net.op(op, more if late else inputs + more, [y], options, **values)
    data = tfl.settle(net)
    feeds = _feeds(name, shapes)
    (expected,) = tfl.Interpreter(data).run(*feeds)
    (found,) = tfl.run(tfl.imported(data), *feeds)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TYPED)
def test_other_types(tfl: Any, name: str) -> None:
    op, shapes, consts, dtypes, options, values = TYPED[name]
    net = tfl.Net()
    inputs = [net.input(s) for s in shapes]
    more = [inputs[0] if isinstance(c, str) else net.const(c) for c in consts]
    net.outputs = [net.tensor((), d) for d in dtypes]
    net.op(op, more if _input_late(consts) else inputs + more, net.outputs, options, **values)
    data = tfl.settle(net)
    feeds = [np.round(f) for f in _feeds(name, shapes)]
    for expected, found in zip(
        tfl.Interpreter(data).run(*feeds), tfl.run(tfl.imported(data), *feeds), strict=True
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def _quantized(name: str, tfl: Any, dtype: Any) -> tuple[bytes, list[np.ndarray]]:
    """The case with everything quantized, and inputs that fill the range."""
    op, shapes, consts, options, values = CASES[name]
    late = _input_late(consts)
    shapes = shapes or [IMAGE]
    net, low = tfl.Net(), np.iinfo(dtype).min
    sx, zx = 8 / 255, low + 128 + 5
    moves = name.startswith(MOVES)
    inputs = [
        net.input(s, dtype, scale=[sx * (1 if moves else 1 + 0.5 * k)], zero_point=[zx])
        for k, s in enumerate(shapes)
    ]
    more: list[int] = []
    convolves = op in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
    sw = np.zeros(1)
    for c in consts:
        if isinstance(c, str):
            more.append(inputs[0])
        elif not isinstance(c, tuple):
            more.append(net.const(c))
        elif convolves and c[1].ndim > 1:
            axis = 3 if op == "DEPTHWISE_CONV_2D" else 0
            if dtype == np.int8:
                others = tuple(a for a in range(c[1].ndim) if a != axis)
                sw = np.abs(c[1]).max(axis=others if op != "FULLY_CONNECTED" else None) / 127
                sw = np.atleast_1d(sw).astype(np.float32)
                side = [1] * c[1].ndim
                side[axis] = -1
                q = np.round(c[1] / sw.reshape(side)).astype(np.int8)
                zeros = [0] * sw.size
            else:
                sw, zeros = np.array([2 / 255], np.float32), [127]
                q = np.clip(np.round(c[1] / sw) + 127, 0, 255).astype(np.uint8)
            more.append(net.const(q, scale=sw, zero_point=zeros, axis=axis))
        elif convolves:
            sb = (np.float32(sx) * sw).astype(np.float32)
            q = np.round(c[1] / sb).astype(np.int32)
            more.append(net.const(q, scale=sb, zero_point=[0] * sb.size))
        else:
            s, z = (sx, zx) if op == "PADV2" else (2 / 255, low + 127)
            q = np.clip(np.round(c[1] / np.float32(s)) + z, low, low + 255).astype(dtype)
            more.append(net.const(q, scale=[s], zero_point=[z]))
    if name == "ELU" and dtype == np.uint8:
        raise RuntimeError("no kernel of ELU for uint8")
    span = {"LOGISTIC": (1 / 256, low), "SOFTMAX": (1 / 256, low), "SOFTMAX-beta": (1 / 256, low),
            "TANH": (1 / 128, low + 128), "LOG_SOFTMAX": (16 / 256, low + 255),
            "L2_NORMALIZATION": (1 / 128, low + 128)}.get(name)  # fmt: skip
    if span is None:
        count = np.prod([(2, 7, 9, 4)[a] for a in consts[0]]) if op == "SUM" else 1
        wide = {"SUM": 1.3 * count**0.5, "MUL": 3.0, "FULLY": 3.0, "conv": 4.0, "depthw": 2.0, "transp": 3.0,
                "MEAN": 0.5}  # fmt: skip
        factor = next((v for k, v in wide.items() if name.startswith(k)), 1.3)
        span = (sx, zx) if moves else (sx * factor, low + 128 - 7)
    y = net.tensor((), dtype, scale=[span[0]], zero_point=[span[1]])
    net.outputs = [y]
    net.op(op, more if late else inputs + more, [y], options, **values)
    rng = np.random.default_rng(len(name))
    feeds = [rng.integers(low, low + 256, s).astype(dtype) for s in shapes]
    return tfl.settle(net), feeds


@pytest.mark.parametrize("dtype", [np.int8, np.uint8], ids=["int8", "uint8"])
@pytest.mark.parametrize("name", sorted(set(CASES) - FLOAT_ONLY))
def test_quantized(tfl: Any, name: str, dtype: Any) -> None:
    """At most one unit: TFLite multiplies by 31-bit integers and rounds twice, half away from zero."""
    try:
        data, feeds = _quantized(name, tfl, dtype)
    except RuntimeError as error:
        assert dtype == np.uint8, str(error)
        pytest.skip(f"TFLite has no such kernel: {str(error).splitlines()[0][:80]}")
    # the reference kernel of SUM forgets the scales of int8 (it takes them for uint8)
    plain = CASES[name][0] == "SUM" and dtype == np.int8
    (expected,) = tfl.Interpreter(data, kind="plain" if plain else "reference").run(*feeds)
    (found,) = tfl.run(tfl.imported(data), *feeds)
    assert found.dtype == dtype and found.shape == expected.shape
    off = np.abs(found.astype(int) - expected.astype(int))
    assert np.unique(expected).size > 2
    assert off.max() <= 1, f"{(off > 1).mean():.1%} of the outputs differ by up to {off.max()}"
    if name.startswith(MOVES) and not name.startswith(("AVERAGE", "bilinear")):
        assert off.max() == 0
