"""A small training loop: for quantization-aware training, fine-tuning, distillation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effc.core.errors import ConfigError


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads: the same count gives the same bits, and more wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Training:
    """How `finetune` trains. `rate` falls along a cosine to `last_rate` times itself."""

    epochs: int = 10
    batch: int = 32  # samples
    rate: float = 1e-3
    last_rate: float = 0.01  # of `rate`
    optimizer: str = "adam"  # or sgd
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Progress:
    """After an epoch: its number from 1, of how many, and the mean loss."""

    epoch: int
    epochs: int
    loss: float


# the indices of a batch's samples -> the loss, differentiable
Loss = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Group:
    """Parameters that learn at `factor` times the rate."""

    parameters: Sequence[nn.Parameter]
    factor: float = 1.0


def finetune(
    parameters: Sequence[nn.Parameter] | Sequence[Group],
    count: int,
    loss: Loss,
    training: Training,
    on_epoch: Callable[[Progress], bool | None] = lambda progress: None,
) -> list[float]:
    """Train `parameters` on `count` samples, shuffled anew each epoch; the mean loss of every epoch.

    `loss` is called with the indices of a batch. `on_epoch` hears of every epoch and stops the training by
    returning False. After an interrupt (KeyboardInterrupt, or any error) the parameters are those of the
    best epoch completed, and the interrupt goes on. The same seed and threads give the same bits.
    """
    groups = [g if isinstance(g, Group) else Group([g]) for g in parameters]
    chosen = [p for g in groups for p in g.parameters if p.requires_grad]
    if not chosen or count < 1:
        raise ConfigError("finetune: there is nothing to train, or nothing to train on")
    optimizer, factors = _optimizer(groups, training)
    random = torch.Generator().manual_seed(training.seed)
    per_epoch = math.ceil(count / training.batch)
    total, step = per_epoch * training.epochs, 0
    losses: list[float] = []
    kept = [p.detach().clone() for p in chosen]
    try:
        with threads(training.threads):
            for epoch in range(training.epochs):
                order = torch.randperm(count, generator=random).tolist()
                seen = 0.0
                for at in range(0, count, training.batch):
                    share = 0.5 * (1 + math.cos(math.pi * step / total))
                    rate = training.rate * (training.last_rate + (1 - training.last_rate) * share)
                    for group, factor in zip(optimizer.param_groups, factors, strict=True):
                        group["lr"] = rate * factor
                    batch = order[at : at + training.batch]
                    optimizer.zero_grad()
                    value = loss(batch)
                    if not torch.isfinite(value):
                        raise ConfigError(
                            f"finetune: the loss is {float(value.detach())} in epoch {epoch + 1}",
                            hint=f"train with a rate below {training.rate:g}",
                        )
                    value.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    seen += float(value.detach()) * len(batch)
                    step += 1
                losses.append(seen / count)
                if losses[-1] == min(losses):
                    kept = [p.detach().clone() for p in chosen]
                if on_epoch(Progress(epoch + 1, training.epochs, losses[-1])) is False:
                    break
    except BaseException:
        with torch.no_grad():
            for parameter, best in zip(chosen, kept, strict=True):
                parameter.copy_(best)
        raise
    return losses


def _optimizer(
    groups: Sequence[Group], training: Training
) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimizer, and the factor of each of its groups."""
    by_factor: dict[float, list[nn.Parameter]] = {}
    for group in groups:
        found = [p for p in group.parameters if p.requires_grad]
        if found:
            by_factor.setdefault(group.factor, []).extend(found)
    parameters = [{"params": p} for p in by_factor.values()]
    rate, decay = training.rate, training.weight_decay
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay), list(by_factor)
    if training.optimizer == "sgd":
        momentum = training.momentum
        made = torch.optim.SGD(
            parameters, lr=rate, momentum=momentum, weight_decay=decay, nesterov=momentum > 0
        )
        return made, list(by_factor)
    raise ConfigError(
        f"finetune knows no optimizer {training.optimizer!r}", hint="it is adam or sgd"
    )
