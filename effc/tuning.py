"""The step of a build that spends the user's budget: the backend tunes what it lowered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from effc.choices import BuildOptions
from effc.core.backend import Backend, TuneBudget
from effc.core.errors import ConfigError
from effc.core.measure import Device, Feeds
from effc.core.target import Target


def tuned(
    lowered: Any,
    backend: Backend[Any],
    target: Target,
    device: Device | None,
    feeds: Feeds,
    options: BuildOptions,
    progress: Callable[[str, float], None],
) -> Any:
    """What `backend` makes of `lowered` within the budget; `lowered` itself where none is asked for.

    `progress` gets what happens and the share of the budget that is spent. ConfigError where tuning is
    asked for and there is no device to measure on.
    """
    if not options.tune_seconds and options.records is None:
        return lowered
    if device is None:
        raise ConfigError(
            f"tuning measures on the device, but {backend.why_no_device(target)}",
            hint="leave --budget and --records out, or build on the device itself",
        )
    budget = TuneBudget(options.tune_seconds, records=options.records, progress=progress)
    return backend.tune(lowered, target, budget, device, feeds)
