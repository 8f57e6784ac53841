"""The host's side of the firmware's protocol (firmware/serve.c): frames with a CRC over any byte stream."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Protocol

from effc.core.errors import DeviceError

MAGIC = b"\xef\xc0"
TRIES = 6
_FILL = 96  # bytes that end whatever short frame the firmware may think it is in
_MOST = 1 << 26  # bytes of an answer; more is noise


class Refused(DeviceError):
    """The firmware read the command and does not follow it; `why` is its word."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class Stream(Protocol):
    """A byte stream to a firmware."""

    def read(self, count: int, seconds: float) -> bytes:
        """Up to `count` bytes; none after `seconds`; DeviceError where the other side has gone."""

    def write(self, data: bytes) -> None:
        """Write all of `data`; DeviceError where the other side has gone."""


@dataclass(frozen=True, slots=True)
class Port:
    """A tensor as the firmware names it."""

    name: str
    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Interface:
    """What the firmware says about itself; `hertz` is 0 where it does not know its clock."""

    hertz: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Ran:
    """One inference: what effc_invoke gave, bytes of stack below its caller, ticks of the core's clock."""

    status: int
    stack_bytes: int
    stack_full: bool  # down to its end: it may have gone further
    ticks: int


def frame(number: int, command: bytes, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    body = bytes([number]) + command + struct.pack("<I", len(payload)) + payload
    return MAGIC + body + struct.pack("<I", zlib.crc32(body))


class Conversation:
    """Commands and answers over a stream; a frame that was damaged on the way is sent again."""

    def __init__(self, stream: Stream, seconds: float, what: str) -> None:
        self.stream = stream
        self.seconds = seconds  # without a byte before the device counts as silent
        self.what = what
        self.number = 0  # of the last frame; 1 to 255
        self.repeated = 0

    def interface(self) -> Interface:
        """The firmware's description of itself."""
        lines = self.ask(b"I").decode("ascii", "replace").splitlines()
        head = lines[0].split() if lines else []
        if head[:2] != ["effc", "1"]:
            raise DeviceError(f"{self.what} does not run effc's firmware, version 1")
        ports: dict[str, list[Port]] = {"input": [], "output": []}
        for line in lines[1:]:
            role, dtype, size, name = line.split(" ", 3)
            ports[role].append(Port(name, dtype, int(size)))
        return Interface(int(head[2]), tuple(ports["input"]), tuple(ports["output"]))

    def write(self, index: int, data: bytes) -> None:
        """Fill input `index`."""
        self.ask(b"W", bytes([index]) + data)

    def run(self) -> Ran:
        """One inference."""
        status, depth, ticks = struct.unpack("<iIQ", self.ask(b"R"))
        return Ran(status, depth & 0x7FFFFFFF, bool(depth >> 31), ticks)

    def read(self, index: int) -> bytes:
        """The bytes of output `index`."""
        return self.ask(b"O", bytes([index]))

    def quit(self) -> None:
        """End the firmware's session."""
        self.ask(b"Q")

    def ask(self, command: bytes, payload: bytes = b"") -> bytes:
        """Send a command until its answer comes undamaged; DeviceError after TRIES, or a Refused."""
        self.number = self.number % 255 + 1
        why = ""
        for attempt in range(TRIES):
            self.repeated += attempt > 0
            self.stream.write(frame(self.number, command, payload))
            answer, why = self._receive(command)
            if answer is not None:
                return answer
            # what is left of a damaged frame keeps the firmware waiting: fill it up with what begins none
            self.stream.write(bytes(len(payload) + _FILL))
        raise DeviceError(f"{self.what}: command {command.decode()} failed {TRIES} times: {why}")

    def _receive(self, command: bytes) -> tuple[bytes | None, str]:
        """The answer to the frame that was sent last; answers to earlier ones are passed over."""
        while True:
            seen = b""
            while not seen.endswith(MAGIC):
                byte = self.stream.read(1, self.seconds)
                if not byte:
                    return None, f"silent for {self.seconds:g} s"
                seen = (seen + byte)[-2:]
            head = self._exactly(6)
            length = struct.unpack("<I", head[2:])[0] if len(head) == 6 else _MOST + 1
            if length > _MOST:
                return None, "a damaged answer"
            payload, tail = self._exactly(length), self._exactly(4)
            if len(tail) < 4 or struct.unpack("<I", tail)[0] != zlib.crc32(head + payload):
                return None, "a damaged answer"
            number, kind = head[0], head[1:2]
            if kind == b"E" and number in (0, self.number):
                text = payload.decode("ascii", "replace")
                if number:
                    raise Refused(f"{self.what} refuses command {command.decode()}: {text}", text)
                return None, text
            if number == self.number and kind == command:
                return payload, ""

    def _exactly(self, count: int) -> bytes:
        parts, left = [], count
        while left:
            part = self.stream.read(left, self.seconds)
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
