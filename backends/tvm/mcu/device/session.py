"""Inference by conversation: arrays to a firmware and back, the same for emulated and real boards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from effc.backends.tvm.mcu.device.frames import TRIES, Conversation, Port, Ran, Refused
from effc.backends.tvm.mcu.device.sources import device_name
from effc.backends.tvm.mcu.program import Border
from effc.core.errors import ConfigError, DeviceError
from effc.core.measure import Array, Feeds


class Session:
    """A firmware that answers, held to the tensors of the artifact.

    DeviceError where it runs another model.
    """

    def __init__(
        self, talk: Conversation, inputs: Sequence[Border], outputs: Sequence[Border]
    ) -> None:
        self.talk = talk
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        found = talk.interface()
        self.hertz = found.hertz
        for role, ours, theirs in (
            ("input", self.inputs, found.inputs),
            ("output", self.outputs, found.outputs),
        ):
            if [_described(b) for b in ours] != list(theirs):
                raise DeviceError(
                    f"{talk.what} runs the firmware of another model: its {role}s are "
                    f"{', '.join(f'{p.name!r} ({p.dtype}, {p.bytes} bytes)' for p in theirs) or 'none'}",
                    hint="flash the firmware of this artifact",
                )

    def infer(self, feeds: Feeds) -> tuple[dict[str, Array], Ran]:
        """One inference."""
        data = [self._bytes(border, feeds) for border in self.inputs]
        for attempt in range(TRIES):
            for i, one in enumerate(data):
                self.talk.write(i, one)
            try:
                ran = self.talk.run()
                break
            except Refused as error:
                # a damaged frame reached an input behind the one that was confirmed
                if error.why != "inputs" or attempt == TRIES - 1:
                    raise
        if ran.status:
            raise DeviceError(f"{self.talk.what}: effc_invoke gave {ran.status}")
        if ran.stack_full:
            raise DeviceError(
                f"{self.talk.what}: the inference used the whole stack of {ran.stack_bytes} bytes or more",
                hint="build with a larger stack: --backend-option stack=BYTES",
            )
        outputs = {}
        for i, border in enumerate(self.outputs):
            stored = np.frombuffer(self.talk.read(i), border.tensor.dtype)
            outputs[border.name] = border.unpack(stored.reshape(border.tensor.stored))
        return outputs, ran

    @staticmethod
    def _bytes(border: Border, feeds: Feeds) -> bytes:
        if border.name not in feeds:
            raise ConfigError(f"input {border.name!r} is missing")
        array = np.asarray(feeds[border.name])
        if array.shape != border.tensor.shape or array.dtype != np.dtype(border.dtype):
            raise ConfigError(
                f"input {border.name!r} is {array.dtype} of shape {array.shape}",
                hint=f"the model takes {border.dtype} of shape {border.tensor.shape}",
            )
        return border.pack(array).tobytes()


def _described(border: Border) -> Port:
    return Port(device_name(border.name), border.tensor.dtype, border.tensor.bytes)
