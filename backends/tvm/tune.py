"""Tuning a Program on this machine: searches or looks up blockings, and keeps them only if they pay."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from effc.backends.tvm.insitu import InSitu, fill
from effc.backends.tvm.kernels.choice import Blocking
from effc.backends.tvm.program import Program
from effc.backends.tvm.records import Records, default_path, here
from effc.backends.tvm.search import Bench, Comparison, Search, Subject, compare
from effc.core.backend import TuneBudget
from effc.core.measure import Feeds

_FINAL_SHARE, _FINAL_LEAST, _FINAL_MOST = 0.1, 0.3, 5.0  # seconds of the budget kept for the end


def tune(program: Program, budget: TuneBudget, feeds: Feeds | None, threads: int) -> Program:
    """`program` with the fastest blockings that `budget` finds, measured on `threads` threads.

    Records of earlier runs are where the search begins; without any seconds they are used as they are.
    The tuned program is given back only if it is faster than the untuned one as a whole, measured in
    turn, and not slower on one thread. An interrupt (Ctrl-C) ends the search, and what it found counts.
    `Program.tuning` says what was done.
    """
    begun = time.monotonic()
    records = Records(budget.records or default_path(), here(program.isa, threads))
    subjects = _subjects(program, records)
    reused = sum(s.best != Blocking() for s in subjects)
    facts: dict[str, Any] = {
        "threads": threads,
        "budget_seconds": budget.seconds,
        "records_reused": reused,
        "records_skipped": records.skipped,
    }
    if budget.seconds <= 0:
        choice = {s.kernel: s.best for s in subjects if s.best != Blocking()}
        entries = [_entry(program, s, choice, None) for s in subjects]
        facts |= {"trials": 0, "kept": bool(choice), "kernels": entries}
        return replace(program.cut(choice), tuning=facts)
    end = begun + budget.seconds
    final = min(max(_FINAL_SHARE * budget.seconds, _FINAL_LEAST), _FINAL_MOST)
    with InSitu(program, fill(program, feeds), threads) as bench:
        search = Search(
            subjects,
            bench,
            records,
            end - final,
            most_trials=budget.trials,
            progress=budget.progress,
        )
        try:
            search.run()
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        found = search.choice
        budget.progress("tune: tuned beside untuned", 1.0)
        compared, kept = decide(bench, found, threads, final)
    choice = found if kept else {}
    facts |= {
        "seconds": round(time.monotonic() - begun, 3),
        "trials": search.trials,
        "interrupted": interrupted,
        "kept": kept,
        "kernels": [_entry(program, s, choice, compared) for s in subjects],
    }
    if compared is not None:
        ratio = compared.ratio
        facts |= {
            "before_ms": 1e3 * compared.before[""],
            "after_ms": 1e3 * compared.after[""],
            "ratio": ratio.median,
            "interval": [ratio.low, ratio.high],
        }
    return replace(program.cut(choice), tuning=facts)


def _subjects(program: Program, records: Records) -> list[Subject]:
    """The kernels that are called and can be cut in more than one way, in the order of their calls."""
    found = []
    for kernel in dict.fromkeys(call.kernel for call in program.calls):
        site = program.sites.get(kernel)
        space = site.space() if site is not None else None
        if site is None or space is None:
            continue
        key = f"{space.key} + {site.epilogue}" if site.epilogue else space.key
        found.append(Subject(kernel, key, space, records.of(key)))
    return found


def decide(
    bench: Bench,
    choice: Mapping[str, Blocking],
    threads: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Comparison | None, bool]:
    """Hold the program with `choice` against the untuned one for `seconds`, and say whether to keep it.

    It is kept if it is faster on `threads` threads beyond the noise, and on one thread not slower beyond it.
    """
    if not choice:
        return None, False
    bench.prepare({kernel: [blocking] for kernel, blocking in choice.items()})
    share = seconds if threads == 1 else seconds / 2
    compared = compare(bench, choice, share, clock=clock)
    kept = compared.ratio.high < 1.0
    if kept and threads > 1:
        bench.threads = 1
        kept = compare(bench, choice, share, clock=clock).ratio.low <= 1.0
    return compared, kept


def _entry(
    program: Program, subject: Subject, choice: Mapping[str, Blocking], compared: Comparison | None
) -> dict[str, Any]:
    """What the report says about a kernel; times of all its calls in one inference."""
    calls = [c for c in program.calls if c.kernel == subject.kernel]
    entry: dict[str, Any] = {
        "kernel": subject.kernel,
        "key": subject.key,
        "node": calls[0].nodes[0],
        "calls": len(calls),
        "trials": subject.trials,
        "blocking": str(choice.get(subject.kernel, "")),
    }
    if compared is not None:
        entry["before_us"] = round(1e6 * compared.before[subject.kernel], 3)
        entry["after_us"] = round(1e6 * compared.after[subject.kernel], 3)
    return entry
