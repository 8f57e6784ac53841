"""The protocol over lines that damage what they carry, against the real firmware in QEMU."""

from __future__ import annotations

import numpy as np
import pytest

from effc.backends.tvm.mcu.device import frames
from effc.backends.tvm.mcu.device.emulator import QemuDevice
from effc.backends.tvm.mcu.device.frames import Conversation, frame
from effc.core.errors import DeviceError

NAME = 'pixels "x"'


class Noise:
    """Flips or drops single bytes of what a stream carries, at random, never two near each other."""

    def __init__(self, inner, seed: int, rate: float, what: str) -> None:
        self.inner, self.rng, self.rate, self.what = inner, np.random.default_rng(seed), rate, what
        self.damaged = 0

    def _damage(self, data: bytes) -> bytes:
        found = bytearray(data)
        if len(found) > 1 and self.rng.random() < self.rate:
            at = int(self.rng.integers(len(found)))
            self.damaged += 1
            if self.what == "flip":
                found[at] ^= 1 << int(self.rng.integers(8))
            else:
                del found[at]
        return bytes(found)

    def read(self, count: int, seconds: float) -> bytes:
        return (
            self._damage(self.inner.read(count, seconds))
            if self.what == "flip"
            else self.inner.read(count, seconds)
        )

    def write(self, data: bytes) -> None:
        self.inner.write(self._damage(data))


@pytest.mark.parametrize("what", ["flip", "drop"])
def test_damaged_frames_are_sent_again(what, built, network, samples):
    made = built("nrf52840")
    with QemuDevice(made.profile).runner(made.artifact) as runner:
        runner.infer({NAME: samples[0]})
        talk = runner._plain.talk
        noise = Noise(talk.stream, 1, 0.03 if what == "flip" else 0.08, what)
        talk.stream, talk.seconds = noise, 0.2
        for i in range(30):
            x = samples[i % len(samples)]
            found = runner.infer({NAME: x})["scores"]
            np.testing.assert_array_equal(found, network.reference(x))
        talk.stream = noise.inner
    assert noise.damaged >= 3
    assert talk.repeated >= 1


def test_a_wrong_sum_is_never_taken(built, samples):
    made = built("nrf52840")
    with QemuDevice(made.profile).runner(made.artifact) as runner:
        before = runner.infer({NAME: samples[0]})["scores"]
        talk = runner._plain.talk
        talk.number = 77
        good = frame(77, b"R")
        talk.stream.write(good[:-1] + bytes([good[-1] ^ 1]))
        assert talk._receive(b"R") == (None, "checksum")
        with pytest.raises(DeviceError, match="unknown command"):
            talk.ask(b"X")
        with pytest.raises(DeviceError, match="unknown command"):
            talk.ask(b"O", bytes([9]))
        with pytest.raises(DeviceError, match="refuses command W"):
            talk.write(0, bytes(3))
        # an inference may have written over its inputs: they have to come again
        with pytest.raises(DeviceError, match="refuses command R: inputs"):
            talk.run()
        np.testing.assert_array_equal(runner.infer({NAME: samples[0]})["scores"], before)


def test_a_second_frame_of_the_same_number_does_not_run_again(built, network, samples):
    made = built("nrf52840")
    with QemuDevice(made.profile).runner(made.artifact) as runner:
        runner.infer({NAME: samples[0]})
        talk = runner._plain.talk
        talk.write(0, samples[1].tobytes())
        first = talk.run()
        talk.stream.write(frame(talk.number, b"R"))
        assert talk._receive(b"R")[0] is not None
        assert first.status == 0
        found = np.frombuffer(talk.read(0), np.int8).reshape(1, -1)
        np.testing.assert_array_equal(found, network.reference(samples[1]))


class Silent:
    def read(self, count: int, seconds: float) -> bytes:
        return b""

    def write(self, data: bytes) -> None: ...


def test_a_silent_board_is_an_error():
    with pytest.raises(DeviceError, match=f"failed {frames.TRIES} times: silent"):
        Conversation(Silent(), 0.01, "board").interface()
