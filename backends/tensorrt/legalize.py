"""The passes that make a valid model one that TensorRT takes, as pipeline text."""

from __future__ import annotations

from effc.core.target import Target


def pipeline(target: Target, product: str) -> str:
    """Pipeline text for `product` (rtx, full or bundle) in the target's precision.

    A strongly typed network computes each operator in the type that the graph writes, so precision is
    settled here: exponentials and normalizations in float32, what is not quantized in half precision,
    and quantizers whose reals have the type of their neighbours.
    """
    # TensorRT for RTX 1.7.1 refuses Attention in float32, and fuses what it is made of as well
    steps = ["decompose-attention"]
    if product != "rtx":
        steps.append("narrow-indices")
    if target.precision == "bf16":
        steps.append("compute-bfloat16")
    integers = target.precision in ("int8", "w4a8", "auto")
    if integers:
        steps.append("convert-float16")
    if integers or (target.precision == "fp16" and product != "bundle"):
        steps.append("halve-scales")  # bundles hold float16 models in an opset without such scales
    return ",".join([*steps, "widen-reductions", "eliminate-dead-code"])
