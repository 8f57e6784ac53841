"""firmware.json: what a runner has to know of a firmware that its ELF does not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from effc.backends.tvm.mcu.device.firmware import MemoryMap
from effc.backends.tvm.mcu.device.sources import Layer, Sources
from effc.backends.tvm.mcu.program import Border, border_of
from effc.core.errors import DeviceError

FILE = "firmware.json"


class Description(msgspec.Struct, frozen=True):
    """The tensors, the layers in the order of their calls, and the linked sizes."""

    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    layers: tuple[Layer, ...]
    map: MemoryMap

    @property
    def borders(self) -> tuple[tuple[Border, ...], tuple[Border, ...]]:
        """Inputs and outputs."""
        inputs, outputs = (tuple(map(border_of, d)) for d in (self.inputs, self.outputs))
        return inputs, outputs


def describe(sources: Sources, linked: MemoryMap) -> Description:
    """What a runner has to know of `sources`."""
    inputs, outputs = (
        tuple(p.border.describe() for p in ports) for ports in (sources.inputs, sources.outputs)
    )
    return Description(inputs, outputs, sources.layers, linked)


def write_description(folder: Path, description: Description) -> Path:
    """Write it; the same description gives the same bytes."""
    path = folder / FILE
    path.write_bytes(msgspec.json.format(msgspec.json.encode(description), indent=1) + b"\n")
    return path


def read_description(folder: Path) -> Description:
    """Read it back; DeviceError where it is missing or not of this version."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Description)
    except (OSError, msgspec.DecodeError) as error:
        raise DeviceError(
            f"{str(path)!r} can't be read: {error}", hint="build the artifact again"
        ) from error
