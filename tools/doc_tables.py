"""Writes the table of targets into README.md, from the profiles and the backends.

Run it where the TVM extra and a C compiler are installed, on x86-64 with AVX-512: what a target is proven
by is what this machine can do for it. With `--check` nothing is written; the exit code says whether the
README is up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from effc.core.profiles import load_profile
from effc.core.target import HardwareProfile
from effc.targets import TargetRow, target_rows

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- targets: tools/doc_tables.py -->", "<!-- end of targets -->"


def main(arguments: list[str]) -> int:
    text = README.read_text(encoding="utf-8")
    new = replaced(text, targets_table())
    if "--check" in arguments:
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


def replaced(text: str, table: str) -> str:
    """`text` with what stands between the two marks replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def targets_table() -> str:
    """One line a target in Markdown, those that are proven further first."""
    lines = ["| `--target` | device | backend | how far it is proven |", "|---|---|---|---|"]
    rows = [(row, proof(row)) for row in target_rows()]
    for row, proven in sorted(rows, key=lambda pair: -rank(pair[0])):
        profile = None if row.name == "host" else load_profile(row.name)
        lines.append(f"| {names(row)} | {title(row, profile)} | {row.backend} | {proven} |")
    return "\n".join(lines)


def names(row: TargetRow) -> str:
    return ", ".join(f"`{name}`" for name in (row.name, *row.aliases))


def title(row: TargetRow, profile: HardwareProfile | None) -> str:
    return row.title if profile is not None else "the machine that effc runs on"


def rank(row: TargetRow) -> int:
    return row.build + row.run + row.measure


def proof(row: TargetRow) -> str:
    if row.measure:
        return "built, verified and timed on the device by the tests"
    if row.run:
        return "built and verified in an emulator by the tests"
    if row.build:
        return "builds; no device here has run it"
    return "profile only: its backend can't build for it yet"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
