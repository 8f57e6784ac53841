"""A real plug-in package, installed by pip and used through every registry and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import HERE

Effc = Callable[..., tuple[int, Any]]

USER_PASS = """
from dataclasses import dataclass, field
from effc.core.passinfra import Effect, Pass

@dataclass(frozen=True, slots=True)
class CountNodes(Pass):
    \"\"\"Rewrites nothing; says how many nodes there are, at most `limit`.\"\"\"

    id = "count-nodes"
    effect = Effect.EXACT
    limit: int = field(default=1000, metadata={"help": "the most that it says"})

    def run(self, model, ctx):
        return min(len(model.graph), self.limit)
"""


def packed(folder: Path, name: str, group: str, entry: str, module: str = "x = 1\n") -> Path:
    """An installed distribution as pip leaves it: a module and a dist-info with one entry point."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    (folder / f"{name}.py").write_text(module)
    return folder


def test_a_plugin_shows_up_in_every_list(effc: Effc, example: Path) -> None:
    def names(command: str, key: str, name: str) -> set[str]:
        code, listed = effc(command, plugins=(example,))
        assert code == 0
        return {row[name] for row in listed[key]}

    assert "remove-double-neg" in names("passes", "passes", "id")
    assert "onnx-text" in names("backends", "backends", "id")
    assert "example-net" in names("zoo", "models", "name")
    code, listed = effc("targets", plugins=(example,))
    row = next(r for r in listed["targets"] if r["name"] == "example-board")
    assert (row["build"], row["run"], row["measure"], row["backend"]) == (
        True,
        True,
        True,
        "onnx-text",
    )


def test_its_model_frontend_pass_board_and_backend_build(
    effc: Effc, example: Path, tmp_path: Path
) -> None:
    code, built = effc(
        "build", "zoo:example-net", "--target", "example", "-o", tmp_path / "a",
        "--pipeline", "remove-double-neg", plugins=(example,),
    )  # fmt: skip
    assert code == 0, built
    assert (built["target"], built["backend"]) == ("example-board", "onnx-text")
    assert built["verdict"]["status"] == "passed"
    assert {(p["id"], p["rewrites"]) for p in built["passes"]} >= {("remove-double-neg", 2)}
    assert (tmp_path / "a/model.onnxtxt").read_text().count("Neg") == 0

    (tmp_path / "m.chain").write_text("Neg\nNeg\nRelu\n")
    code, built = effc(
        "build", tmp_path / "m.chain", "--target", "example-board", "-o", tmp_path / "b",
        "--pass", "remove-double-neg", plugins=(example,),
    )  # fmt: skip
    assert code == 0, built
    assert built["verdict"]["status"] == "passed"
    assert (tmp_path / "b/model.onnxtxt").read_text().count("= Relu (x)") == 1


def test_its_backend_refuses_with_the_node(effc: Effc, example: Path, tmp_path: Path) -> None:
    (tmp_path / "m.chain").write_text("Sin\n")
    code, answer = effc("check", tmp_path / "m.chain", "--target", "example", plugins=(example,))
    assert answer["supported"] is False
    assert [p["op"] for p in answer["problems"]] == ["Sin"]
    code, answer = effc(
        "build",
        tmp_path / "m.chain",
        "--target",
        "example",
        "-o",
        tmp_path / "a",
        plugins=(example,),
    )
    assert (code, answer["error"]["kind"]) == (3, "UnsupportedOpError")


def test_without_the_plugin_its_names_are_unknown(effc: Effc, tmp_path: Path) -> None:
    code, answer = effc("build", "zoo:example-net", "--target", "host", "-o", tmp_path / "a")
    assert (code, answer["error"]["kind"]) == (2, "ConfigError")
    code, answer = effc("targets", "example-board")
    assert (code, answer["error"]["kind"]) == (2, "ConfigError")


