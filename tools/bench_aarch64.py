"""Instructions of a model on AArch64 under QEMU: effc's artifact beside onnxruntime's aarch64 wheel.

    python tools/bench_aarch64.py MODEL.onnx --target raspberry-pi-5 --precision int8

Downloads Debian's arm64 Python (apt-get download, unpacked, not installed) and onnxruntime's wheel into
--folder once. int8 beside int8 means onnxruntime's quantize_static: QDQ, by channel, int8 activations.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from effc.backends.tvm.isa import isa_of
from effc.backends.tvm.qemu_user import QemuUser, build_plugin
from effc.build import build
from effc.choices import BuildOptions
from effc.core.profiles import load_profile

PACKAGES = (
    "python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1 zlib1g "
    "libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3 libuuid1"
).split()
WHEELS = ("onnxruntime", "numpy", "flatbuffers", "protobuf", "packaging")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
MARK = 141  # getpriority: a system call that nothing else here makes
_PROGRAM = f"""
import ctypes, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
feeds = dict(np.load(sys.argv[3]))
mark = ctypes.CDLL(None).syscall
mark.argtypes = [ctypes.c_long] * 3
session.run(None, feeds)
mark({MARK}, 0, 0)
session.run(None, feeds)
mark({MARK}, 0, 0)
"""
# what onnxruntime reads about the processor, which would be this machine's otherwise
_CPUINFO = (
    "processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
)
_KERNEL = {"dotprod": "asimddp", "fullfp16": "fphp asimdhp", "lse": "atomics", "i8mm": "i8mm"}
_PARTS = {
    "cortex-a55": "0xd05",
    "cortex-a72": "0xd08",
    "cortex-a76": "0xd0b",
    "neoverse-v1": "0xd40",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--target", default="raspberry-pi-5")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "int8"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "effc-aarch64")
    asked = parser.parse_args()
    root = prepare(asked.folder.resolve())
    profile = load_profile(asked.target)
    qemu = QemuUser(isa_of(profile))
    skip = frozenset({"adaround"}) if asked.precision == "int8" else frozenset()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = BuildOptions(precision=asked.precision, skip=skip)
        built = build(str(asked.model), asked.target, folder / "out", options).artifact
        rng = np.random.default_rng(0)
        feeds = {
            i.name: rng.standard_normal(i.shape).astype(i.dtype) for i in built.manifest.inputs
        }
        with qemu.runner(built) as runner:
            ours = runner.time(feeds, 1).instructions
        if ours is None:
            sys.exit("this QEMU counts no instructions: apt install qemu-user")
        model = asked.model
        if asked.precision == "int8":
            model = quantized(asked.model, feeds, folder)
        theirs = onnxruntime(model, feeds, qemu, root, folder)
    print(f"{asked.model.stem} {asked.precision} on {qemu.name}: effc {ours / 1e6:.2f} M, "
          f"onnxruntime {theirs / 1e6:.2f} M, ratio {ours / theirs:.3f}")  # fmt: skip


def prepare(folder: Path) -> Path:
    """An arm64 root folder with Python, and `site` in it with onnxruntime."""
    root = folder / "root"
    if (root / "site" / "onnxruntime").is_dir():
        return root
    for part in ("state/lists/partial", "cache/archives/partial", "packages", "wheels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    settings = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": folder / "state",
        "Dir::State::status": folder / "status", "Dir::Cache": folder / "cache",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(f"-o{k}={v}" for k, v in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *PACKAGES], cwd=folder / "packages", check=True)
    for package in (folder / "packages").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    platforms = [part for p in PLATFORMS for part in ("--platform", p)]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:"]
    version = ["--python-version", "3.11", "--target", str(root / "site")]
    subprocess.run([*pip, *version, *platforms, *WHEELS], check=True)
    return root


def quantized(model: Path, feeds: dict[str, np.ndarray], folder: Path) -> Path:
    """The model as onnxruntime quantizes it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [feeds]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    prepared, made = folder / "prepared.onnx", folder / "quantized.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    types = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(prepared), str(made), Reader(), per_channel=True, **types)
    return made


def onnxruntime(
    model: Path, feeds: dict[str, np.ndarray], qemu: QemuUser, root: Path, folder: Path
) -> int:
    """Instructions of an inference that is not the first, on one thread."""
    features = " ".join(_KERNEL[f] for f in qemu.isa.features if f in _KERNEL)
    part = _PARTS.get(qemu.isa.mcpu, "0xd08")
    (root / "proc").mkdir(exist_ok=True)
    described = _CPUINFO.format(features=f"fp asimd crc32 cpuid {features}", part=part)
    (root / "proc/cpuinfo").write_text(described)
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present"):
        (cpus / name).write_text("0\n")
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    (folder / "program.py").write_text(_PROGRAM)
    plugin = build_plugin(folder, qemu.program)
    counts = folder / "counts"
    command = [
        qemu.program, "-L", root, "-cpu", qemu.cpu, "-plugin", f"{plugin},out={counts},call={MARK}",
        root / "usr/bin/python3.11", folder / "program.py", root / "site", model.resolve(),
        folder / "feeds.npz",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"onnxruntime under QEMU failed: {done.stderr.strip()[-500:]}")
    first, second = (int(line) for line in counts.read_text().split())
    return second - first


if __name__ == "__main__":
    main()
