"""C compilers: this machine's own, and those that build for another processor."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import sys

_SAME = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "arm", "armv7": "arm", "armv7a": "arm"}
# what Debian calls the compiler and what its C library's folder below /usr is called
_GNU = {"aarch64": "aarch64-linux-gnu", "arm": "arm-linux-gnueabihf", "x86_64": "x86_64-linux-gnu"}
_FLAGS = {"arm": ["-march=armv7-a", "-mfpu=neon-vfpv4", "-mfloat-abi=hard"]}


def architecture(triple: str) -> str:
    """The processor of a triple by one name: "x86_64", "aarch64", "arm"."""
    found = triple.partition("-")[0]
    return _SAME.get(found, found)


def is_native(triple: str) -> bool:
    """Whether this machine's own compiler builds for `triple` ("" means this machine)."""
    return not triple or architecture(triple) == architecture(platform.machine())


def gnu_triple(triple: str) -> str:
    """The triple by which Debian names tools and folders for its processor."""
    return _GNU.get(architecture(triple), triple)


def c_compiler(triple: str = "") -> list[str] | None:
    """The command of a C compiler for `triple`; None where there is none.

    For this machine: $CC, cc, gcc, clang, or the clang of the package `ziglang`. For another processor:
    $CC_aarch64_linux_gnu (and so on), its gcc, or `ziglang`.
    """
    if is_native(triple):
        return _named("CC") or (_first() if not os.environ.get("CC") else None)
    gnu = gnu_triple(triple)
    variable = f"CC_{gnu.replace('-', '_')}"
    if os.environ.get(variable):
        return _named(variable)
    flags = _FLAGS.get(architecture(triple), [])
    if shutil.which(f"{gnu}-gcc"):
        return [f"{gnu}-gcc", *flags]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", gnu, *flags]
    return None


def install_hint(triple: str = "") -> str:
    """How to get a compiler for `triple`."""
    if is_native(triple):
        return "install gcc or clang, set CC, or: pip install ziglang"
    gnu = gnu_triple(triple)
    library = {"aarch64": "arm64", "arm": "armhf"}.get(architecture(triple), architecture(triple))
    return (
        f"Debian and Ubuntu: apt install gcc-{gnu} libc6-dev-{library}-cross; or set "
        f"CC_{gnu.replace('-', '_')}; or: pip install ziglang"
    )


def _named(variable: str) -> list[str] | None:
    command = shlex.split(os.environ.get(variable, ""))
    return command if command and shutil.which(command[0]) else None


def _first() -> list[str] | None:
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None
