"""Merge convolutions of one input that are added, or concatenated, into one convolution."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from effc.core.passinfra import Effect
from effc.core.rewrite import Rule
from effc.passes.fuse.branch_concats import ConcatOfBranches
from effc.passes.fuse.branch_sums import SumOfBranches
from effc.passes.fuse.rewriting import (
    RewritePass,
)


@dataclass(frozen=True)
class MergeParallelBranches(RewritePass):
    """sum_i s_i * (W_i x + b_i) + t -> W x + b, W = sum_i s_i W_i laid over each other, b alike.

    A term is a Conv with constant weights, x itself, or an AveragePool that counts its padding; the
    sum is any tree of Add, Sub, Sum, Neg, arithmetic with per-channel constants and inference batch
    norms. Kernels are embedded with zeros so that the outputs align: sizes, padding, dilations and
    groups may differ, strides may not. Other terms of the sum stay and are added. Convolutions of
    one input that are neighbours in a Concat of channels become one, also behind equal activations.

    Declines: terms that something else reads, outputs of different sizes, and sets whose merged
    kernel costs more than `max-mac-ratio` times its convolutions; then the largest takes in those
    that cost nothing.

    Sources: RepVGG, arXiv 2101.03697; ACNet, 1908.03930; DBB, 2103.13425; MobileOne, 2206.04040.
    """

    id: ClassVar[str] = "merge-parallel-branches"
    effect: ClassVar[Effect] = Effect.EXACT

    max_mac_ratio: float = field(
        default=1.0, metadata={"help": "merge up to this many times the multiply-accumulates"}
    )

    def rules(self, opset: int) -> Iterable[Rule]:
        return (
            SumOfBranches(self.max_mac_ratio, opset),
            ConcatOfBranches(self.max_mac_ratio, opset),
        )
