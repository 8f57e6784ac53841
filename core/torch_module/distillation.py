"""A module that learns to answer as another one does, on samples without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from effc.core.torch_module.batches import Values, batchable, joined, run_batch
from effc.core.torch_module.module import TorchModule
from effc.core.torch_module.variations import is_picture, varied


class Lesson:
    """The pupil's error: squared, of every float output, over the variance of the teacher's answers.

    With `vary` the pupil trains on variations of pictures, and the teacher answers for these;
    inputs that are none stay as they are.
    """

    def __init__(
        self,
        pupil: TorchModule,
        teacher: TorchModule,
        samples: Sequence[Values],
        seed: int,
        *,
        vary: bool,
    ) -> None:
        self.pupil, self.teacher, self.samples = pupil, teacher, list(samples)
        self.seed = seed
        self.random = torch.Generator().manual_seed(seed)
        only = list(self.samples[0].values())
        self.vary = vary and len(only) == 1 and is_picture(only[0])
        with torch.no_grad():
            self.answers = [teacher(f) for f in self.samples]
        self.outputs = [n for n in pupil.output_names if self.answers[0][n].is_floating_point()]
        self.together = all(
            batchable(m, self.samples, self.outputs) for m in (self.pupil, self.teacher)
        )
        self.power = {
            n: torch.cat([w[n].flatten() for w in self.answers]).var().clamp(min=1e-20)
            for n in self.outputs
        }

    def error(self, batch: Sequence[int]) -> Tensor:
        """The error for the samples with these indices, as they are."""
        return self._error([self.samples[i] for i in batch], [self.answers[i] for i in batch])

    def error_of_variations(self, batch: Sequence[int]) -> Tensor:
        """The error for variations of the samples with these indices."""
        return self._varied_error(batch, self.random)

    def mean_error(self, at_once: int) -> float:
        """The error for all samples; with `vary` for variations of each that no training has seen."""
        total, count = 0.0, len(self.samples)
        random = torch.Generator().manual_seed(self.seed + 1)
        with torch.no_grad():
            for start in range(0, count, at_once):
                part = range(start, min(start + at_once, count))
                total += float(self._varied_error(part, random)) * len(part)
        return total / count

    def _varied_error(self, batch: Sequence[int], random: torch.Generator) -> Tensor:
        if not self.vary:
            return self.error(batch)
        samples = [{n: varied(x, random) for n, x in self.samples[i].items()} for i in batch]
        with torch.no_grad():
            wanted = run_batch(self.teacher, samples, self.outputs, together=self.together)
        return self._error(samples, [wanted])

    def _error(self, samples: Sequence[Values], answers: Sequence[Values]) -> Tensor:
        made = run_batch(self.pupil, samples, self.outputs, together=self.together)
        wanted = joined([{n: a[n] for n in self.outputs} for a in answers])
        errors = [(made[n] - wanted[n]).square().mean() / self.power[n] for n in self.outputs]
        return torch.stack(errors).sum()
