"""Integers allow no tolerance: an integer program beside the numpy reference, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import onnx_ir as ir

from effc.core.artifact import Artifact, Verdict
from effc.core.integers import DOMAIN
from effc.core.measure import Device, Feeds

SAMPLES = 2

# what may stand beside integer operators in a program that has one right answer: it moves elements, or
# is defined to the last bit
_EXACT = frozenset(
    "QuantizeLinear DequantizeLinear Cast Clip Concat DepthToSpace Expand Flatten Gather Identity MaxPool "
    "Pad Relu Reshape Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze".split()
)


def beside_integers(
    verdict: Verdict, model: ir.Model, device: Device, artifact: Artifact, feeds: Sequence[Feeds]
) -> Verdict:
    """`verdict`, and that the artifact computes the legalized `model` exactly; failed where it does not.

    Of a model that computes with floats in between, only that it is bit-exact is said: where it is not,
    a sum in another order may have rounded an integer the other way. A device that counts instructions
    is an emulated board: there every sample is compared, and the reason says so first.
    """
    nodes = list(model.graph)
    if verdict.status != "passed" or not any(n.domain == DOMAIN for n in nodes):
        return verdict
    defined = all(n.domain == DOMAIN or n.op_type in _EXACT for n in nodes)
    emulated = bool(getattr(device, "counts_instructions", False))
    if not defined and not emulated:
        return verdict
    count = len(feeds) if emulated else min(SAMPLES, len(feeds))
    from effc.core.integers.reference import run

    with device.runner(artifact) as runner:
        for feed in feeds[:count]:
            right, ours = run(model, feed), runner.infer(feed)
            for name, array in right.items():
                if not np.array_equal(array, ours[name], equal_nan=True):
                    if not defined:
                        return verdict
                    share = float(np.mean(array != ours[name]))
                    return msgspec.structs.replace(
                        verdict,
                        status="failed",
                        reason=f"output {name!r} differs from the integer reference in "
                        f"{100 * share:.2g} % of its elements: the backend is wrong",
                    )
    exact = f"{verdict.reason}, bit-exact with the integer reference on {count}"
    if emulated:
        exact = f"emulator: bit-exact on {count} samples; {verdict.reason}"
    return msgspec.structs.replace(verdict, reason=exact)
