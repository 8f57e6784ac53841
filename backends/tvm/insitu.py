"""A program in this process whose kernels are exchanged between inferences: what tuning measures with.

Every kernel runs where it will run: on the runtime's threads, between its neighbours, with the caches as
they leave them. Changing a kernel changes an entry of the table of calls; nothing is linked again.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from effc.backends.tvm import tir
from effc.backends.tvm.emit_c import wrapper
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.library import RUNTIME, link
from effc.backends.tvm.program import Array, Kernel, Program
from effc.backends.tvm.search import RULE
from effc.core.errors import DeviceError
from effc.core.measure import Feeds

_EXPORTS = "{ global: effc_model_*; effc_set_step; run_*; local: *; };\n"
_WARMED = 0.02  # seconds: shorter inferences are measured behind one that isn't
_VISIBLE = "#pragma GCC visibility push(default)"


class InSitu:
    """`program` with the kernels of its sites exchangeable; inputs are `feeds`. A context manager."""

    def __init__(self, program: Program, feeds: Feeds, threads: int) -> None:
        self.program, self.feeds = program, feeds
        self._threads = threads
        self._took = 0.0  # seconds of the last inference
        self._batch = 0
        self._variants: dict[tuple[str, Blocking], tuple[int, int]] = {}  # address, tasks
        self._weights: dict[tuple[str, Blocking], dict[str, Array]] = {}
        self._loaded: dict[str, Blocking] = {}
        self._calls: dict[str, list[int]] = {}
        for i, call in enumerate(program.calls):
            self._calls.setdefault(call.kernel, []).append(i)

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="effc-tune-"))
        try:
            self._open()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._library.effc_model_destroy(self._model)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> None:
        program, folder = self.program, self._folder
        for file in RUNTIME.iterdir():
            shutil.copy(file, folder / file.name)
        (folder / "exports.map").write_text(_EXPORTS)
        (folder / "table.c").write_text(self._table())
        link(folder, ["table.c", "runtime.c"], "table.so")
        library = self._library = ctypes.CDLL(str(folder / "table.so"))
        library.effc_set_step.argtypes = [
            ctypes.c_int32,
            ctypes.c_void_p,
            ctypes.c_int32,
        ]
        library.effc_model_create.restype = ctypes.c_void_p
        library.effc_model_destroy.argtypes = [ctypes.c_void_p]
        library.effc_model_set_threads.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        library.effc_model_last_error.restype = ctypes.c_char_p
        library.effc_model_profile.argtypes = [ctypes.c_void_p] * 4
        kernels = [program.kernels[name] for name in self._calls]
        for kernel, address in zip(kernels, self._compile(kernels), strict=True):
            self._variants[kernel.name, RULE] = address, kernel.tasks
            self._load(kernel.name, RULE)
        self._model = library.effc_model_create(self._threads)
        if not self._model:
            raise DeviceError(library.effc_model_last_error().decode(errors="replace"))
        self._bind()
        self._nanoseconds = np.zeros(max(1, len(program.calls)), np.uint64)

    def _bind(self) -> None:
        """What the pointers of inputs (the model's, then every constant) and outputs point at."""
        program = self.program
        self._held: list[Array] = []
        self._slot = {name: len(program.inputs) + i for i, name in enumerate(program.constants)}
        self._in = (ctypes.c_void_p * max(1, len(program.inputs) + len(program.constants)))()
        self._out = (ctypes.c_void_p * max(1, len(program.outputs)))()
        for i, name in enumerate(program.inputs):
            array = np.ascontiguousarray(self.feeds[program.public.get(name, name)])
            self._held.append(array)
            self._in[i] = array.ctypes.data
        arrays: dict[str, Array] = {}
        for name, array in program.constants.items():
            padded = _padded(np.ascontiguousarray(array))
            self._held.append(padded)
            self._in[self._slot[name]] = padded.ctypes.data
            arrays[name] = padded
        for name, site in program.sites.items():
            self._weights[name, RULE] = {n: arrays[n] for pack in site.packs for n in pack[0]}
        self.outputs: list[Array] = []
        for i, name in enumerate(program.outputs):
            tensor = program.tensors[name]
            made = np.zeros(max(1, tensor.bytes), np.uint8)
            self.outputs.append(made)
            self._out[i] = made.ctypes.data

    def _table(self) -> str:
        """The C source of the table of calls; its steps are set at run time."""
        program = self.program
        spaces = {name: f"EFFC_INPUT, {i}" for i, name in enumerate(program.inputs)}
        for i, name in enumerate(program.constants):
            spaces[name] = f"EFFC_INPUT, {len(program.inputs) + i}"
        for i, name in enumerate(program.outputs):
            spaces[program.root(name)] = f"EFFC_OUTPUT, {i}"
        arguments: list[str] = []
        firsts: list[str] = []
        for call in program.calls:
            firsts.append(f"  {{0, 0, {len(arguments)}}},")
            for name in call.args:
                root, offset = program.place(name)
                if root not in spaces:
                    offset += program.offsets[root]
                arguments.append(f"  {{{spaces.get(root, 'EFFC_ARENA, 0')}, {offset}u}},")
        inputs = [program.tensors[n].bytes for n in program.inputs] + [1] * len(program.constants)
        outputs = [program.tensors[n].bytes for n in program.outputs]
        return "\n".join(
            [
                '#include "program.h"',
                _VISIBLE,
                "static effc_step steps[] = {",
                *(firsts or ["  {0},"]),
                "};",
                f"static const effc_call calls[{len(firsts) + 1}];",
                "static const effc_argument arguments[] = {",
                *(arguments or ["  {0},"]),
                "};",
                *_tensors("inputs", inputs),
                *_tensors("outputs", outputs),
                "const effc_program effc_the_program = {",
                f"  {len(inputs)}, {len(outputs)}, {len(firsts)}, {len(arguments)},",
                "  inputs, outputs, calls, steps, arguments, 0,",
                f"  {program.arena_bytes}u, {program.scratch_bytes}u,",
                "};",
                "const char *effc_missing_feature(void) { return 0; }",
                "void effc_set_step(int32_t i, effc_kernel *kernel, int32_t tasks) {",
                "  steps[i].kernel = kernel;",
                "  steps[i].tasks = tasks;",
                "}",
                "",
            ]
        )

    def _compile(self, kernels: Sequence[Kernel]) -> list[int]:
        """The addresses of `kernels`, compiled together into a library of their own."""
        if not kernels:
            return []
        self._batch += 1
        stem = f"batch{self._batch}"
        module = tir.llvm_module([k.func for k in kernels], self.program.isa.target())
        module.write_to_file(str(self._folder / f"{stem}.o"), "o")
        source = [
            '#include "program.h"',
            _VISIBLE,
            *(wrapper(k).replace("\nstatic ", "\n") for k in kernels),
        ]
        (self._folder / f"{stem}.c").write_text("\n".join([*source, ""]))
        link(self._folder, [f"{stem}.c", f"{stem}.o"], f"{stem}.so")
        library = ctypes.CDLL(str(self._folder / f"{stem}.so"))
        found = [ctypes.cast(getattr(library, f"run_{k.name}"), ctypes.c_void_p) for k in kernels]
        return [address.value or 0 for address in found]

    def _load(self, kernel: str, blocking: Blocking) -> None:
        if self._loaded.get(kernel) == blocking:
            return
        address, tasks = self._variants[kernel, blocking]
        for i in self._calls[kernel]:
            self._library.effc_set_step(i, address, tasks)
        for name, array in self._weights.get((kernel, blocking), {}).items():
            self._in[self._slot[name]] = array.ctypes.data
        self._loaded[kernel] = blocking

    # what the search asks for

    def prepare(self, choices: Mapping[str, Sequence[Blocking]]) -> None:
        """Compile kernels cut so, and pack their weights."""
        new = [(k, b) for k, bs in choices.items() for b in bs if (k, b) not in self._variants]
        built = [
            self.program.sites[name].build(blocking, f"{name}_b{self._batch}_{i}")
            for i, (name, blocking) in enumerate(new)
        ]
        for (name, blocking), kernel, address in zip(new, built, self._compile(built), strict=True):
            packed = {}
            for names, pack in self.program.sites[name].packs:
                for constant, array in zip(names, pack(blocking), strict=True):
                    same = np.array_equal(array, self.program.constants[constant])
                    rule = self._weights[name, RULE][constant]
                    packed[constant] = rule if same else _padded(array)
            self._weights[name, blocking] = packed
            self._variants[name, blocking] = address, kernel.tasks

    def forget(self, kernel: str, blocking: Blocking) -> None:
        """Free the weights of a kernel that lost."""
        if blocking != RULE:
            self._weights.pop((kernel, blocking), None)
            self._variants.pop((kernel, blocking), None)

    @property
    def threads(self) -> int:
        """Threads of an inference."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        if self._library.effc_model_set_threads(self._model, threads):
            raise DeviceError(self._library.effc_model_last_error().decode(errors="replace"))
        self._threads = threads

    def run(self, choice: Mapping[str, Blocking]) -> dict[str, float]:
        """One inference with the kernels cut so, the others by rule; seconds by kernel, "" is the whole."""
        for name in self.program.sites:
            if name in self._calls:
                self._load(name, choice.get(name, RULE))
        if (
            self._took < _WARMED
        ):  # the other threads may have gone to sleep, and caches hold other code
            self._infer()
        self._infer()
        seconds = self._nanoseconds * 1e-9
        found = {name: float(seconds[calls].sum()) for name, calls in self._calls.items()}
        found[""] = self._took = float(seconds[: len(self.program.calls)].sum())
        return found

    def _infer(self) -> None:
        address = self._nanoseconds.ctypes.data
        if self._library.effc_model_profile(self._model, self._in, self._out, address):
            raise DeviceError(self._library.effc_model_last_error().decode(errors="replace"))


def _padded(array: Array) -> Array:
    """A copy on a boundary of cache lines, with a line behind it: vectors may reach past the end."""
    raw = np.zeros(array.nbytes + 128, np.uint8)
    begin = -raw.ctypes.data % 64
    copy: Array = raw[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _tensors(what: str, sizes: Sequence[int]) -> list[str]:
    rows = [f'  {{"", "", 0, 0, {size}u}},' for size in sizes]
    return [f"static const effc_tensor {what}[] = {{", *(rows or ["  {0},"]), "};"]


def fill(program: Program, feeds: Feeds | None) -> dict[str, Any]:
    """`feeds`, or inputs that any model takes: small numbers for floats, zeros for the rest."""
    found: dict[str, Any] = dict(feeds or {})
    rng = np.random.default_rng(0)
    for name in program.inputs:
        tensor = program.tensors[name]
        public = program.public.get(name, name)
        if public in found:
            continue
        values = np.zeros(tensor.shape, tensor.dtype)
        if values.dtype.kind == "f":
            values = rng.standard_normal(tensor.shape).astype(tensor.dtype)
        found[public] = values
    return found
