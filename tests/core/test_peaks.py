"""What the host reaches when it is timed."""

from __future__ import annotations

from effc.core.peaks import measure_peaks
from effc.core.target import HardwareProfile, Memory, Number


def cache(name: str, size: int, shared_by: int = 1) -> Memory:
    return Memory(name, Number(size, "measured", "a test"), None, shared_by)


def host(*memories: Memory) -> HardwareProfile:
    dram = Memory("DRAM", Number(8 << 30, "measured", "a test"))
    return HardwareProfile(
        name="host", title="a test", vendor="", backend="tvm", triple="x86_64-linux-gnu", cores=2,
        memories=(*memories, dram),
    )  # fmt: skip


def test_peaks_of_memories_that_can_be_timed() -> None:
    profile = host(cache("L1d", 32 << 10), cache("L2", 1 << 20), cache("L3", 16 << 20, 2))
    timed = measure_peaks(profile, repeats=2)
    rates = {m.name: m.bandwidth for m in timed.memories}
    assert rates["L1d"] is None  # the call would be timed
    for name, copied in (("L2", "256 KiB"), ("L3", "2048 KiB"), ("DRAM", "65536 KiB")):
        rate = rates[name]
        assert rate is not None and 1e8 < rate.value < 1e13
        assert rate.basis == "measured" and copied in rate.source
    assert {"float32", "int8"} == set(timed.peak)


def test_a_cache_no_larger_than_the_one_before_is_not_timed() -> None:
    timed = measure_peaks(host(cache("L2", 2 << 20), cache("L3", 8 << 20, 2)), repeats=1)
    assert timed.memories[0].bandwidth is not None and timed.memories[1].bandwidth is None