@pytest.mark.parametrize("how", ["--pass", "--pipeline"])
def test_a_pass_by_path(effc: Effc, tmp_path: Path, how: str) -> None:
    (tmp_path / "mine.py").write_text(USER_PASS)
    code, built = effc(
        "build", "zoo:tiny-mlp", "--target", "host", "--backend", "ort", "-o", tmp_path / "a",
        how, "mine.py:CountNodes{limit=2}",
    )  # fmt: skip
    assert code == 0, built
    assert ("count-nodes", 2) in {(p["id"], p["rewrites"]) for p in built["passes"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("missing.py:Mine", "missing.py"),
        ("broken.py:Mine", "broken.py"),
        ("mine.py:Nothing", "Nothing"),
        ("mine.py:field", "not a subclass"),
        ("mine.py:CountNodes{limt=2}", "limt"),
        ("mine.py:CountNodes{limit=many}", "many"),
    ],
)
def test_a_bad_pass_by_path_is_one_clear_line(
    effc: Effc, tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "mine.py").write_text(USER_PASS)
    (tmp_path / "broken.py").write_text("import nonexistent_module\n")
    code, answer = effc(
        "build", "zoo:tiny-mlp", "--target", "host", "--backend", "ort", "-o", tmp_path / "a", "--pass", text
    )  # fmt: skip
    assert (code, answer["error"]["kind"]) == (2, "ConfigError")
    assert reason in answer["error"]["message"]


@pytest.mark.parametrize(
    ("group", "entry", "command", "noun"),
    [
        ("effc.passes", "fold-batch-norm = twice:x", "passes", "pass"),
        ("effc.backends", "ort = twice:x", "backends", "backend"),
        ("effc.models", "tiny-mlp = twice:x", "zoo", "model"),
        ("effc.hwprofiles", "rp2040 = twice:x", "targets", "hardware profile"),
    ],
)
def test_a_name_that_two_claim_raises(
    effc: Effc, tmp_path: Path, group: str, entry: str, command: str, noun: str
) -> None:
    folder = packed(tmp_path / "site", "twice", group, entry)
    code, answer = effc(command, plugins=(folder,))
    name = entry.split()[0]
    assert (code, answer["error"]["kind"]) == (2, "ConfigError")
    assert f"{noun} {name!r} is registered twice" in answer["error"]["message"]


def test_two_plugins_with_one_name_raise(effc: Effc, tmp_path: Path) -> None:
    first = packed(tmp_path / "a", "one", "effc.passes", "same = one:x")
    second = packed(tmp_path / "b", "two", "effc.passes", "same = two:x")
    code, answer = effc("passes", plugins=(first, second))
    assert code == 2
    assert "one:x" in answer["error"]["message"] and "two:x" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("group", "command", "key"),
    [
        ("effc.passes", "passes", "failures"),
        ("effc.models", "zoo", "failures"),
        ("effc.hwprofiles", "targets", "failures"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason(
    effc: Effc, tmp_path: Path, group: str, command: str, key: str
) -> None:
    folder = packed(
        tmp_path / "site", "broken", group, "bad = broken:x", "import not_installed_at_all\n"
    )
    code, answer = effc(command, plugins=(folder,))
    assert code == 0
    assert "not_installed_at_all" in answer[key]["bad"]


def test_a_broken_backend_is_listed_with_its_reason(effc: Effc, tmp_path: Path) -> None:
    folder = packed(
        tmp_path / "site", "broken", "effc.backends", "bad = broken:x", "raise OSError(5)\n"
    )
    code, answer = effc("backends", plugins=(folder,))
    row = next(r for r in answer["backends"] if r["id"] == "bad")
    assert code == 0 and row["available"] is False and "OSError" in row["reason"]


def test_an_alias_that_two_profiles_claim_raises(effc: Effc, tmp_path: Path) -> None:
    board = (HERE / "example_plugin/effc_example/example-board.toml").read_text()
    folder = packed(
        tmp_path / "site", "boards", "effc.hwprofiles", "my-board = boards:PATH",
        "import pathlib\nPATH = pathlib.Path(__file__).with_name('my.toml')\n",
    )  # fmt: skip
    (folder / "my.toml").write_text(
        board.replace('"example-board"', '"my-board"').replace('["example"]', '["jetson"]')
    )
    code, answer = effc("targets", plugins=(folder,))
    assert code == 2
    assert "'jetson' is claimed by" in answer["error"]["message"]
