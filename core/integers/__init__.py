"""The integer operators of domain `effc.integer`: what Q/DQ patterns become for integer kernels.

This text is the specification; `reference.py` computes it in numpy, and every backend is compared with that,
bit for bit. Passes make these operators from Q/DQ late (`integerize`), so that Q/DQ stays the one
representation up to the backend.

A quantized tensor is uint8 or int8 with one scale and zero point. Attributes hold the zero points, real
scales are already folded into multipliers. f32() is rounding to float32 (nearest, ties to even), rne() is
rounding to an integer, ties to even; nothing is contracted to fused multiply-adds.

**The rounding rule `float32`** (the default; processors with fast floating point):

    requantize(acc, m, z) = clamp(rne(f32(f32(acc) * m)) + z, low, high)

`acc` is an exact int32 (the pass proves that it can't overflow), `m` a float32: f32 of the double
sx * sw / sy. `low` and `high` hold an activation (Relu is low = zero point) and never leave the type's range.

| operator | inputs -> output | acc or value |
|---|---|---|
| Conv | x, w int8 [OC, C/g, *k], bias int32 [OC], m f32 [OC], (z) | bias + sum (x - x_zero_point) * w; outside the input x = x_zero_point |
| MatMul | x [..., K], w int8 [K, N] or 8-bit [..., K, N], bias int32 [N], m f32 [N] or [1], (z) | bias + sum (x - x_zero_point) * (w - w_zero_point) |
| Add | a, b (numpy broadcasting) | rne(f32(f32((a - a_zero_point) * a_multiplier) + f32((b - b_zero_point) * b_multiplier))) |
| Mul | a, b | (a - a_zero_point) * (b - b_zero_point), requantized by `multiplier` |
| AveragePool | x; attributes of ONNX's | sum (x - x_zero_point), requantized by f32(multiplier / f32(count)) |
| GlobalAveragePool | x | the same over all spatial positions |
| Requantize | x | x - x_zero_point, requantized by `multiplier` |
| Lookup | x, table 8-bit [256] | table[x - least value of x's type]: any function of one quantized tensor |

Attributes everywhere: `x_zero_point` (`a_`, `b_`, `w_`, `z_`), `y_zero_point`, `low`, `high`: ints; `to`: the
output's element type, UINT8 or INT8, or FLOAT for Conv, MatMul, Add: then y = f32(f32(acc) * m), without
zero point and clamp. Conv has ONNX's strides, pads, dilations, group (no auto_pad).

The optional z of Conv and MatMul is the other branch of a residual add, quantized, of the output's shape:

    q = clamp(rne(f32(f32(f32(acc) * m) + f32((z - z_zero_point) * z_multiplier))) + y_zero_point, low, high)

Operators of ONNX that only move or choose elements (MaxPool, Concat, Reshape, Flatten, Transpose, Slice, Split,
Gather, Pad with the zero point, Squeeze, Unsqueeze, Expand, Clip, nearest Resize, DepthToSpace, SpaceToDepth)
stand directly on quantized tensors where input and output share their parameters. QuantizeLinear and
DequantizeLinear remain where reals come in and go out, and keep ONNX's meaning.

**Other rules**, for the attribute `rounding` (a string, default "float32"); they replace requantize():

    tflite   TensorFlow Lite's reference kernels: m = M * 2^shift, M a 31-bit integer; doubly rounded
    fixed    cores without floating point: clamp(((acc * M + 2^(shift-1)) >> shift) + z); one rounding, halves up
"""  # noqa: E501

DOMAIN = "effc.integer"
