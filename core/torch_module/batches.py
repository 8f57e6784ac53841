"""Samples that run as one batch where the graph allows it, and one after the other where it does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from effc.core.torch_module.module import TorchModule

Values = dict[str, Tensor]


def batchable(module: TorchModule, samples: Sequence[Values], outputs: Sequence[str]) -> bool:
    """Whether two of `samples` can run as one batch: constants of the graph may hold its own batch."""
    two = samples[:2]
    if len(two) < 2 or any(v.ndim == 0 for v in two[0].values()):
        return False
    with torch.no_grad():
        alone = [module(v, outputs) for v in two]
        try:
            made = module({n: torch.cat([v[n] for v in two]) for n in two[0]}, outputs)
        except Exception:  # whatever torch says of shapes that don't fit
            return False
    return all(
        a[n].ndim > 0
        and made[n].shape[0] == a[n].shape[0] + b[n].shape[0]
        and torch.allclose(made[n], torch.cat([a[n], b[n]]), rtol=1e-3, atol=1e-3)
        for a, b in [alone]
        for n in outputs
    )


def run_batch(
    module: TorchModule, samples: Sequence[Values], outputs: Sequence[str], *, together: bool
) -> Values:
    """The `outputs` for all `samples`, joined along axis 0; `together`: computed as one batch."""
    if together:
        made: Values = module({n: torch.cat([v[n] for v in samples]) for n in samples[0]}, outputs)
        return made
    return joined([module(v, outputs) for v in samples])


def joined(parts: Sequence[Values]) -> Values:
    """Values of several samples along axis 0; scalars become vectors."""
    return {n: torch.cat([p[n] if p[n].ndim else p[n][None] for p in parts]) for n in parts[0]}
