"""Artifacts for ARM Linux: cross-compiled here, run by QEMU, counted, and refused where they can't run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("tvm")

from effc.backends.tvm import compilers, qemu_user  # noqa: E402
from effc.backends.tvm.backend import TvmBackend  # noqa: E402
from effc.backends.tvm.isa import host_isa, isa_of  # noqa: E402
from effc.backends.tvm.library import PROGRAM, RUNTIME, link_program, write_library  # noqa: E402
from effc.backends.tvm.lower import lower  # noqa: E402
from effc.backends.tvm.over_ssh import Board  # noqa: E402
from effc.backends.tvm.qemu_user import EmulatedRunner, QemuUser  # noqa: E402
from effc.build import build  # noqa: E402
from effc.choices import BuildOptions  # noqa: E402
from effc.core.artifact import Artifact, Manifest, Verdict  # noqa: E402
from effc.core.errors import ConfigError, DeviceError  # noqa: E402
from effc.core.integers import DOMAIN, reference  # noqa: E402
from effc.core.passinfra import PassContext  # noqa: E402
from effc.core.profiles import load_profile  # noqa: E402
from effc.core.reference import OnnxRuntimeRunner, random_feeds  # noqa: E402
from effc.core.shapes import infer_shapes  # noqa: E402
from effc.core.specs import static_specs  # noqa: E402
from effc.core.target import Target  # noqa: E402
from effc.passes import CANONICALIZE, FUSE, parse  # noqa: E402
from effc.runnable import open_runnable  # noqa: E402
from effc.zoo import build as zoo  # noqa: E402

TRIPLE = "aarch64-linux-gnu"
emulator_here = pytest.mark.skipif(
    compilers.is_native(TRIPLE)
    or compilers.c_compiler(TRIPLE) is None
    or not qemu_user.available(TRIPLE),
    reason="no aarch64-linux-gnu-gcc or no qemu-aarch64 here",
)
Array = np.ndarray[Any, Any]


def target(name: str, **options: str) -> Target:
    return Target(load_profile(name), options=options)


def artifact_of(model: ir.Model, name: str, folder: Path) -> Artifact:
    """A model that was legalized, compiled for the target `name`."""
    write_library(lower(model, isa_of(load_profile(name))), folder)
    specs = static_specs(model.graph.inputs), static_specs(model.graph.outputs)
    verdict = Verdict("not run", "a test")
    return Artifact(folder, Manifest(1, {}, name, "tvm", "", *specs, {}, (), "", {}, verdict))


def integer_model(name: str, on: Target) -> ir.Model:
    model: ir.Model = zoo(name)
    infer_shapes(model)
    context = PassContext(on, None, 0)
    scheme = TvmBackend().quantization(on)
    parse(f"{CANONICALIZE},{FUSE},quantize{{scheme={scheme}}}").run(model, context)
    parse(TvmBackend().legalize(on)).run(model, context)
    return model


def emulated(artifact: Artifact, threads: int = 1) -> EmulatedRunner:
    (device,) = TvmBackend().devices(target(artifact.manifest.target))
    assert device.source == "emulator"
    runner = device.runner(artifact, threads)
    assert isinstance(runner, EmulatedRunner)
    return runner


@emulator_here
def test_from_model_to_verdict(tmp_path: Path) -> None:
    built = build("zoo:tiny-conv", "raspberry-pi-5", tmp_path / "out").artifact
    manifest = built.manifest
    assert manifest.verdict.status == "passed"
    assert "emulator: qemu-aarch64 (cortex-a76)" in manifest.verdict.reason
    assert {"model.so", "effc_model.h", "run_model", "run_model.c"} <= set(manifest.files)
    (counted,) = manifest.measurements
    assert counted.source == "emulator"
    assert counted.instructions
    assert not counted.seconds
    machine = subprocess.run(["file", "-b", built.path / PROGRAM], capture_output=True, text=True)
    assert machine.returncode or "aarch64" in machine.stdout
    with open_runnable(str(tmp_path / "out")) as opened, opened.runner(2) as runner:
        model = zoo("tiny-conv")
        infer_shapes(model)
        for feeds in random_feeds(model, 3):  # one process for all
            with OnnxRuntimeRunner(model) as other:
                wanted = other.infer(feeds)
            for key, value in runner.infer(feeds).items():
                np.testing.assert_allclose(
                    value, wanted[key], atol=1e-5 * np.abs(wanted[key]).max()
                )


@emulator_here
@pytest.mark.parametrize(
    ("name", "board"),
    [
        ("tiny-resnet", "raspberry-pi-5"),
        pytest.param("tiny-conv", "raspberry-pi-4", marks=pytest.mark.slow),
        pytest.param("tiny-mobilenetv3", "graviton3", marks=pytest.mark.slow),
        ("tiny-conv", "cortex-a55"),
    ],
)
def test_integers_bit_for_bit(name: str, board: str, tmp_path: Path) -> None:
    model = integer_model(name, target(board))
    assert sum(n.domain == DOMAIN for n in model.graph) > len(model.graph) // 2
    stored = {v.dtype for n in model.graph if n.domain == DOMAIN for v in n.outputs}
    assert ir.DataType.INT8 in stored
    assert ir.DataType.UINT8 not in stored
    feeds = random_feeds(model, 1)[0]
    artifact = artifact_of(model, board, tmp_path)
    wanted = reference.run(model, feeds)
    for threads in (1, 3):
        with emulated(artifact, threads) as runner:
            found = runner.infer(feeds)
        for key, expected in wanted.items():
            np.testing.assert_array_equal(found[key], expected)


@emulator_here
def test_instructions_are_counted_exactly(tmp_path: Path) -> None:
    """The same in every run, for every call; the dot product takes a fraction of what int16 products take."""
    totals = {}
    for board in ("raspberry-pi-4", "raspberry-pi-5"):
        model = integer_model("tiny-conv", target(board))
        feeds = random_feeds(model, 1)[0]
        with emulated(artifact_of(model, board, tmp_path / board)) as runner:
            calls = runner.instructions(feeds)
            if calls is None:
                pytest.skip("this QEMU takes no plugins")
            assert calls == runner.instructions(feeds)
            assert runner.layers(feeds, 1) == []
            measured = runner.time(feeds, 100)
        assert measured.instructions == sum(count for _, count in calls)
        assert measured.median is None
        assert all(count > 0 for _, count in calls)
        nodes = {node for call, _ in calls for node in call.nodes}
        assert nodes <= {n.name for n in model.graph} | {""}
        totals[board] = sum(count for call, count in calls if call.template.startswith("conv"))
    assert totals["raspberry-pi-5"] < 0.7 * totals["raspberry-pi-4"]


@emulator_here
def test_a_processor_without_a_feature_is_refused(tmp_path: Path) -> None:
    model = integer_model("tiny-conv", target("graviton3"))
    artifact = artifact_of(model, "graviton3", tmp_path)
    older = QemuUser(isa_of(load_profile("raspberry-pi-4")))
    with older.runner(artifact) as runner, pytest.raises(DeviceError, match="processor lacks"):
        runner.infer(random_feeds(model, 1)[0])


@emulator_here
def test_what_the_program_says(tmp_path: Path) -> None:
    model: ir.Model = zoo("tiny-conv")
    infer_shapes(model)
    parse(f"{CANONICALIZE},{FUSE}").run(model, PassContext())
    artifact = artifact_of(model, "raspberry-pi-4", tmp_path)
    feeds = random_feeds(model, 1)[0]
    (key,) = feeds
    with emulated(artifact) as runner:
        assert runner.once(["--describe"]).startswith(f"input {key} float32 1 3 ")
        with pytest.raises(ConfigError, match="of shape"):
            runner.infer({key: feeds[key][..., :-1]})
        with pytest.raises(ConfigError, match="is missing"):
            runner.infer({})
        with pytest.raises(DeviceError, match="usage"):
            runner.once(["--what"])
        with pytest.raises(DeviceError, match="threads must be"):
            runner.once(["--threads", "1000"])
        command = [*runner.command]
        data = runner.packed(feeds)
    cut = subprocess.run(command, input=data[:-1], capture_output=True, check=False)
    assert cut.returncode == 1
    assert b"ends in the middle of a sample" in cut.stderr
    two = subprocess.run(command, input=data * 2, capture_output=True, check=True).stdout
    assert two[: len(two) // 2] == two[len(two) // 2 :]


def test_a_board_over_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins of ssh and scp take everything to this machine, for which the program is built."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift 2; exec sh -c "$*"\n'
    )
    (programs / "scp").write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nexec cp -r "$2" "/${3#scp://*/}"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/local/bin:/usr/bin:/bin")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    model: ir.Model = zoo("tiny-conv")
    infer_shapes(model)
    parse(f"{CANONICALIZE},{FUSE}").run(model, PassContext())
    folder = tmp_path / "artifact"
    write_library(lower(model, host_isa()), folder)
    specs = static_specs(model.graph.inputs), static_specs(model.graph.outputs)
    verdict = Verdict("not run", "a test")
    artifact = Artifact(folder, Manifest(1, {}, "host", "tvm", "", *specs, {}, (), "", {}, verdict))
    (device,) = TvmBackend().devices(target("raspberry-pi-5", device="ssh://pi@board:2222"))
    assert device == Board("ssh://pi@board:2222")
    assert device.name == "pi@board:2222"
    with pytest.raises(DeviceError, match="has no run_model"), device.runner(artifact):
        pass
    for name in ("run_model.c", "effc_model.h"):
        (folder / name).write_bytes((RUNTIME / name).read_bytes())
    link_program(folder, "")
    feeds = random_feeds(model, 1)[0]
    with OnnxRuntimeRunner(model) as other:
        wanted = other.infer(feeds)
    with device.runner(artifact, 2) as runner:
        found = runner.infer(feeds)
        measured = runner.time(feeds, 5)
        layers = runner.layers(feeds, 3)
    for key, value in found.items():
        np.testing.assert_allclose(value, wanted[key], atol=1e-5 * np.abs(wanted[key]).max())
    assert (measured.source, measured.device, measured.threads) == ("device", "pi@board:2222", 2)
    assert len(measured.seconds) == 5
    assert all(layer.seconds >= 0 for layer in layers)
    assert not list(tmp_path.glob("effc-*"))


def test_addresses_are_checked_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="no address of a device"):
        list(TvmBackend().devices(target("raspberry-pi-5", device="http://board")))


def test_without_tools_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if compilers.is_native(TRIPLE):
        pytest.skip("this machine is the target's architecture")
    backend, pi = TvmBackend(), target("raspberry-pi-5")
    monkeypatch.setenv("CC_aarch64_linux_gnu", "no-such-compiler")
    refused = backend.accepts(pi)
    assert not refused.ok
    assert "no C compiler for aarch64-linux-gnu" in refused.reason
    assert "gcc-aarch64-linux-gnu" in refused.hint
    monkeypatch.setattr(qemu_user, "emulator", lambda triple: None)
    assert not list(backend.devices(pi))
    assert "apt install qemu-user" in backend.why_no_device(pi)
    with pytest.raises(DeviceError, match="no qemu-aarch64"):
        QemuUser(isa_of(pi.profile)).command(Path("program"))


def test_compilers_by_triple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC_arm_linux_gnueabihf", "sh -x")
    assert compilers.c_compiler("armv7a-linux-gnueabihf") == ["sh", "-x"]
    assert compilers.architecture("arm64-apple-ios") == "aarch64"
    assert "libc6-dev-armhf-cross" in compilers.install_hint("armv7a-linux-gnueabihf")
    assert compilers.is_native("")


@emulator_here
def test_goldens_of_a_quantized_build(tmp_path: Path) -> None:
    options = BuildOptions(
        precision="int8", skip=frozenset({"adaround", "correct-bias", "train-quantized"})
    )
    built = build("zoo:tiny-conv", "cortex-a55", tmp_path / "out", options).artifact
    assert built.manifest.verdict.status == "passed"
    assert msgspec.to_builtins(built.manifest)["details"]["isa"] == "neon"
