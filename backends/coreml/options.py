"""What the user may choose for a package, from the target's profile and `--backend-option KEY=VALUE`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from effc.backends.coreml.sizes import Sizes, parse_sizes
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
    "sizes": "further shapes of an input: NAME=1,3,192..320,192..320 (range) or NAME=1,3,192,192;1,3,320,320",
    "labels": "a text file with one class name a line",
    "scores": "the output that the labels are of, where there is more than one",
    "function": "the name of the function, main by default",
    "join": "NAME:ARTIFACT,...: functions of other artifacts, put in with shared weights (iOS18, macOS15)",
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
    function: str = "main"
    join: dict[str, Path] = field(default_factory=dict)
    sizes: Sizes | None = None


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
    if "sizes" in given and ("join" in given or "function" in given):
        raise ConfigError(
            "--backend-option sizes makes one function for all sizes, join one for each",
            hint="choose one of them",
        )
    return Options(
        deployment,
        DEPLOYMENT[deployment],
        {"": None, "image": True, "tensor": False}[kind],
        read_labels(Path(given["labels"])) if "labels" in given else (),
        given.get("scores", ""),
        {key: given[key] for key in METADATA if key in given},
        _identifier(given.get("function", "main")),
        _joined(given.get("join", ""), given.get("function", "main"), DEPLOYMENT[deployment]),
        parse_sizes(given["sizes"]) if "sizes" in given else None,
    )


def _identifier(name: str) -> str:
    if not name.isidentifier() or not name.isascii():
        raise ConfigError(f"a function can't be called {name!r}", hint="letters, digits and _")
    return name


def _joined(text: str, own: str, ios: int) -> dict[str, Path]:
    """`name:path,name:path`."""
    found: dict[str, Path] = {}
    for part in filter(None, text.split(",")):
        name, colon, path = part.partition(":")
        if not colon or not path:
            raise ConfigError(f"--backend-option join: {part!r} is not like NAME:ARTIFACT")
        if _identifier(name) == own or name in found:
            raise ConfigError(
                f"two functions are called {name!r}",
                hint="name them apart: function=, join=NAME:...",
            )
        found[name] = Path(path)
    if (found or own != "main") and ios < 18:
        raise ConfigError(
            "packages of several functions need iOS 18 or macOS 15",
            hint="add --backend-option deployment=iOS18",
        )
    return found


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
