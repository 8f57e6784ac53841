"""tools/effc on a small project of its own: real venvs and real installs that need no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = []
build-backend = "minimal"
backend-path = ["."]

[project]
name = "effc"
dependencies = []

[project.optional-dependencies]
tvm = ["leaf @ file://{leaf}"]
torch = []
"""
# the whole of a build backend: one wheel with a .pth file, the entry point and nothing else
BACKEND = """
import os, pathlib, time, zipfile
ROOT = pathlib.Path(__file__).parent
NAME = "{name}"

def build_wheel(folder, config_settings=None, metadata_directory=None):
    time.sleep(float(os.environ.get("BUILD_SECONDS", "0")))
    info = NAME + "-1.0.dist-info"
    files = {{
        NAME + ".pth": str(ROOT) + "\\n",
        info + "/METADATA": "Metadata-Version: 2.1\\nName: " + NAME + "\\nVersion: 1.0\\n",
        info + "/WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        info + "/entry_points.txt": "[console_scripts]\\neffc = effc_job:main\\n" if NAME == "effc" else "",
    }}
    files[info + "/RECORD"] = "".join(f + ",,\\n" for f in [*files, info + "/RECORD"])
    wheel = NAME + "-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / wheel, "w") as z:
        for name, text in files.items():
            z.writestr(name, text)
    return wheel

build_editable = build_wheel
"""
JOB = """
import sys
def main():
    try:
        import leaf_module as leaf
    except ImportError:
        leaf = None
    print("job", *sys.argv[1:], "with" if leaf else "without", "leaf")
"""


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "a checkout"
    leaf = tmp_path / "leaf"
    shutil.copytree(root / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "hwprofiles", folder / "hwprofiles")
    (folder / "backends/tvm").mkdir(parents=True)
    (folder / "backends/tvm/backend.py").touch()
    (folder / "pyproject.toml").write_text(PYPROJECT.format(leaf=leaf))
    (folder / "minimal.py").write_text(BACKEND.format(name="effc"))
    (folder / "effc_job.py").write_text(JOB)
    leaf.mkdir()
    (leaf / "minimal.py").write_text(BACKEND.format(name="leaf"))
    (leaf / "leaf_module.py").touch()
    (leaf / "pyproject.toml").write_text(PYPROJECT.split("[project]")[0])
    return folder


def start(checkout: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(checkout / "tools/effc"), *arguments],
        cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PIP_NO_INDEX": "1", **env},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


def test_first_start_installs_what_the_job_needs_and_the_second_nothing(
    checkout: Path, tmp_path: Path
) -> None:
    assert finish(start(checkout, "targets"))[0] == "job targets without leaf"
    out, err = finish(start(checkout, "build", "m.onnx", "--target", "rpi5", "--json"))
    assert out == "job build m.onnx --target rpi5 --json with leaf"
    assert "installing into .venv: leaf @" in err

    link = tmp_path / "effc-link"
    link.symlink_to(checkout / "tools/effc")
    seconds = []
    for command in (checkout / "tools/effc", link, link):
        begin = time.perf_counter()
        done = subprocess.run(
            [command, "build", "m.onnx"], cwd=tmp_path, capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - begin)
        assert (done.stdout, done.stderr) == ("job build m.onnx with leaf\n", "")
    assert min(seconds) < 0.5

    # another pyproject.toml: everything again, with the extras that were there
    with (checkout / "pyproject.toml").open("a") as f:
        f.write("\n# changed\n")
    out, err = finish(start(checkout, "targets"))
    assert out == "job targets with leaf"
    assert "leaf @" in err and "making" not in err

    # the system's Python went away below the venv
    python = checkout / ".venv/bin/python"
    python.unlink()
    python.symlink_to(tmp_path / "gone")
    out, err = finish(start(checkout, "targets"))
    assert "making .venv" in err and out.startswith("job targets")


def test_two_first_starts_at_once(checkout: Path) -> None:
    both = [start(checkout, "build", "m.onnx"), start(checkout, "check", "m.onnx")]
    (first, err1), (second, err2) = map(finish, both)
    assert (first, second) == ("job build m.onnx with leaf", "job check m.onnx with leaf")
    assert (err1 + err2).count("making .venv") == 1
    assert "waiting for another install" in err1 + err2


