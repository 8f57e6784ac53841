"""Make the checkout's .venv hold effc and some of its extras: `python3 bootstrap.py tvm torch`.

Safe to start twice at once, and to interrupt: a half-done install is remembered and done over.
Prints to stderr, so that stdout stays the job's own. Standard library only; Python 3.11 or later.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class InstallError(Exception):
    """An install that failed; the message says why and what to do."""


def main(extras: list[str]) -> int:
    try:
        install(ROOT, extras)
    except InstallError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted: the next start completes the install")
        return 130
    return 0


def install(root: Path, extras: Iterable[str]) -> None:
    """Bring `.venv` below `root` to hold effc, its dependencies, the extras it had and `extras`."""
    with locked(root):
        venv = root / ".venv"
        held = read_stamp(root)
        if held is not None and set(extras) <= set(held):
            return  # somebody else installed it while this process waited for the lock
        wanted = sorted({*(kept_extras(root) or ()), *extras})
        project = read_project(root)
        unknown = set(wanted) - set(project["project"]["optional-dependencies"])
        if unknown:
            raise InstallError(f"pyproject.toml has no extra {', '.join(sorted(unknown))}")
        begun = venv / "effc-install-begun"
        if begun.exists():
            say("the last install was interrupted: starting over")
        if begun.exists() or not usable(venv):
            make_venv(venv)
        begun.touch()
        stamp_path(root).unlink(missing_ok=True)
        start = time.monotonic()
        for requirements, options in steps(project, wanted):
            say(f"installing into .venv: {', '.join(requirements)}")
            pip(venv, *options, *requirements)
        say("installing into .venv: effc (editable)")
        pip(venv, "--no-deps", "--no-build-isolation", "--editable", str(root))
        write_stamp(root, wanted)
        begun.unlink()
        say(f"installed in {time.monotonic() - start:.0f} s")


def steps(project: dict[str, Any], extras: Iterable[str]) -> Iterator[tuple[list[str], list[str]]]:
    """What to install, each with pip's options."""
    table = project["project"]
    requirements = [*project["build-system"]["requires"], *table["dependencies"]]
    for extra in extras:
        requirements += expand(table["optional-dependencies"], extra)
    if requirements:
        yield list(dict.fromkeys(requirements)), []
    alone = project.get("tool", {}).get("effc", {}).get("no-deps", {})
    for extra in extras:
        if alone.get(extra):
            yield alone[extra], ["--no-deps"]


def expand(table: dict[str, list[str]], extra: str) -> Iterator[str]:
    """The requirements of an extra, with `effc[a,b]` replaced by those of a and b."""
    for requirement in table[extra]:
        own = re.fullmatch(r"effc\[([a-z, -]+)\]", requirement)
        if own is None:
            yield requirement
        else:
            for inner in own[1].split(","):
                yield from expand(table, inner.strip())


def usable(venv: Path) -> bool:
    """Whether the venv's Python starts and has pip: both vanish when the system's Python is replaced."""
    try:
        done = subprocess.run(
            [venv / "bin/python", "-c", "import pip, sys; sys.exit(sys.prefix == sys.base_prefix)"],
            capture_output=True,
        )
    except OSError:
        return False
    return done.returncode == 0


def make_venv(venv: Path) -> None:
    say("making .venv")
    shutil.rmtree(venv, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stdout + done.stderr).strip().splitlines() or ["no reason given"]
        raise InstallError(
            f"python3 -m venv failed: {reason[0]} (Debian and Ubuntu: apt install python3-venv)"
        )


def pip(venv: Path, *arguments: str) -> None:
    command = [
        str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-input", *arguments,
    ]  # fmt: skip
    if os.geteuid() == 0:
        command.append("--root-user-action=ignore")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise InstallError(f"pip failed; its last words:\n{done.stdout.strip()[-2000:]}")


def read_project(root: Path) -> dict[str, Any]:
    with (root / "pyproject.toml").open("rb") as f:
        return tomllib.load(f)


def stamp_path(root: Path) -> Path:
    return root / ".venv/effc-installed"


def fingerprint(root: Path) -> str:
    """What must not have changed since the install; tools/effc computes the same in shell."""
    # of cksum(1): the shell has nothing faster that is everywhere
    done = subprocess.run(
        ["cksum"], stdin=(root / "pyproject.toml").open("rb"), capture_output=True, text=True
    )
    return f"{done.stdout.strip()} {os.path.realpath(root / '.venv/bin/python')} {root}"


def read_stamp(root: Path) -> list[str] | None:
    """The extras that are installed; None where nothing is, or not what pyproject.toml says now."""
    try:
        lines = stamp_path(root).read_text().splitlines()
    except OSError:
        return None
    return lines[1].split() if len(lines) == 2 and lines[0] == fingerprint(root) else None


def kept_extras(root: Path) -> list[str] | None:
    """The extras of the last complete install, even of another pyproject.toml."""
    try:
        return stamp_path(root).read_text().splitlines()[1].split()
    except (OSError, IndexError):
        return None


def write_stamp(root: Path, extras: Iterable[str]) -> None:
    """Written beside and renamed: a reader sees no half of it."""
    path = stamp_path(root)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(f"{fingerprint(root)}\n{' '.join(extras)}\n")
    os.replace(temporary, path)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One install at a time per checkout; the lock goes with the process, however it ends."""
    with (root / "pyproject.toml").open("rb") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another install in this checkout")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    print(f"effc: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
