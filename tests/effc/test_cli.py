"""The command line: JSON documents, exit codes, and what people see."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from effc.build import BuildResult
from effc.cli import COMMANDS, cli, run
from effc.commands.build import default_name
from effc.commands.output import Output
from effc.core.errors import ConfigError

PIPELINE = ("--pipeline", "fold-batch-norm,fold-bias")
ORT = ("--backend", "ort", *PIPELINE)


def effc(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "effc", *arguments],
        capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


def test_every_command_has_help_and_json() -> None:
    runner = CliRunner()
    assert runner.invoke(cli, ["--help"]).exit_code == 0
    for name in COMMANDS:
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0 and "--json" in result.output, name


def test_help_and_import_stay_light() -> None:
    code = (
        "import sys, effc, effc.cli\n"
        "effc.cli.run(['--help'], effc.commands.output.Output())\n"
        "heavy = {'onnx', 'onnx_ir', 'onnxruntime', 'tvm', 'torch', 'numpy', 'rich', 'PIL'}\n"
        "print(sorted(heavy & {m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr


def test_public_names_are_lazy_and_there() -> None:
    code = (
        "import sys, effc\n"
        "assert 'onnx_ir' not in sys.modules\n"
        "import effc.check\n"  # imports the module effc.build
        "assert callable(effc.build) and issubclass(effc.Pass, object)\n"
        "assert all(hasattr(effc, name) for name in effc.__all__)\n"
        "assert not {'torch', 'tvm'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_build_document(command: Any, tmp_path: Path) -> None:
    code, document = command(
        "build", "zoo:tiny-conv", "-o", tmp_path / "out", *ORT, "--threads", "1"
    )
    assert code == 0
    assert document["artifact"] == str(tmp_path / "out")
    assert document["target"] == "host" and document["backend"] == "ort"
    assert document["verdict"]["status"] == "passed" and document["verdict"]["max_error"] < 1e-4
    ours, theirs = document["measurements"]
    assert ours["source"] == "device" and ours["threads"] == 1 and ours["median_ms"] > 0
    assert theirs["name"].startswith("onnxruntime")
    assert {"instructions", "peak_bytes", "device"} <= set(ours)
    fold = document["passes"][0]
    assert (fold["id"], fold["effect"]) == ("fold-batch-norm", "EXACT")
    assert fold["rewrites"] > 0 and fold["seconds"] >= 0


def test_equal_builds_are_equal_bytes(command: Any, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        place = tmp_path / name / "out"
        code, _ = command("build", "zoo:tiny-conv", "-o", place, *ORT, "--no-measure")
        assert code == 0
        files = sorted(p for p in place.rglob("*") if p.is_file())
        found.append({p.name: p.read_bytes() for p in files})
    assert found[0] == found[1] and "report.html" in found[0]


def test_any_pass_can_be_skipped(command: Any, tmp_path: Path) -> None:
    """Of the pipeline, or added by --pass: that is what the hint of a pass that fails says."""
    crash = tmp_path / "crash.py"
    crash.write_text(
        "from effc import Effect, Pass\n"
        "class Crash(Pass):\n"
        "    'Fails.'\n"
        "    id = 'crash'; effect = Effect.EXACT\n"
        "    def run(self, model, ctx): raise KeyError('x')\n"
    )
    arguments = ("build", "zoo:tiny-conv", "-o", tmp_path / "out", *ORT, "--no-measure",
                 "--pass", f"{crash}:Crash")  # fmt: skip
    code, document = command(*arguments)
    assert code == 2 and "--skip crash" in document["error"]["hint"]
    code, document = command(*arguments, "--skip", "crash", "--skip", "fold-bias")
    assert code == 0 and [p["id"] for p in document["passes"]] == ["fold-batch-norm"]


def test_packed_build_runs(command: Any, tmp_path: Path) -> None:
    code, document = command(
        "build", "zoo:tiny-conv", "-o", tmp_path / "tiny", *ORT, "--pack", "--no-measure"
    )
    assert code == 0 and document["artifact"] == str(tmp_path / "tiny.effc")
    code, answer = command("run", tmp_path / "tiny.effc")
    assert code == 0 and answer["synthetic"] is True


def test_build_shows_verdict_latency_and_passes(
    built: BuildResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        ["build", "zoo:tiny-conv", "-o", str(tmp_path / "out"), *ORT, "--threads", "1"], Output()
    )
    shown = capsys.readouterr().out
    assert code == 0
    for word in ("passed", "vs onnxruntime", "fold-batch-norm", "EXACT", str(tmp_path / "out")):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "exit_code", "kind", "words"),
    [
        (["build", "zoo:tiny-none", "-o", "x"], 2, "ConfigError", "tiny-none"),
        (["build", "no/such.onnx", "-o", "x"], 2, "FrontendError", "no/such.onnx"),
        (["build", "zoo:tiny-conv", "--target", "toaster", "-o", "x"], 2, "ConfigError", "toaster"),
        (["build", "zoo:tiny-conv", "--precision", "fp99", "-o", "x"], 2, "ConfigError", "fp99"),
        (
            ["build", "zoo:tiny-conv", "-t", "iphone-15", "--backend-option", "deployment=iOS1", "-o", "x"],
            3, "BackendUnavailable", "",
        ),
        (["build", "zoo:tiny-conv", *ORT, "--backend-option", "labels"], 2, "UsageError", "key=value"),
        (["finish", "none"], 2, "ConfigError", "none"),
        (["build", "zoo:tiny-conv", *ORT, "--skip", "nothing", "-o", "x"], 2, "ConfigError", "nothing"),
        (["build", "zoo:tiny-conv", *ORT, "--pass", "no.py:X", "-o", "x"], 2, "ConfigError", "no.py"),
        (["build", "zoo:tiny-dynamic{batch=0}", *ORT, "-o", "x"], 2, "ConfigError", "dynamic"),
        (["build", "zoo:tiny-conv", *ORT, "--shape", "x"], 2, "UsageError", "x=1,3,224,224"),
        (["build", "zoo:tiny-conv", *ORT, "--budget", "soon"], 2, "UsageError", "soon"),
        (["build", "zoo:tiny-conv", *ORT, "--budget", "5s"], 2, "ConfigError", "nothing to tune"),
        (["build", "zoo:tiny-conv", *ORT, "--preprocess", "magic", "-o", "x"], 2, "ConfigError", "magic"),
        (["build"], 2, "UsageError", "SOURCE"),
        (["bulid"], 2, "UsageError", "build"),
        (["eval", "zoo:tiny-conv", "--data", "none.npz"], 2, "ConfigError", "none.npz"),
        (["passes", "fold-batchnorm"], 2, "ConfigError", "fold-batchnorm"),
    ],
)  # fmt: skip
def test_errors(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], exit_code: int, kind: str, words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, document = command(*arguments)
    error = document["error"]
    assert (code, error["kind"]) == (exit_code, kind), error
    assert words in error["message"] and "\n" not in error["message"] and set(error) >= {"hint"}
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_two_lines_without_traceback() -> None:
    done = effc("inspect", "nothing.onnx")
    assert done.returncode == 2 and done.stdout == ""
    first, second = done.stderr.strip().splitlines()
    assert first.startswith("error: ") and "nothing.onnx" in first
    assert second.startswith("  hint: ")


def test_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, command: Any, capsys: Any
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("effc.doctor.examine", broken)
    code, document = command("doctor")
    assert code == 1 and document["error"]["kind"] == "Bug"
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX")
def test_a_full_disk_is_no_bug(tmp_path: Path) -> None:
    code = (
        "import resource, effc.cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "effc.cli.main(['build', 'zoo:tiny-conv', '--backend', 'ort', '--no-measure', '-o', 'out'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode in (2, 3) and "Traceback" not in done.stderr, done.stderr
    assert "File too large" in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "a", None, "b"), "'a' to 'b'"),
        (MemoryError(), "memory"),
    ],
)
def test_what_the_machine_lacks(
    error: Exception, words: str, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise error

    monkeypatch.setattr("effc.doctor.examine", full)
    code, document = command("doctor")
    assert code == 3 and words in document["error"]["message"] and document["error"]["hint"]


def test_json_owns_stdout() -> None:
    code = (
        "import os, sys, effc.doctor, effc.cli\n"
        "def noisy():\n"
        "    print('python noise'); os.write(1, b'library noise')\n"
        "    return effc.doctor.Diagnosis(True, ())\n"
        "effc.doctor.examine = noisy\n"
        "effc.cli.main(['doctor', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == {"ok": True, "checks": []}
    assert "library noise" in done.stderr and "python noise" in done.stderr


def test_interrupting_ends_cleanly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "effc", "bench", "zoo:tiny-resnet", "--seconds", "60", "--rounds", "1000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors


def test_default_names() -> None:
    assert default_name("zoo:tiny-conv", "host") == "tiny-conv-host"
    assert default_name("models/a b.onnx", "host") == "a-b-host"
    assert default_name("pkg.mod:Net", "boards/mine.toml") == "Net-mine"
    assert (
        default_name("zoo:timm/resnet18{pretrained=true}", "t4")
        == "timm-resnet18-pretrained-true-t4"
    )


def test_lists(command: Any) -> None:
    code, found = command("targets")
    assert code == 0 and found["targets"][0]["name"] == "host"
    assert {"build", "run", "measure", "why"} <= set(found["targets"][0])
    code, found = command("targets", "host")
    assert code == 0 and found["cores"] >= 1
    code, found = command("backends")
    assert code == 0 and {"ort", "tvm"} <= {row["id"] for row in found["backends"]}
    code, found = command("zoo")
    assert code == 0 and "tiny-resnet" in {row["name"] for row in found["models"]}
    code, found = command("passes", "fold-batch-norm")
    assert code == 0 and found["effect"] == "EXACT" and found["doc"]


def test_passes_are_all_described(command: Any) -> None:
    code, found = command("passes")
    assert code == 0
    for row in found["passes"]:
        assert row["summary"] and row["effect"] in ("EXACT", "ROUNDED", "LOSSY"), row["id"]


@pytest.mark.parametrize("name", ["targets", "backends", "zoo", "doctor"])
def test_lists_are_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name], Output()) in (0, 1)
    assert len(capsys.readouterr().out.splitlines()) > 2


def test_run_writes_outputs(command: Any, built: BuildResult, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"class {i}" for i in range(10)))
    code, found = command(
        "run",
        built.path,
        "--input",
        tmp_path / "x.npz",
        "-o",
        tmp_path / "y.npz",
        "--labels",
        labels,
    )
    assert code == 0 and len(found["samples"]) == 3 and found["synthetic"] is False
    with np.load(tmp_path / "y.npz") as y:
        logits = y["logits"]
    assert logits.shape == (3, 10)
    for row, sample in zip(logits, found["samples"], strict=True):
        best = sample[0]["top"][0]
        assert best["index"] == int(row.argmax()) and best["label"] == f"class {row.argmax()}"
        assert len(sample[0]["top"]) == 5
    code, found = command(
        "run", built.path, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.txt"
    )
    assert code == 2


def test_run_refuses_a_contradicting_preprocessing(command: Any, tmp_path: Path) -> None:
    code, _ = command(
        "build",
        "zoo:tiny-conv",
        "-o",
        tmp_path / "out",
        *ORT,
        "--no-measure",
        "--preprocess",
        "unit",
    )
    assert code == 0
    code, found = command("run", tmp_path / "out", "--preprocess", "raw", "--input", __file__)
    assert code == 2 and "contradicts" in found["error"]["message"]


def test_options_of_types() -> None:
    from effc.commands.options import DurationType, ShapeType, ThreadsType

    assert ShapeType().convert("a=b=1,3,8", None, None) == ("a=b", (1, 3, 8))
    assert ShapeType().convert("x=", None, None) == ("x", ())
    assert [DurationType().convert(t, None, None) for t in ("90", "5m", "1h30m", "1.5s")] == [
        90, 300, 5400, 1.5,
    ]  # fmt: skip
    assert ThreadsType().convert("2,1,2", None, None) == (2, 1)


def test_config_errors_carry_their_hint(capsys: pytest.CaptureFixture[str]) -> None:
    Output().error(ConfigError("it is wrong", hint="do this"))
    assert capsys.readouterr().err.splitlines() == ["error: it is wrong", "  hint: do this"]
