"""What a backend is: from a model to the files of an artifact for one target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import onnx_ir as ir

from effc.core.artifact import Artifact
from effc.core.errors import ConfigError, DeviceError, Problem
from effc.core.measure import Device, Feeds
from effc.core.target import Target

L = TypeVar("L")  # what the backend lowers to: Program, INetworkDefinition, MIL program, ModelProto


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a toolchain is here; if not, why, and what to do about it."""

    ok: bool
    reason: str = ""
    hint: str = ""
    versions: Mapping[str, str] | None = None  # package -> version, when ok


@dataclass(frozen=True, slots=True)
class TuneBudget:
    """How long tuning may take, and where its records are.

    `progress(what, share)` is told what it does and how much of its time is spent.
    """

    seconds: float = 0.0  # 0: measure nothing, use the records
    trials: int = 0  # 0: any number
    records: Path | None = None  # None: the backend's own place
    progress: Callable[[str, float], None] = lambda what, done: None


class Backend(ABC, Generic[L]):
    """Lowers a model to one kind of target. Stateless: options stand in the target."""

    id: ClassVar[str]
    # whether the artifact holds its goldens (goldens.npz), to be compared again where it is finished
    keeps_goldens: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def probe(cls) -> Availability:
        """Say whether the toolchain is here. Never raises; imports the toolchain inside."""

    def accepts(self, target: Target) -> Availability:
        """Whether this backend can build for `target` here: its processor, its precision, its tools."""
        return Availability(True)

    def quantization(self, target: Target) -> str:
        """The id of the scheme (core/schemes.py) by which models are quantized for `target`; "": none."""
        return ""

    @abstractmethod
    def legalize(self, target: Target) -> str:
        """Pipeline text of the passes that make any valid model lowerable to `target`.

        Text, because passes and backends are siblings: neither imports the other.
        """

    def other_forms(self, target: Target) -> Mapping[str, str]:
        """Forms that the artifact holds beside its own: name -> the passes that make it of the float one."""
        return {}

    def attach(self, lowered: L, forms: Mapping[str, ir.Model]) -> L:
        """`lowered` with the models that the passes of `other_forms` made."""
        return lowered

    def needs_samples(self, target: Target) -> str:
        """Why a build for `target` can't do with made-up samples; "" where it can."""
        return ""

    @abstractmethod
    def check(self, model: ir.Model, target: Target) -> Sequence[Problem]:
        """Every node that `lower` would refuse, within seconds and without compiling."""

    @abstractmethod
    def lower(self, model: ir.Model, target: Target) -> L:
        """Lower the legalized `model`, which it leaves alone; UnsupportedOpError lists every problem."""

    def tune(
        self,
        lowered: L,
        target: Target,
        budget: TuneBudget,
        device: Device,
        feeds: Feeds | None = None,
    ) -> L:
        """A faster `lowered` within `budget`, measured on `device` with the inputs `feeds`.

        By default the same. An interrupt (Ctrl-C) ends the search, and what was found until then counts.
        """
        return lowered

    @abstractmethod
    def compile(self, lowered: L, target: Target, out: Path) -> Mapping[str, Path]:
        """Write the deployable files below the folder `out`; role ("library", "header", ...) -> path."""

    @abstractmethod
    def devices(self, target: Target) -> Iterable[Device]:
        """Where an artifact for `target` can run from here; empty when nowhere."""

    def device_at(self, target: Target, address: str) -> Device:
        """The device at an address that the user names, like serial:///dev/ttyACM0; else ConfigError."""
        raise ConfigError(
            f"artifacts of the backend {self.id!r} do not run on {address!r}",
            hint="without --device they run where they can be run from here",
        )

    def further_shapes(self, target: Target) -> Sequence[Mapping[str, tuple[int, ...]]]:
        """Shapes of inputs, besides the usual ones, that the artifact takes; each is verified like those."""
        return ()

    def why_no_device(self, target: Target) -> str:
        """The reason when `devices` is empty: it stands in the verdict `not run`."""
        return f"no device for {target.profile.name} is reachable from this machine"

    def times(self, device: Device) -> bool:
        """Whether times on `device` mean anything."""
        return True

    def finish(self, artifact: Artifact) -> Artifact:
        """Do on the device what the build could not do elsewhere: compile, verify, measure.

        Returns the artifact with its new manifest, not yet written. DeviceError where this is not the device.
        """
        raise DeviceError(
            f"artifacts of the backend {self.id!r} are complete when they are built",
            hint="effc bench measures them",
        )

    def finish_on(self, artifact: Artifact, address: str, config: Path | None = None) -> Artifact:
        """`finish` on the device at `address`, like ssh://user@host:22, without effc there.

        `config` is another configuration file for ssh.
        """
        raise DeviceError(
            f"the backend {self.id!r} does not finish artifacts on other machines",
            hint="run effc finish on the device itself",
        )

    def describe(self, lowered: L) -> dict[str, Any]:
        """Facts for the report: calls by template, arena and constant bytes, fallbacks, ..."""
        return {}
