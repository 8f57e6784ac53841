"""Compiling CUDA C to machine code without a GPU: NVIDIA's run-time compiler, or nvcc."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from effc.core.errors import BackendUnavailable, LoweringError

HINT = "pip install 'effc[cuda]', or put CUDA's nvcc on the PATH"
_FLAGS = ("--std=c++17", "--ptxas-options=-v")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a kernel takes, as ptxas says it: registers a thread, bytes spilled, shared bytes a block."""

    registers: int
    spills: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Cubin:
    """Machine code for one architecture, the PTX that it was made from, and what its kernels take."""

    image: bytes
    ptx: str
    usage: Mapping[str, Usage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Compiler:
    """`name` and `version` go into the manifest; `path` is libnvrtc or nvcc."""

    name: str
    version: str
    path: str

    def compile(self, source: str, headers: Mapping[str, str], sm: int) -> Cubin:
        """The cubin of `source` for `sm` (75, 80, ...). LoweringError says where the compiler fails."""
        if self.name == "nvrtc":
            return _nvrtc(self.path, source, headers, sm)
        return _nvcc(self.path, source, headers, sm)


@functools.cache
def find_compiler() -> Compiler | None:
    """NVRTC of the package nvidia-cuda-nvrtc-cu12 or of CUDA, else nvcc; None where there is none."""
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
            major, minor = ctypes.c_int(), ctypes.c_int()
            library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        except (OSError, AttributeError):
            continue
        return Compiler("nvrtc", f"{major.value}.{minor.value}", path)
    nvcc = shutil.which("nvcc") or _below_cuda_home("bin/nvcc")
    if nvcc is None:
        return None
    try:
        said = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"release ([0-9.]+)", said.stdout)
    return Compiler("nvcc", found.group(1), nvcc) if found else None


def compiler() -> Compiler:
    """`find_compiler`, or BackendUnavailable."""
    found = find_compiler()
    if found is None:
        raise BackendUnavailable("neither NVRTC nor nvcc is here", hint=HINT)
    return found


def _libraries() -> list[str]:
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    inside = [p for f in folders for p in f.glob("*/lib/libnvrtc.so.1[0-9]")]
    return [*(str(p) for p in sorted(inside)), "libnvrtc.so.12", "libnvrtc.so.13"]


def _below_cuda_home(name: str) -> str | None:
    path = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / name
    return str(path) if path.is_file() else None


def _nvrtc(path: str, source: str, headers: Mapping[str, str], sm: int) -> Cubin:
    library = ctypes.CDLL(path)
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    program = ctypes.c_void_p()
    count = len(headers)
    texts = (ctypes.c_char_p * max(count, 1))(*(t.encode() for t in headers.values()))
    names = (ctypes.c_char_p * max(count, 1))(*(n.encode() for n in headers))
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"model.cu", count, texts, names
    )
    if made:
        raise LoweringError(f"NVRTC refuses to start: {library.nvrtcGetErrorString(made).decode()}")
    try:
        flags = [f"--gpu-architecture=sm_{sm}", *_FLAGS]
        options = (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
        status = library.nvrtcCompileProgram(program, len(flags), options)
        log = _text(library, program, "ProgramLog").decode(errors="replace")
        if status:
            raise _failed("NVRTC", sm, log or library.nvrtcGetErrorString(status).decode())
        ptx = _text(library, program, "PTX").rstrip(b"\0").decode()
        return Cubin(_text(library, program, "CUBIN"), ptx, read_usage(log))
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    data = ctypes.create_string_buffer(max(size.value, 1))
    getattr(library, f"nvrtcGet{what}")(program, data)
    return data.raw[: size.value]


def _nvcc(path: str, source: str, headers: Mapping[str, str], sm: int) -> Cubin:
    with tempfile.TemporaryDirectory(prefix="effc-") as name:
        folder = Path(name)
        (folder / "model.cu").write_text(source)
        for header, text in headers.items():
            (folder / header).write_text(text)
        done = subprocess.run(
            [path, f"-arch=sm_{sm}", *_FLAGS, "-cubin", "--keep", "model.cu", "-o", "model.cubin"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise _failed("nvcc", sm, done.stderr)
        return Cubin(
            (folder / "model.cubin").read_bytes(),
            (folder / "model.ptx").read_text(),
            read_usage(done.stderr),
        )


def _failed(who: str, sm: int, log: str) -> LoweringError:
    lines = [line for line in log.splitlines() if "error" in line] or log.splitlines() or ["?"]
    return LoweringError(
        f"{who} can't compile for SM{sm}: {lines[0].strip()[:300]}",
        hint="is the compiler too old for this GPU, or too new? Else report it with the model",
    )


def read_usage(log: str) -> dict[str, Usage]:
    """What `ptxas -v` says of each kernel."""
    found: dict[str, Usage] = {}
    name, spills = "", 0
    for line in log.splitlines():
        entry = re.search(r"Compiling entry function '([^']+)'", line)
        if entry:
            name, spills = entry.group(1), 0
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if spilled:
            spills = int(spilled.group(1)) + int(spilled.group(2))
        used = re.search(r"Used (\d+) registers", line)
        if used and name:
            shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", line)
            found[name] = Usage(int(used.group(1)), spills, int(shared.group(1)) if shared else 0)
    return found
