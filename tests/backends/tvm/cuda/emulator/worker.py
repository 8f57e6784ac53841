"""Runs model libraries for GPUs on the fake driver, in a process of its own: pickles in, pickles out."""

from __future__ import annotations

import ctypes
import pickle
import sys
from typing import Any

from effc.core.errors import EffcError
from effc.core.native import Model


def answer(driver: Any, task: dict[str, Any]) -> dict[str, Any]:
    """One task: the outputs of all feeds, the launches, and what was wrong."""
    kernels = task["kernels"].encode()
    if driver is not None and driver.fake_use(kernels, int(task["reversed"]), *task["sm"]):
        return {"error": "the kernels can't be loaded"}
    found: dict[str, Any] = {"outputs": []}
    try:
        with Model(task["library"]) as model:
            found["outputs"] = [model.run(f) for f in task["feeds"]]
            if task["profile"]:
                found["profile"] = [c.seconds for c in model.profile(task["feeds"][0])]
                times = (ctypes.c_float * 3)()
                model._library.effc_model_time_device.argtypes = [
                    ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_float)
                ]  # fmt: skip
                assert not model._library.effc_model_time_device(model.handle, 3, times)
                found["times"] = list(times)
    except EffcError as error:
        found["error"] = str(error)
    if driver is not None:
        found["journal"] = driver.fake_journal().decode().splitlines()
        found["wrong"] = driver.fake_wrong().decode()
    return found


def main() -> None:
    driver = None
    if sys.argv[1:]:
        driver = ctypes.CDLL(sys.argv[1])
        driver.fake_journal.restype = driver.fake_wrong.restype = ctypes.c_char_p
    out = sys.stdout.buffer
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(driver, task), out)
        out.flush()


if __name__ == "__main__":
    main()
