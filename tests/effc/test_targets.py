"""effc targets: what can be built, run and measured from here, and why not."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from effc.backends.ort.backend import Host, OnnxRuntimeBackend
from effc.core.backend import Availability
from effc.core.measure import Device
from effc.core.profiles import all_profiles, load_profile
from effc.core.target import HardwareProfile, Target
from effc.targets import describe_target, target_rows


def test_every_profile_has_a_row_and_the_host_is_first() -> None:
    rows = target_rows()
    assert [r.name for r in rows] == ["host", *(p.name for p in all_profiles())]
    for row in rows:
        assert row.measure <= row.run <= row.build
        assert row.build or row.why
        assert row.measure or row.why


def board(backend: str) -> HardwareProfile:
    return HardwareProfile(
        name="b", title="B", vendor="v", backend=backend, triple="x86_64-linux-gnu", source="s"
    )


def test_a_backend_that_this_version_lacks() -> None:
    row = describe_target(board("nonesuch"))
    assert not row.build and "'nonesuch'" in row.why and row.hint


def test_onnxruntime_builds_runs_and_measures() -> None:
    row = describe_target(board("ort"))
    assert (row.build, row.run, row.measure, row.why) == (True, True, True, "")


class Elsewhere(OnnxRuntimeBackend):
    """Builds, but nothing from here can run it."""

    def devices(self, target: Target) -> Iterable[Device]:
        return ()


class Emulated(OnnxRuntimeBackend):
    """Runs in what calls itself an emulator."""

    def devices(self, target: Target) -> Iterable[Device]:
        return (Host(source="emulator"),)


class Missing(OnnxRuntimeBackend):
    """Its toolchain is not here."""

    @classmethod
    def probe(cls) -> Availability:
        return Availability(False, "no such compiler", "install it")


class Picky(OnnxRuntimeBackend):
    """Takes no target."""

    def accepts(self, target: Target) -> Availability:
        return Availability(False, f"can't build for {target.profile.triple}")


@pytest.mark.parametrize(
    ("cls", "can", "why"),
    [
        (Elsewhere, (True, False, False), "no device"),
        (Emulated, (True, True, False), "whose times mean nothing"),
        (Missing, (False, False, False), "no such compiler"),
        (Picky, (False, False, False), "can't build for x86_64-linux-gnu"),
    ],
)
def test_each_obstacle_is_named(
    monkeypatch: pytest.MonkeyPatch, cls: type, can: tuple[bool, bool, bool], why: str
) -> None:
    monkeypatch.setattr("effc.targets.make_backend", lambda name: cls())
    row = describe_target(board("ort"))
    assert (row.build, row.run, row.measure) == can
    assert why in row.why


def test_the_host_can_be_built_for_or_says_why() -> None:
    row = describe_target(load_profile("host"))
    assert row.build or (row.why and row.hint)
