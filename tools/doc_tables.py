"""Writes the table of targets into README.md, from the profiles and the backends.

Run it where the TVM extra and a C compiler are installed, on x86-64 with AVX-512: what a target is proven
by is what this machine can do for it. With `--check` nothing is written; the exit code says whether the
README is up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

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
    """One line for each backend and proof in Markdown, those that are proven further first."""
    lines = ["| `--target` | backend | how far it is proven |", "|---|---|---|"]
    groups: dict[tuple[str, str], list[str]] = {}
    for row in sorted(target_rows(), key=lambda r: -(r.build + r.run + r.measure)):
        groups.setdefault((row.backend, proof(row)), []).append(names(row))
    lines += [
        f"| {', '.join(g)} | {backend} | {proven} |" for (backend, proven), g in groups.items()
    ]
    return "\n".join(lines)


def names(row: TargetRow) -> str:
    aliases = ", ".join(f"`{alias}`" for alias in row.aliases)
    return f"`{row.name}` (also {aliases})" if aliases else f"`{row.name}`"


def proof(row: TargetRow) -> str:
    if row.measure:
        return "built, verified and timed on the device by the tests"
    if row.run:
        place = re.sub(r" \(.*?\)|^it runs here in |, whose times.*", "", row.why)
        if row.backend == "tensorrt":
            return f"a bundle that builds on the device; its ONNX is verified in {place}"
        return f"built; verified here in {place}"
    if row.build:
        return row.why
    return "profile only (`effc inspect` estimates with it); not built yet"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
