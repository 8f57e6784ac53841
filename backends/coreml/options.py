"""What the user may choose for a package, from the target's profile and `--backend-option KEY=VALUE`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from effc.core.errors import ConfigError
from effc.core.target import Target

# the deployment target by name -> the version of MIL's operators
DEPLOYMENT = {
    "iOS16": 16, "iOS17": 17, "iOS18": 18, "macOS13": 16, "macOS14": 17, "macOS15": 18,
}  # fmt: skip
METADATA = ("author", "license", "version", "description")

OPTIONS = {
    "deployment": f"the oldest system: {', '.join(DEPLOYMENT)}",
    "input": "image (pixels of a picture, where the preprocessing is known) or tensor",
    "labels": "a text file with one class name a line",
    "scores": "the output that the labels are of, where there is more than one",
    "shapes": "more shapes of an input: NAME=1,3,224,224|1,3,320,320, each a function of the package",
    **{key: f"the package's {key}" for key in METADATA},
}


@dataclass(frozen=True, slots=True)
class Options:
    """The checked choices."""

    deployment: str
    ios: int
    image: bool | None = None  # None: where the preprocessing is known
    labels: tuple[str, ...] = ()
    scores: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def options_of(target: Target) -> Options:
    """Read the options of `target`; ConfigError names the one that is wrong."""
    given = dict(target.options)
    for key in given:
        if key not in OPTIONS:
            raise ConfigError(
                f"--backend-option {key}: the backend 'coreml' has no such option",
                hint="; ".join(f"{k}: {v}" for k, v in OPTIONS.items()),
            )
    deployment = given.get(
        "deployment", target.profile.toolchain.get("minimum_deployment_target", "iOS17")
    )
    if deployment not in DEPLOYMENT:
        raise ConfigError(
            f"deployment target {deployment!r} is unknown",
            hint=f"one of {', '.join(DEPLOYMENT)}",
        )
    kind = given.get("input", "")
    if kind not in ("", "image", "tensor"):
        raise ConfigError(f"--backend-option input={kind}: it is image or tensor")
    return Options(
        deployment,
        DEPLOYMENT[deployment],
        {"": None, "image": True, "tensor": False}[kind],
        read_labels(Path(given["labels"])) if "labels" in given else (),
        given.get("scores", ""),
        {key: given[key] for key in METADATA if key in given},
    )


def read_labels(path: Path) -> tuple[str, ...]:
    """One class name a line, each once; ConfigError otherwise."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ConfigError(
            f"labels {str(path)!r} can't be read: {reason}", hint="one class name a line"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    labels = tuple(line.strip() for line in lines)
    for number, label in enumerate(labels, 1):
        if not label:
            raise ConfigError(f"labels {str(path)!r}, line {number} is empty")
    twice = next((x for i, x in enumerate(labels) if x in labels[:i]), None) if labels else None
    if twice is not None:
        raise ConfigError(
            f"labels {str(path)!r} hold {twice!r} twice",
            hint="Core ML tells classes apart by their names: make them unique",
        )
    if not labels:
        raise ConfigError(f"labels {str(path)!r} hold nothing")
    return labels
