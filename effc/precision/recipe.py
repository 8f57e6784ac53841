"""The recipe: what was chosen, as a file that reproduces the build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from effc.core.artifact import write_atomically
from effc.core.errors import ConfigError

RECIPE = "recipe.json"


class Recipe(msgspec.Struct, frozen=True, omit_defaults=True):
    """The passes that change the numbers of a model, and what they were chosen for.

    `compress` is pipeline text: it runs after canonicalize and fuse, before the backend's legalization.
    """

    precision: str  # as asked for: "int8", "auto", ...
    compress: str
    samples: str = ""  # fingerprint of the samples that it was calibrated on
    synthetic: bool = False  # whether those were made up
    source: str = ""  # SHA-256 of the model
    score: dict[str, Any] = {}
    notes: tuple[str, ...] = ()  # what was tried and why it was taken or left, for people
    format: int = 1


def save_recipe(path: Path, recipe: Recipe) -> None:
    """Write `recipe` as JSON, atomically."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(recipe), indent=1) + b"\n")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; an artifact's folder stands for the recipe in it. ConfigError where it is none."""
    file = path / RECIPE if path.is_dir() else path
    try:
        recipe = msgspec.json.decode(file.read_bytes(), type=Recipe)
    except OSError as error:
        raise ConfigError(
            f"recipe {str(path)!r} can't be read: {error.strerror}",
            hint=f"effc build --precision leaves {RECIPE} in the artifact",
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(file)!r} is no recipe: {error}") from error
    if recipe.format != 1:
        raise ConfigError(
            f"recipe {str(file)!r} has format {recipe.format}; this effc reads format 1",
            hint="use the effc that wrote it, or let this one choose again",
        )
    return recipe
