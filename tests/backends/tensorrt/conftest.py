"""The graphs of graphs.py, and the API of either major version as a module."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from effc.core.profiles import load_profile
from effc.core.target import HardwareProfile, Target

HERE = Path(__file__).parent


def _module(name: str) -> ModuleType:
    unique = f"tensorrt_tests_{name}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, HERE / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[unique] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[unique])
    return sys.modules[unique]


@pytest.fixture(scope="session")
def graphs() -> ModuleType:
    return _module("graphs")


@pytest.fixture(scope="session")
def contract() -> ModuleType:
    return _module("contract")


@pytest.fixture(scope="session")
def card() -> Callable[..., Target]:
    """`card(86, precision="fp16", workspace="16")`: an RTX card of that compute capability."""

    def make(sm: int, precision: str = "fp32", **options: str) -> Target:
        profile = load_profile("rtx-4090")
        fields = {f: getattr(profile, f) for f in profile.__struct_fields__}
        fields |= {"name": f"card-{sm}", "aliases": (), "toolchain": {"sm": str(sm)}}
        named = {k.replace("_", "-"): v for k, v in options.items()}
        return replace(Target(HardwareProfile(**fields)), precision=precision, options=named)

    return make
