"""Gives tests that ask for `timm_case` one run for each exported timm architecture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# in the default run; together they hold most of what the others do
QUICK = frozenset(
    "mobilenetv1_100 mobilenetv3_small_100 mobilenetv4_conv_small repvgg_a0 efficientvit_b0 "
    "deit_tiny_patch16_224 levit_128s poolformer_s12".split()
)


def _models() -> ModuleType:
    name = "effc_conformance_models"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("models.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "timm_case" not in metafunc.fixturenames:
        return
    models = _models()
    absent = models.missing()
    marks = [pytest.mark.skip(reason=f"not installed: {absent}")] if absent else []
    metafunc.parametrize(
        "timm_case",
        [
            pytest.param(
                case, id=str(case), marks=marks + ([] if case.name in QUICK else [pytest.mark.slow])
            )
            for case in models.CASES
        ],
    )
