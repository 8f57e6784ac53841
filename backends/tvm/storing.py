"""How a program's constants are stored: as they are, or coded where that makes the file much smaller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from effc.backends.tvm.arena import ALIGNMENT
from effc.backends.tvm.program import Array, Packing, Program
from effc.core.grids import find_groups
from effc.core.storage import Coded, Grouped, encode_arrays

# coded constants have to be decoded when the model is loaded, into memory of their own: a quarter is
# the least that is worth it
_WORTH = 0.75


@dataclass(frozen=True, slots=True)
class Constants:
    """Constants in one piece; offsets in bytes, each aligned. `coded`, where it pays, is what is stored."""

    data: bytes
    offsets: Mapping[str, int]
    coded: Coded | None

    @property
    def stored(self) -> bytes:
        """What goes into the library."""
        return self.data if self.coded is None else self.coded.data

    def describe(self) -> dict[str, Any]:
        """Bytes for the manifest: what the kernels read, what is stored, and how."""
        facts: dict[str, Any] = {"raw_bytes": len(self.data), "stored_bytes": len(self.stored)}
        if self.coded is not None:
            facts["ratio"] = round(len(self.data) / len(self.stored), 2)
            facts["codecs"] = self.coded.codecs
        return facts


def store_constants(program: Program) -> Constants:
    """All constants one after the other, equal ones once; coded where that pays."""
    parts: list[bytes] = []
    offsets: dict[str, int] = {}
    known: dict[bytes, int] = {}
    first: list[tuple[str, int, Array]] = []
    size = 0
    for name, array in program.constants.items():
        data = np.ascontiguousarray(array).tobytes()
        if data not in known:
            known[data] = size
            first.append((name, size, array))
            padded = data + bytes(-len(data) % ALIGNMENT)
            parts.append(padded)
            size += len(padded)
        offsets[name] = known[data]
    # vectors may reach past a tensor's end into its padding, never past the blob
    whole = b"".join(parts) + bytes(ALIGNMENT)
    coded = encode_arrays(
        (
            (name, offset, array, _grouped(array, program.packings.get(name)))
            for name, offset, array in first
        ),
        len(whole),
    )
    return Constants(whole, offsets, coded if len(coded.data) <= _WORTH * len(whole) else None)


def _grouped(array: Array, packing: Packing | None) -> Grouped | None:
    """What stands behind the elements of `array`, in its own order: found in the weight, packed likewise."""
    if packing is None:
        found = find_groups(array)
        return None if found is None else _in_order(found, np.ravel)
    found = find_groups(packing.weight)
    if found is None:
        return None

    def repack(numbers: Array) -> Array:
        return packing.repack(numbers.astype(np.float32)).ravel()

    moved = _in_order(found, repack)
    return moved if moved.groups.size == array.size else None


def _in_order(found: Grouped, move: Callable[[Array], Array]) -> Grouped:
    groups = move(found.groups + 1).astype(np.int32) - 1  # packing fills up with zeros
    levels = None if found.levels is None else move(found.levels).astype(np.int32)
    return Grouped(groups, levels, found.scales)
