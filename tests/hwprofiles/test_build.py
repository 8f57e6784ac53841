"""What the README's table says of the x86 targets: built, verified and timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from effc.build import build
from effc.choices import BuildOptions
from effc.core.profiles import all_profiles, load_profile
from effc.targets import describe_target

X86 = [
    "host",
    *(p.name for p in all_profiles() if p.triple.startswith("x86_64") and p.backend == "tvm"),
]


@pytest.mark.parametrize("name", X86)
def test_a_target_whose_instructions_this_machine_has(name: str, tmp_path: Path) -> None:
    row = describe_target(load_profile(name))
    if not row.measure:
        pytest.skip(f"{name}: {row.why}")
    result = build("zoo:tiny-resnet", name, tmp_path / "out", BuildOptions(threads=(1,)))
    assert result.artifact.manifest.target == name
    assert result.artifact.manifest.verdict.status == "passed"
    assert any(m.source == "device" and m.median for m in result.measurements)
