"""The TVM backend: effc's own kernels as TIR, compiled by TVM's LLVM into a library without TVM."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import onnx_ir as ir

from effc.core.backend import Availability, Backend, TuneBudget
from effc.core.errors import ConfigError, Problem, UnsupportedOpError
from effc.core.measure import Device, Feeds
from effc.core.target import Target

if TYPE_CHECKING:
    from effc.backends.tvm.isa import Isa
    from effc.backends.tvm.program import Program

_HINT = "pip install 'effc[tvm]'"
# of fp16 and bf16 only weights are stored so: kernels compute in float32
_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "w4a8", "auto")


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Let TVM be imported without torch.

    TVM imports torch wherever it is installed, only to take its tensors: most of the time and memory of the
    import. What the process has imported already stays.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


class TvmBackend(Backend["Program"]):
    """Lowers to a `Program`; compiles it to `model.so` and `effc_model.h`."""

    id: ClassVar[str] = "tvm"

    @classmethod
    def probe(cls) -> Availability:
        try:
            with _torch_hidden():
                import tvm

            versions = {p: version(p) for p in ("apache-tvm", "apache-tvm-ffi")}
        except (ImportError, PackageNotFoundError, OSError) as error:
            return Availability(False, f"TVM can't be imported: {error}", _HINT)
        if tvm.get_global_func("target.build.llvm", allow_missing=True) is None:
            return Availability(False, "this TVM was built without LLVM", _HINT)
        from effc.backends.tvm.compilers import c_compiler

        compiler = c_compiler()
        if compiler is None:
            return Availability(
                False,
                "there is no C compiler",
                "install gcc or clang, set CC, or: pip install ziglang",
            )
        return Availability(True, versions={**versions, "cc": _compiler_version(compiler)})

    def accepts(self, target: Target) -> Availability:
        if gpu := _cuda(target):
            return gpu.accepts(target)
        if mcu := _mcu(target):
            return mcu.accepts(target)  # type: ignore[no-any-return]
        try:
            isa = _isa(target)
        except ConfigError as error:
            return Availability(False, str(error), error.hint)
        from effc.backends.tvm.compilers import c_compiler, install_hint

        if c_compiler(isa.triple) is None:
            return Availability(
                False, f"there is no C compiler for {isa.triple}", install_hint(isa.triple)
            )
        if target.precision not in _PRECISIONS:
            return Availability(
                False,
                f"it does not build {target.precision}",
                f"choose --precision {' or '.join(_PRECISIONS)}",
            )
        return Availability(True)

    def quantization(self, target: Target) -> str:
        if _cuda(target):
            return "vnni"
        if _mcu(target):
            return "integer"
        return "vnni" if _isa(target).triple.startswith(("x86_64", "amd64")) else "arm"

    def times(self, device: Device) -> bool:
        return device.source == "device"

    def legalize(self, target: Target) -> str:
        from effc.backends.tvm.pipeline import cpu

        if mcu := _mcu(target):
            return mcu.legalize()  # type: ignore[no-any-return]
        if _cuda(target):
            return cpu("keep")
        return cpu("unsigned" if _isa(target).triple.startswith(("x86_64", "amd64")) else "signed")

    def check(self, model: ir.Model, target: Target) -> Sequence[Problem]:
        try:
            self.lower(model, target)
        except UnsupportedOpError as error:
            return error.problems
        return ()

    def lower(self, model: ir.Model, target: Target) -> Program:
        if gpu := _cuda(target):
            return gpu.lower(model, target)
        if mcu := _mcu(target):
            return mcu.lower(model, target)  # type: ignore[no-any-return]
        from effc.backends.tvm.lower import lower

        return lower(model, _isa(target), target.profile.name)

    def tune(
        self,
        lowered: Program,
        target: Target,
        budget: TuneBudget,
        device: Device,
        feeds: Feeds | None = None,
    ) -> Program:
        if _cuda(target) or _mcu(target):
            raise ConfigError(
                f"kernels for {target.profile.name} have nothing to tune",
                hint="leave --budget and --records out",
            )
        from effc.backends.tvm.tune import tune

        return tune(lowered, budget, feeds, target.threads)

    def compile(self, lowered: Program, target: Target, out: Path) -> Mapping[str, Path]:
        if gpu := _cuda(target):
            return gpu.compile_program(lowered, out)
        if mcu := _mcu(target):
            return mcu.compile_program(lowered, target, out)  # type: ignore[no-any-return]
        from effc.backends.tvm.library import write_library

        return write_library(lowered, out)

    def devices(self, target: Target) -> Iterable[Device]:
        if gpu := _cuda(target):
            return gpu.devices(target)
        if mcu := _mcu(target):
            return mcu.devices(target)  # type: ignore[no-any-return]
        from effc.backends.tvm import qemu_user
        from effc.backends.tvm.compilers import is_native
        from effc.backends.tvm.isa import host_isa, runs_on
        from effc.backends.tvm.runner import Host

        isa = _isa(target)
        if address := target.options.get("device", ""):
            from effc.backends.tvm.over_ssh import Board
            from effc.core.ssh import Address

            Address.parse(address)
            config = target.options.get("ssh-config", "")
            return (Board(address, Path(config) if config else None),)
        if is_native(isa.triple):
            return (Host(),) if runs_on(isa, host_isa()) else ()
        return (qemu_user.QemuUser(isa),) if qemu_user.available(isa.triple) else ()

    def device_at(self, target: Target, address: str) -> Device:
        if mcu := _mcu(target):
            device: Device = mcu.device_at(target, address)
            return device
        return super().device_at(target, address)

    def why_no_device(self, target: Target) -> str:
        if gpu := _cuda(target):
            return gpu.why_no_device(target)
        if _mcu(target):
            return super().why_no_device(target)
        from effc.backends.tvm import qemu_user
        from effc.backends.tvm.compilers import architecture, is_native
        from effc.backends.tvm.isa import host_isa

        triple = _isa(target).triple
        if not is_native(triple):
            return (
                f"there is no emulator of {architecture(triple)} on this machine: "
                + qemu_user.install_hint(triple)
            )
        missing = sorted(set(_isa(target).features) - set(host_isa().features))
        return (
            f"this machine lacks {', '.join(missing[:5])}, which {target.profile.name} has"
            if missing
            else super().why_no_device(target)
        )

    def describe(self, lowered: Any) -> dict[str, Any]:
        from effc.backends.tvm.mcu import program

        if isinstance(lowered, program.Program):
            from effc.backends.tvm.mcu.backend import describe as describe_firmware

            return describe_firmware(lowered)
        if lowered.isa.name.startswith("sm_"):
            from effc.backends.tvm.cuda.backend import describe

            return describe(lowered)
        templates = Counter(c.template for c in lowered.calls)
        return {
            "isa": lowered.isa.name,
            "calls": dict(sorted(templates.items())),
            "kernels": len(lowered.kernels),
            "fallbacks": sorted(
                {n for c in lowered.calls if c.template.startswith("tvm:") for n in c.nodes}
            ),
            "arena_bytes": lowered.arena_bytes,
            "arena_bound_bytes": lowered.arena_bound,
            "scratch_bytes_per_thread": lowered.scratch_bytes,
            "constant_bytes": lowered.constant_bytes,
            **({"constants": dict(lowered.storage)} if lowered.storage else {}),
            **({"tuning": dict(lowered.tuning)} if lowered.tuning else {}),
        }


class _Gpus(Protocol):
    """What cuda/backend.py answers."""

    def accepts(self, target: Target) -> Availability: ...
    def lower(self, model: ir.Model, target: Target) -> Program: ...
    def compile_program(self, lowered: Program, out: Path) -> Mapping[str, Path]: ...
    def devices(self, target: Target) -> Iterable[Device]: ...
    def why_no_device(self, target: Target) -> str: ...


def _cuda(target: Target) -> _Gpus | None:
    """The module that answers for NVIDIA GPUs, if the target is one."""
    if "sm" not in target.profile.toolchain:
        return None
    from effc.backends.tvm.cuda import backend

    return backend


def _mcu(target: Target) -> Any:
    """The module that answers for microcontrollers, if the target is one."""
    from effc.backends.tvm.mcu.cores import is_microcontroller

    if not is_microcontroller(target.profile):
        return None
    from effc.backends.tvm.mcu import backend

    return backend


def _isa(target: Target) -> Isa:
    from effc.backends.tvm.isa import isa_of

    return isa_of(target.profile)


def _compiler_version(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
        return (done.stdout.splitlines() or ["unknown"])[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
