"""Samples: the inputs for calibration, goldens and evaluation, and how pictures become tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from effc.core.measure import Feeds


class Samples(Protocol):
    """Representative inputs. Iterating twice gives the same feeds; the fingerprint keys caches."""

    def __iter__(self) -> Iterator[Feeds]: ...

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def synthetic(self) -> bool:
        """Whether the samples were made up: the report says so."""
        ...