def test_a_killed_first_start_is_done_over(checkout: Path) -> None:
    slow = start(checkout, "build", "m.onnx", BUILD_SECONDS="60")
    begun = checkout / ".venv/effc-install-begun"
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(slow.pid, signal.SIGKILL)
    slow.communicate()
    shutil.rmtree(next((checkout / ".venv/lib").iterdir()) / "site-packages/pip")  # half a venv
    out, err = finish(start(checkout, "build", "m.onnx"))
    assert out == "job build m.onnx with leaf"
    assert "interrupted: starting over" in err


def test_a_failed_install_says_why(checkout: Path) -> None:
    shutil.rmtree(checkout.parent / "leaf")
    process = start(checkout, "build", "m.onnx")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "pip failed" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        ("targets", ""),
        ("doctor --json", ""),
        ("build m.onnx", "tvm"),
        ("build m.onnx --target host", "tvm"),
        ("build m.onnx --target=raspberry-pi-5", "tvm"),
        ("build m.onnx --target my/board.toml", "tvm"),
        ("build m.onnx --target host --backend ort", ""),
        ("build m.onnx --target jetson", ""),  # no such backend in the small project
        ("build m.onnx --target nonsense", ""),
        ("build m.onnx --target my/rtx.toml", "tensorrt tensorrt-rtx"),
        ("build m.onnx --target my/rtx.toml --backend-option product=bundle", "tensorrt"),
        ("build m.onnx --target my/rtx.toml --backend ort", ""),
        ("build m.onnx --target my/rtx.toml --backend tvm", "tvm cuda"),
        ("build m.onnx --target my/orin.toml", "tensorrt"),
        ("bench my/engine", "tensorrt tensorrt-rtx"),
        ("build zoo:tiny-convnet --target host", "tvm"),
        ("build zoo:timm/resnet18 --target host", "tvm torch"),
        ("build my_models.resnet:build --backend ort", "torch"),
        ("build m.onnx --backend ort --pass mine.passes:Mine", ""),
        ("build m.onnx --pass mine.py:Mine", "tvm"),
        ("inspect net.pt2", "torch"),
        ("build net_int8.tflite", "tvm tflite"),
        ("inspect net.tflite", "tflite"),
        ("inspect m.onnx --target host", ""),
        ("build my/net.py:make --backend ort", "torch"),
        ("run my/artifact --input x.npz", "tvm"),
        ("compare my/artifact my_models:net", "tvm torch"),
        ("run out --input x.npz", ""),
        ("bench out --against onnxruntime", ""),
        ("passes --target host", ""),
    ],
)
def test_the_extras_follow_from_the_arguments(checkout: Path, arguments: str, extras: str) -> None:
    """The installer is replaced by one that says what it was asked for."""
    (checkout / "tools/lib/bootstrap.py").write_text(
        "import sys; sys.exit(' '.join(sys.argv[1:]) + '.')"
    )
    (checkout / "my/artifact").mkdir(parents=True)
    (checkout / "my/artifact/manifest.json").write_text(
        '{"format": 1,"backend": "tvm","precision":""}'
    )
    (checkout / "my/board.toml").write_text('name = "x"\nbackend = "tvm"\n')
    if "my/rtx" in arguments or "orin" in arguments or "engine" in arguments:
        (checkout / "backends/tensorrt").mkdir(parents=True)
        (checkout / "backends/tensorrt/backend.py").touch()
    for name, sm, triple in (("rtx", "89", "x86_64"), ("orin", "87", "aarch64")):
        (checkout / f"my/{name}.toml").write_text(
            f'backend = "tensorrt"\ntriple = "{triple}-linux-gnu"\n[toolchain]\nsm = "{sm}"\n'
        )
    (checkout / "my/engine").mkdir()
    (checkout / "my/engine/manifest.json").write_text(
        '{"backend": "tensorrt", "details": {"product": "rtx"}}'
    )
    done = subprocess.run(
        [checkout / "tools/effc", *arguments.split()], cwd=checkout, capture_output=True, text=True
    )
    assert done.stderr == f"{extras}.\n"
