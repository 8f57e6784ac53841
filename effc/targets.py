"""Which targets there are, and how far each can be taken from this machine."""

from __future__ import annotations

import msgspec

from effc.backends import BACKENDS, make_backend
from effc.core.errors import ConfigError
from effc.core.profiles import HOST, all_profiles, load_profile
from effc.core.target import HardwareProfile, Target


class TargetRow(msgspec.Struct, frozen=True):
    """One target. Where a step can't be taken, `why` gives the reason and `hint` a remedy, if there is one.

    `build`: an artifact can be made here. `run`: it can also be run here, on the device or an emulator,
    and so be verified. `measure`: it runs on the device itself, so that latencies mean something.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    backend: str
    build: bool
    run: bool
    measure: bool
    why: str = ""
    hint: str = ""


def target_rows() -> tuple[TargetRow, ...]:
    """Every target with what can be done for it from here: the host first, then by vendor and name."""
    rows = []
    try:
        rows.append(describe_target(load_profile(HOST)))
    except ConfigError as error:
        rows.append(
            TargetRow(HOST, "this machine", (), "", False, False, False, str(error), error.hint)
        )
    return (*rows, *(describe_target(profile) for profile in all_profiles()))


def describe_target(profile: HardwareProfile) -> TargetRow:
    """Ask the backend of `profile` what can be built, run and measured from this machine."""

    def row(build: bool, run: bool, measure: bool, why: str = "", hint: str = "") -> TargetRow:
        return TargetRow(
            profile.name, profile.title, profile.aliases, profile.backend, build, run, measure, why, hint
        )  # fmt: skip

    if profile.backend not in BACKENDS.table():
        return row(
            False, False, False,
            f"this version has no backend {profile.backend!r}",
            "a plug-in can bring one: entry-point group effc.backends",
        )  # fmt: skip
    try:
        backend = make_backend(profile.backend)
    except ConfigError as error:
        return row(False, False, False, str(error), error.hint)
    target = Target(profile, threads=profile.cores)
    for availability in (backend.probe(), backend.accepts(target)):
        if not availability.ok:
            return row(False, False, False, availability.reason, availability.hint)
    devices = list(backend.devices(target))
    if not devices:
        return row(True, False, False, backend.why_no_device(target))
    if all(device.source != "device" for device in devices):
        return row(
            True, True, False, f"it runs here in {devices[0].name}, whose times mean nothing"
        )
    return row(True, True, True)
