"""What a TensorRT of some version will do with the bundle: pure functions, so that any machine can tell.

Versions of the boards' software, from NVIDIA's JetPack release notes: 5.1 has TensorRT 8.5.2, 6.0 has 8.6.2,
6.1 and 6.2 have 10.3, 7.0 has 10.13; TensorRT 11.4.1 asks for JetPack 7.2.2. What counts is the TensorRT
that is found, not the JetPack.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Tuple  # noqa: UP035 - an alias is evaluated: Python 3.8

from .store import Refused

Version = Tuple[int, ...]  # noqa: UP006 - major, minor, patch

JETPACKS = (
    ("JetPack 5.1", (8, 5, 2)),
    ("JetPack 6.0", (8, 6, 2)),
    ("JetPack 6.1, 6.2", (10, 3, 0)),
    ("JetPack 7.0", (10, 13, 3)),
    ("JetPack 7.2.2", (11, 4, 1)),
)
OLDEST = (8, 5, 0)  # tensors are addressed by name since
STRONG = (10, 0, 0)  # the network's own types can be taken as the law since
ONLY_STRONG = (11, 0, 0)  # and nothing else is left since
LAST_DLA, DLA_AGAIN = (10, 7), (11, 4, 1)


class Step(NamedTuple):
    """One engine to build."""

    form: str  # fp16, int8, ...
    file: str
    strong: bool  # the types of the network are the law; otherwise `flags` allow precisions
    flags: tuple[str, ...]  # names of BuilderFlag
    dla: int | None
    calibration: str  # the file of scales for a DLA without explicit quantization, or ""

    def words(self) -> str:
        how = "strongly typed" if self.strong else "flags " + (", ".join(self.flags) or "none")
        where = f"DLA core {self.dla}, the GPU takes the rest" if self.dla is not None else "GPU"
        scales = f", scales of {self.calibration}" if self.calibration else ""
        return f"{self.form}: {self.file}, {how}, on {where}{scales}"


def text_of(version: Version) -> str:
    return ".".join(str(v) for v in version)


def parse_version(text: str) -> Version:
    """`10.3.0.30` -> (10, 3, 0)."""
    parts = []
    for part in text.split(".")[:3]:
        digits = "".join(c for c in part if c.isdigit())
        parts.append(int(digits or 0))
    return tuple(parts + [0] * (3 - len(parts)))


def decoded(number: int) -> Version:
    """TensorRT's version number as trtexec prints it: v8502 is 8.5.2, v100300 is 10.3.0."""
    large = 10000 if number >= 100000 else 1000
    return (number // large, number % large // 100, number % 100)


def steps(
    bundle: dict[str, Any], version: Version, forms: list[str] | None = None, dla: int | None = None
) -> list[Step]:
    """The engines that this version builds; Refused where it is too old, or lacks the DLA asked for."""
    if version < OLDEST:
        raise Refused(
            f"TensorRT {text_of(version)} is too old: this bundle needs {text_of(OLDEST)} or later",
            "install JetPack 5.1 or later",
        )
    known = bundle["forms"]
    for name in forms or ():
        if name not in known:
            raise Refused(f"the bundle has no form {name!r}", f"it has {', '.join(known)}")
    if dla is not None:
        _check_dla(version, dla)
    strong = version >= STRONG
    found = []
    for name, form in known.items():
        if forms and name not in forms:
            continue
        typed = form["strong"] if strong else form["weak"]
        step = Step(name, typed["file"], strong, tuple(typed.get("flags", ())), dla, "")
        if dla is not None and version[:2] <= LAST_DLA:
            step = _for_old_dla(bundle, step)
        found.append(step)
    return found


def _check_dla(version: Version, dla: int) -> None:
    if LAST_DLA < version[:2] and version < DLA_AGAIN:
        raise Refused(
            f"TensorRT {text_of(version)} has no DLA (core {dla} was asked for)",
            "leave --dla out, or take TensorRT 10.7 or older, or 11.4.1 or later on AGX Orin",
        )


def _for_old_dla(bundle: dict[str, Any], step: Step) -> Step:
    """Up to TensorRT 10.7 a DLA knows no Q/DQ: precisions are flags, int8's scales a calibration cache."""
    if step.form != "int8":
        weak = bundle["forms"][step.form]["weak"]
        return step._replace(file=weak["file"], strong=False, flags=tuple(weak.get("flags", ())))
    scales = bundle.get("calibration") or {}
    if not scales:
        raise Refused(
            "this bundle has no calibration cache, and a DLA of TensorRT 10.7 or older needs one for int8",
            "build the bundle with --precision int8 --backend-option dla=0, or take --form fp16",
        )
    return step._replace(
        file=scales["model"], strong=False, flags=("INT8", "FP16"), calibration=scales["file"]
    )


def explain(bundle: dict[str, Any], dla: int | None = None) -> list[str]:
    """What each JetPack will do with this bundle, line by line."""
    lines = []
    for name, version in JETPACKS:
        lines.append(f"{name} (TensorRT {text_of(version)}):")
        try:
            lines += [f"  {step.words()}" for step in steps(bundle, version, dla=dla)]
        except Refused as error:
            lines.append(f"  refused: {error}" + (f" ({error.hint})" if error.hint else ""))
    return lines


def workspace(bundle: dict[str, Any], free: int | None, wanted: int | None = None) -> int:
    """Bytes that kernels may use: as asked for, else the board's cap, at most half of what is free."""
    if wanted is not None:
        return wanted
    cap = int(bundle["workspace_bytes"])
    return cap if free is None else max(min(cap, free // 2), 16 << 20)
