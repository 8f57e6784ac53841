"""Runs what README.md shows, in a folder of its own, and writes what it printed into the README.

    python tools/doc_tour.py            run every console block and put its output there
    python tools/doc_tour.py --check    compare instead; the exit code says whether the stable parts agree

Blocks whose first line is a comment with a file name are saved under that name before.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"(?:#|//) (\w+\.\w+)\n")
_COLUMNS = 100


@dataclass(frozen=True)
class Step:
    """One command of a console block and the lines that it printed."""

    command: str
    output: tuple[str, ...]


def main(arguments: list[str]) -> int:
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="effc-tour-") as folder:
        save_files(text, Path(folder))
        new = _BLOCK.sub(lambda m: rerun(m, Path(folder)), text)
    if "--check" in arguments:
        shown, printed = all_steps(text), all_steps(new)
        bad = [a.command for a, b in zip(shown, printed, strict=True) if stable(a) != stable(b)]
        print(*(f"differs: {command}" for command in bad), sep="\n")
        return int(bool(bad))
    README.write_text(new, encoding="utf-8")
    return 0


def save_files(text: str, folder: Path) -> None:
    """Write every block that begins with its file's name."""
    for block in _BLOCK.finditer(text):
        named = _FILE.match(block[2])
        if named:
            body = block[2] if not named[1].endswith(".onnxtxt") else block[2][named.end() :]
            (folder / named[1]).write_text(body, encoding="utf-8")


def rerun(block: re.Match[str], folder: Path) -> str:
    if block[1] != "console":
        return block[0]
    lines = [
        line
        for step in steps(block[2])
        for line in (f"$ {step.command}", *run(step.command, folder))
    ]
    return "\n".join(["```console", *lines, "```"])


def all_steps(text: str) -> list[Step]:
    return [s for block in _BLOCK.finditer(text) if block[1] == "console" for s in steps(block[2])]


def steps(body: str) -> list[Step]:
    found: list[tuple[str, list[str]]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
    return [Step(command, tuple(lines)) for command, lines in found]


def run(command: str, folder: Path) -> list[str]:
    """What the command prints on stdout, and on stderr where it fails."""
    spelled = {
        "tools/effc": f"'{sys.executable}' -m effc",
        ".venv/bin/python": f"'{sys.executable}'",
    }
    here = re.sub(r"tools/effc|\.venv/bin/python", lambda m: spelled[m[0]], command)
    done = subprocess.run(
        ["sh", "-c", here],
        cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "COLUMNS": str(_COLUMNS), "NO_COLOR": "1"},
    )  # fmt: skip
    if done.returncode not in (0, 2, 3):  # these are effc's refusals, which the README may show
        raise RuntimeError(f"{command!r} ended with {done.returncode}: {done.stderr[-2000:]}")
    errors = [
        e
        for e in done.stderr.splitlines()
        if done.returncode and not e.startswith(("build ", "bench"))
    ]
    return [line.rstrip() for line in (*done.stdout.splitlines(), *errors)]


def stable(step: Step) -> list[str]:
    """The lines of a step without what depends on the machine: numbers, units, who was faster."""
    kept = set()
    for line in step.output:
        if line.startswith("caution:") or re.search(r"\bload \d", line):
            continue
        line = re.sub(
            r"\(inside the noise\)|\b(faster|slower|baseline|inside the noise)\b", "", line
        )
        line = re.sub(r"-?\d[\d.]*(e[+-]?\d+)?( ?(ns|us|ms|s|KiB|MiB|k|M|%|x)\b|%)?", "#", line)
        kept.add(" ".join(line.split()))
    return sorted(kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
