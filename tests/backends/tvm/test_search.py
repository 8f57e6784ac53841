"""The decisions of the search, on a made-up machine with a clock of its own: nothing here is timed."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from effc.backends.tvm.isa import host_isa  # noqa: E402
from effc.backends.tvm.kernels.choice import Blocking  # noqa: E402
from effc.backends.tvm.records import Records, here  # noqa: E402
from effc.backends.tvm.search import RULE, Search, Subject, compare  # noqa: E402
from effc.backends.tvm.tune import decide  # noqa: E402

Cost = Callable[[Blocking], float]


@dataclass
class Tiles:
    """Register tiles of 1 to 12 pixels; the rule takes 6; even ones can't be unrolled."""

    key: str = "made up"

    def effective(self, blocking: Blocking) -> Hashable | None:
        tile = blocking.tile or 6
        return tile if 1 <= tile <= 12 else None

    def candidates(self, best: Blocking) -> Iterator[Blocking]:
        yield from (Blocking(tile=t) for t in (5, 7, 4, 8, 3, 9, 2, 10, 1, 11, 12, 13))


@dataclass
class Machine:
    """Kernels cost what `costs` say, in seconds, times noise; running and compiling move the clock."""

    costs: Mapping[str, Cost]
    noise: float = 0.0
    compile_seconds: float = 0.1
    threads: int = 2
    now: float = 0.0
    ready: set[tuple[str, Blocking]] = field(default_factory=set)
    compiled: list[str] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def clock(self) -> float:
        return self.now

    def prepare(self, choices: Mapping[str, Sequence[Blocking]]) -> None:
        for kernel, blockings in choices.items():
            for blocking in blockings:
                if (kernel, blocking) not in self.ready:
                    self.now += self.compile_seconds
                    self.compiled.append(kernel)
                    self.ready.add((kernel, blocking))

    def forget(self, kernel: str, blocking: Blocking) -> None:
        self.ready.discard((kernel, blocking))

    def run(self, choice: Mapping[str, Blocking]) -> dict[str, float]:
        found = {}
        for kernel, cost in self.costs.items():
            blocking = choice.get(kernel, RULE)
            assert blocking == RULE or (kernel, blocking) in self.ready, "not compiled"
            found[kernel] = cost(blocking) * (1 + self.noise * self.random.expovariate(1))
        found[""] = sum(found.values())
        self.now += found[""]
        return found


def _fastest_at(tile: int) -> Cost:
    return lambda b: 1e-3 * (1 + 0.1 * abs((b.tile or 6) - tile))


def _search(
    machine: Machine, path: Path, seconds: float, trials: int = 0
) -> tuple[Search, dict[str, Subject]]:
    records = Records(path, here(host_isa(), 2))
    subjects = [
        Subject(k, f"key of {k}", Tiles(), records.of(f"key of {k}")) for k in machine.costs
    ]
    search = Search(
        subjects, machine, records, machine.now + seconds, clock=machine.clock, most_trials=trials
    )
    return search, search.subjects


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_fastest_is_found(tmp_path: Path, noise: float) -> None:
    machine = Machine({"a": _fastest_at(9), "b": _fastest_at(6), "c": _fastest_at(3)}, noise)
    search, _ = _search(machine, tmp_path / "r", 1000.0)
    search.run()
    assert search.choice == {"a": Blocking(tile=9), "c": Blocking(tile=3)}
    assert search.trials == 3 * 11  # nothing is measured twice


def test_noise_alone_changes_nothing(tmp_path: Path) -> None:
    kept = 0
    for seed in range(5):
        machine = Machine({"a": lambda b: 1e-3, "b": lambda b: 2e-3}, 0.3)
        machine.random.seed(seed)
        search, _ = _search(machine, tmp_path / f"r{seed}", 1000.0)
        search.run()
        kept += len(search.choice)
    assert (
        kept <= 1
    )  # of ten kernels; a 95 % interval errs now and then, upwards in half of the cases


def test_the_budget_goes_where_the_time_goes(tmp_path: Path) -> None:
    machine = Machine({"small": lambda b: 1e-6, "large": _fastest_at(1)})
    search, _ = _search(machine, tmp_path / "r", 3.0)
    search.run()
    assert machine.compiled.count("large") > machine.compiled.count("small")
    assert machine.compiled[0] == "large"


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.5, 2.0, 10.0])
def test_the_budget_is_kept(tmp_path: Path, seconds: float) -> None:
    machine = Machine({"a": _fastest_at(9), "b": _fastest_at(2)})
    search, _ = _search(machine, tmp_path / "r", seconds)
    search.run()
    assert machine.now <= seconds + 0.1  # an inference and the profile may end behind it


def test_a_slow_model_is_not_begun_with_a_short_budget(tmp_path: Path) -> None:
    machine = Machine({"a": lambda b: 1.0})
    search, _ = _search(machine, tmp_path / "r", 10.0)
    search.run()
    assert machine.compiled == []


def test_trials_are_bounded(tmp_path: Path) -> None:
    search, _ = _search(Machine({"a": _fastest_at(9)}), tmp_path / "r", 1000.0, trials=3)
    search.run()
    assert search.trials == 3


def test_another_run_goes_on_where_this_one_ended(tmp_path: Path) -> None:
    costs = {"a": _fastest_at(9)}
    first, _ = _search(Machine(costs), tmp_path / "r", 1000.0, trials=4)
    first.run()
    assert first.choice == {"a": Blocking(tile=8)}
    second, subjects = _search(Machine(costs), tmp_path / "r", 1000.0)
    assert second.choice == first.choice
    second.run()
    assert second.trials == 11 - 4
    assert second.choice == {"a": Blocking(tile=9)}
    assert subjects["a"].gain == pytest.approx(1 / 1.3, rel=0.02)


def test_blockings_of_records_that_do_not_fit_are_left_alone(tmp_path: Path) -> None:
    records = Records(tmp_path / "r", here(host_isa(), 2))
    known = records.of("k")
    known.best, known.gain = Blocking(tile=99), 0.5
    assert Subject("a", "k", Tiles(), known).best == RULE


def test_faster_as_a_whole_is_kept_and_slower_is_not() -> None:
    choice = {"a": Blocking(tile=9)}
    better, worse = Machine({"a": _fastest_at(9)}, 0.05), Machine({"a": _fastest_at(1)}, 0.05)
    same = Machine({"a": lambda b: 1e-3}, 0.05)
    assert decide(better, choice, 2, 1.0, better.clock)[1]
    assert better.threads == 1  # held against the untuned program on one thread, too
    assert not decide(worse, choice, 2, 1.0, worse.clock)[1]
    assert not decide(same, choice, 2, 1.0, same.clock)[1]
    assert decide(better, {}, 2, 1.0, better.clock) == (None, False)


def test_faster_on_two_threads_and_slower_on_one_is_not_kept() -> None:
    machine = Machine({})
    machine.costs = {
        "a": lambda b: 1e-3 if b == RULE else 0.8e-3 if machine.threads == 2 else 1.2e-3
    }
    compared, kept = decide(machine, {"a": Blocking(tile=9)}, 2, 1.0, machine.clock)
    assert compared is not None
    assert compared.ratio.high < 1
    assert not kept


def test_a_comparison_has_rounds_enough_whatever_the_time() -> None:
    machine = Machine({"a": lambda b: 1.0})
    compared = compare(machine, {}, 0.0, clock=machine.clock)
    assert compared.ratio.median == 1.0
    assert compared.before["a"] == compared.after["a"] == 1.0
