"""NVIDIA GPUs as this backend sees them, read off a hardware profile."""

from __future__ import annotations

from effc.backends.tvm.isa import Isa
from effc.core.errors import ConfigError
from effc.core.target import HardwareProfile

OLDEST = 75  # the first with tensor cores for bytes


def is_gpu(profile: HardwareProfile) -> bool:
    """Whether `profile` is an NVIDIA GPU (or a board with one)."""
    return profile.vendor == "nvidia" and "sm" in profile.toolchain


def gpu_of(profile: HardwareProfile) -> Isa:
    """The GPU of `profile`. `lanes` is the channel block, `registers` those of a thread,
    `triple` that of the processor beside it, which runs the launcher.

    The block is four channels; `lower` widens it to 16 bytes of the narrowest numbers in the model.
    """
    text = profile.toolchain.get("sm", "")
    if not text.isdigit() or int(text) < OLDEST:
        raise ConfigError(
            f"target {profile.name!r}: SM {text or 'unknown'} is older than {OLDEST}",
            hint="these kernels need Turing (SM75) or a later GPU",
        )
    l2 = next((int(m.bytes.value) for m in profile.memories if m.name == "L2"), 4 << 20)
    return Isa(f"sm_{text}", 4, 255, profile.triple, "", l1=128 << 10, l2=l2)


def scalar() -> Isa:
    """What builders of scalar kernels are told: one lane, nothing special."""
    return Isa("scalar", 1, 16, "x86_64-linux-gnu", "x86-64")
