"""Hardware profiles (facts about one device, one TOML a board) and targets (a profile plus choices)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from effc.core.preprocess import Preprocess


class Number(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure and where it comes from."""

    value: float
    basis: Literal[
        "measured", "datasheet"
    ]  # a datasheet's figure may be computed: `source` says how
    source: str  # the document, or the command that measured it


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One memory or cache: `bytes`, and `bandwidth` in bytes per second."""

    name: str  # "L1d", "L2", "L3", "DRAM", "SRAM", "flash", "TCM", ...
    bytes: Number
    bandwidth: Number | None = None
    shared_by: int = 1  # cores


class HardwareProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Measured or published facts about one device; every number says which."""

    name: str
    title: str
    vendor: str
    backend: str  # id of the backend that builds for it
    triple: str  # LLVM target triple, e.g. "x86_64-linux-gnu"
    mcpu: str = ""  # LLVM -mcpu
    features: tuple[str, ...] = ()  # ISA features by LLVM's names, e.g. "avx512vnni"
    source: str = ""  # the document that `cores` and `features` come from; a TOML must name it
    cores: int = 1  # CPU cores that compute; streaming multiprocessors of a GPU
    frequency: Number | None = None  # Hz
    memories: tuple[Memory, ...] = ()
    peak: Mapping[str, Number] = {}  # dtype -> multiply-accumulates per second, all cores
    toolchain: Mapping[
        str, str
    ] = {}  # facts for the backend, e.g. cc = "arm-none-eabi-gcc", sm = "87"
    aliases: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A profile with the user's choices."""

    profile: HardwareProfile
    precision: str = "fp32"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)  # of the backend, as it defines them
    preprocess: Preprocess | None = None  # how pictures become the input, where that is known
    about: Mapping[str, str] = field(default_factory=dict)  # of the source, for metadata
