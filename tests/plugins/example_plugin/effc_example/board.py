"""A board by the path of its TOML."""

from pathlib import Path

PROFILE = Path(__file__).with_name("example-board.toml")
