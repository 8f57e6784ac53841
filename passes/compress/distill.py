"""Training that needs no labels: the compressed model learns to answer as the original does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.core.data import Samples
from effc.core.errors import ConfigError
from effc.core.extras import require
from effc.core.ir import Array, shape_of

_BATCH = 50
_SHIFT = 8  # an image is moved by at most 1/8 of its extent
_FEATURES = ("Relu", "Add", "Clip", "LeakyRelu", "HardSwish", "Gelu")


def distill(
    model: ir.Model,
    original: ir.Model,
    samples: Samples,
    frozen: Mapping[str, Array],
    *,
    epochs: int,
    rate: float,
    seed: int = 0,
) -> float:
    """Train the float constants of `model` so that it answers as `original`; the last epoch's loss.

    The loss is the mean square difference of the outputs and of inner activations that both models
    name alike, each divided by the teacher's variance. Elements of a constant where `frozen` is true
    keep their value. Images (one input [1, C, H, W]) are mirrored and moved by up to an eighth. Adam,
    the rate falling as a cosine. Deterministic for a seed. Han et al. 2015 (retraining, centroids
    included); Hinton et al., arXiv 1503.02531; Romero et al., arXiv 1412.6550 (inner activations).
    """
    (torch,) = require("training after compression", "torch", "torch")
    from effc.core.torch_module.module import TorchModule, write_back

    feeds = _load(model, samples)
    count = len(next(iter(feeds.values())))
    student, teacher = TorchModule.from_ir(model), TorchModule.from_ir(original)
    wanted = _shared(model, original)
    parameters = list(student.weights.values())
    keep = {
        student.weights[n]: torch.from_numpy(np.array(m, bool))
        for n, m in frozen.items()
        if n in student.weights
    }
    fixed = {p: p.detach()[m].clone() for p, m in keep.items()}
    optimizer = torch.optim.Adam(parameters, lr=rate)
    rng = np.random.default_rng(seed)
    batch = min(_BATCH, count)
    steps, done, loss = epochs * math.ceil(count / batch), 0, 0.0
    for _ in range(epochs):
        order = rng.permutation(count)
        loss = 0.0
        for begin in range(0, count, batch):
            for group in optimizer.param_groups:
                group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * done / steps))
            some = _augmented({k: v[order[begin : begin + batch]] for k, v in feeds.items()}, rng)
            inputs = {k: torch.from_numpy(v) for k, v in some.items()}
            with torch.no_grad():
                right = teacher(inputs, wanted)
            error = _difference(student(inputs, wanted), right, torch)
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            with torch.no_grad():
                for parameter, mask in keep.items():
                    parameter[mask] = fixed[parameter]
            loss += error.item() * len(order[begin : begin + batch]) / count
            done += 1
    write_back(student, model)
    return loss


def _load(model: ir.Model, samples: Samples) -> dict[str, Array]:
    """All samples, put together along the first axis."""
    for value in model.graph.inputs:
        shape = shape_of(value)
        if not shape or shape[0] != 1:
            raise ConfigError(
                f"training after compression needs inputs [1, ...], and {value.name!r} is {shape}",
                hint="fix the batch to 1 with --shape, or leave the option tune out",
            )
    parts: dict[str, list[Array]] = {}
    for feeds in samples:
        for name, array in feeds.items():
            parts.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _shared(model: ir.Model, original: ir.Model) -> list[str]:
    """The outputs, and inner values of the same name that activations and sums make in both."""
    theirs = {str(o.name) for n in original.graph for o in n.outputs}
    inner = [
        str(n.outputs[0].name)
        for n in model.graph
        if n.op_type in _FEATURES and str(n.outputs[0].name) in theirs
    ]
    outputs = [str(o.name) for o in model.graph.outputs if o.dtype == ir.DataType.FLOAT]
    return list(dict.fromkeys([*outputs, *inner]))


def _difference(found: Mapping[str, Any], right: Mapping[str, Any], torch: Any) -> Any:
    """The outputs weigh as much as all inner activations together."""
    terms = []
    for name, value in right.items():
        scale = value.var() + 1e-12
        terms.append(torch.mean((found[name] - value) ** 2) / scale)
    names = list(right)
    outer = [t for n, t in zip(names, terms, strict=True) if right[n].dim() < 3]
    inner = [t for n, t in zip(names, terms, strict=True) if right[n].dim() >= 3]
    return sum(outer) + (sum(inner) / len(inner) if inner else 0.0)


def _augmented(feeds: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    (first, *others) = feeds
    x = feeds[first]
    if others or x.ndim != 4 or x.shape[1] not in (1, 3) or x.dtype != np.float32:
        return feeds
    images = np.where(rng.random((len(x), 1, 1, 1)) < 0.5, x[..., ::-1], x)
    dy, dx = max(1, x.shape[2] // _SHIFT), max(1, x.shape[3] // _SHIFT)
    padded = np.pad(images, ((0, 0), (0, 0), (dy, dy), (dx, dx)), mode="reflect")
    out = np.empty_like(x)
    for i, (top, left) in enumerate(
        zip(
            rng.integers(0, 2 * dy, len(x), endpoint=True),
            rng.integers(0, 2 * dx, len(x), endpoint=True),
            strict=True,
        )
    ):
        out[i] = padded[i, :, top : top + x.shape[2], left : left + x.shape[3]]
    return {first: out}
