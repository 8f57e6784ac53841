"""The integer operators of domain `effc.integer`: what Q/DQ patterns become for integer kernels.

This text is the specification; `reference.py` runs it in numpy, and every backend is compared with that,
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
| Conv | x, w int8 [OC, C/g, *k], bias int32 [OC], m [OC] or [1], (z) | bias + sum (x - x_zero_point) * w; outside the input x = x_zero_point |
| ConvTranspose | x, w int8 [C, OC/g, *k], bias, m, (z) | the same, ONNX's ConvTranspose |
| MatMul | x [..., K], w int8 [K, N] or 8-bit [..., K, N], bias int32 [N], m [N] or [1], (z) | bias + sum (x - x_zero_point) * (w - w_zero_point) |
| Add | a, b (numpy broadcasting) | rne(f32(f32((a - a_zero_point) * a_multiplier) + f32((b - b_zero_point) * b_multiplier))) |
| Mul | a, b | (a - a_zero_point) * (b - b_zero_point), requantized by `multiplier` |
| AveragePool | x; attributes of ONNX's | sum (x - x_zero_point), requantized by f32(multiplier / f32(count)) |
| GlobalAveragePool | x | the same over all spatial positions |
| Requantize | x | x - x_zero_point, requantized by `multiplier` |
| Lookup | x, table 8-bit [256] | table[x - least value of x's type]: any function of one quantized tensor |

`bias` may be absent (an empty input). `m` is float32. Attributes everywhere: `x_zero_point` (`a_`, `b_`, `w_`,
`z_`), `y_zero_point`, `low`, `high`: ints; `to`: the output's element type, UINT8 or INT8, or FLOAT for Conv,
ConvTranspose, MatMul, Add: then y = f32(f32(acc) * m) (Add: the real sum), without zero point and clamp, by
every rule. Conv has ONNX's strides, pads, dilations, group (no auto_pad). A subtraction is an Add whose
b_multiplier is negative.

The optional z of Conv and MatMul is the other branch of a residual add, quantized, of the output's shape:

    q = clamp(rne(f32(f32(f32(acc) * m) + f32((z - z_zero_point) * z_multiplier))) + y_zero_point, low, high)

Operators of ONNX that only move or choose elements (MaxPool, Concat, Reshape, Flatten, Transpose, Slice, Split,
Gather, Pad with the zero point, Squeeze, Unsqueeze, Expand, Clip, nearest Resize, DepthToSpace, SpaceToDepth)
stand directly on quantized tensors where input and output share their parameters. QuantizeLinear and
DequantizeLinear remain where reals come in and go out, and keep ONNX's meaning.

**Other rules**, for the attribute `rounding` (a string, default "float32"). They replace requantize() and write
a multiplier as two integers M and s: `m` is then int32 [2, OC] or [2, 1], an attribute the ints [M, s].

`tflite`: TensorFlow Lite's reference kernels (`rounding.twice_rounded`): m = M * 2^(s - 31), 2^30 <= M < 2^31.

    requantize(acc, m, z) = clamp(halves away from zero(trunc((acc * 2^max(s, 0) * M + nudge) / 2^31) / 2^max(-s, 0)) + z)

    nudge is 2^30 for products >= 0, 1 - 2^30 below. Add: both operands times 2^left_shift, each requantized by
    its multiplier, the sum requantized by `multiplier`. AveragePool: the mean of the stored values, halves away
    from zero (both parameters equal). GlobalAveragePool: MEAN's rule, the count k divides M before: with
    n = min(floor(log2 k), 32, 31 + s), M' = (M << n) / k rounded down, s' = s - n. No z. A dense layer
    (FULLY_CONNECTED) rounds once there: passes give a MatMul with constant w the rule `fixed`, with the same M.

`fixed`: cores without floating point; m = M * 2^-s, rounded once, halves up:

    requantize(acc, m, z) = clamp(((acc * M + 2^(s-1)) >> s) + z)      in 64 bits

    M = floor(m * 2^s + 1/2). Passes take s = 32 where 2^-17 <= m < 1/2 (one rounding high multiplication), else s
    (averages: always) such that 2^30 <= M < 2^31; kernels take any pair with M < 2^31 and s <= 62. Add has one s for both operands
    and M <= 2^21, in 32 bits: clamp((((a - az) * Ma + (b - bz) * Mb + 2^(s-1)) >> s) + z). AveragePool divides M by the
    count k: floor((M + floor(k / 2)) / k). With z (z_multiplier [Mz, sz], Mz <= 2^22, sz <= every s):
    clamp(((acc * M + (((z - z_zero_point) * Mz) << (s - sz)) + 2^(s-1)) >> s) + y_zero_point).
"""  # noqa: E501

DOMAIN = "effc.integer"
