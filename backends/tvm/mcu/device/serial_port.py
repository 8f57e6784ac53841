"""A board behind a serial port: the same firmware and frames as in the emulator, over termios."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
import tty
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self
from urllib.parse import parse_qs, urlsplit

from effc.backends.tvm.mcu.device.description import Description, read_description
from effc.backends.tvm.mcu.device.frames import Conversation
from effc.backends.tvm.mcu.device.session import Session
from effc.core.artifact import Artifact
from effc.core.errors import ConfigError, DeviceError
from effc.core.measure import Array, Feeds, Measurement, Runner

SCHEME = "serial"
BAUD = 115200
_SILENT = 20.0  # seconds; an inference says nothing before its end


@dataclass(frozen=True, slots=True)
class SerialDevice:
    """A board that runs the firmware of the artifact, linked with `to="serial"`."""

    path: str
    baud: int = BAUD
    source: Literal["device", "emulator"] = "device"

    @property
    def name(self) -> str:
        """Like "serial:///dev/ttyACM0"."""
        return f"{SCHEME}://{self.path}"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        """A runner that opens the port when it is entered."""
        return SerialRunner(artifact, self)


def parse_device(text: str) -> SerialDevice:
    """`serial:///dev/ttyACM0`, or with the speed: `serial:///dev/ttyUSB0?baud=921600`."""
    parts = urlsplit(text)
    query = parse_qs(parts.query)
    path = parts.netloc + parts.path
    baud = query.pop("baud", [str(BAUD)])[0]
    if parts.scheme != SCHEME or not path or query or not hasattr(termios, f"B{baud}"):
        raise ConfigError(
            f"device {text!r} is no serial port", hint=f"like {SCHEME}:///dev/ttyACM0?baud={BAUD}"
        )
    return SerialDevice(path, int(baud))


class SerialRunner(Runner):
    """One open port."""

    def __init__(self, artifact: Artifact, device: SerialDevice) -> None:
        self.device = device
        self.description: Description = read_description(artifact.path)
        self._line: SerialLine | None = None
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """The conversation with the board; it is checked against the artifact at the first use."""
        if self._session is None:
            self._line = SerialLine(self.device.path, self.device.baud)
            talk = Conversation(self._line, _SILENT, self.device.name)
            self._session = Session(talk, *self.description.borders)
        return self._session

    def __enter__(self) -> Self:
        _ = self.session
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._line is not None:
            self._line.close()
        self._line = self._session = None

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        return self.session.infer(feeds)[0]

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        """Seconds of `effc_invoke` by the board's clock.

        DeviceError where the firmware does not know its clock (`effc_hertz` in effc_board.c).
        """
        session = self.session
        if not session.hertz:
            raise DeviceError(
                f"{self.device.name}: the firmware does not know its clock, so ticks are no times",
                hint="give effc_hertz() in effc_board.c the frequency of the core",
            )
        session.infer(feeds)
        runs = [session.infer(feeds)[1] for _ in range(repeats)]
        return Measurement(
            "device",
            self.device.name,
            seconds=tuple(r.ticks / session.hertz for r in runs),
            peak_bytes=self.description.map.model_ram_bytes + max(r.stack_bytes for r in runs),
        )


class SerialLine:
    """A serial port as a stream: raw, eight bits, no parity, one stop bit."""

    def __init__(self, path: str, baud: int) -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise DeviceError(
                f"serial port {path!r} can't be opened: {error.strerror}",
                hint="see that the board is connected, and that you may use the port (group dialout)",
            ) from error
        self.path = path
        try:
            tty.setraw(self.fd)
            state = termios.tcgetattr(self.fd)
            state[4] = state[5] = getattr(termios, f"B{baud}")
            state[2] |= termios.CLOCAL | termios.CREAD
            termios.tcsetattr(self.fd, termios.TCSANOW, state)
            termios.tcflush(self.fd, termios.TCIOFLUSH)
        except termios.error as error:
            os.close(self.fd)
            raise DeviceError(f"{path!r} is no serial port: {error.args[-1]}") from error

    def read(self, count: int, seconds: float) -> bytes:
        if not select.select([self.fd], [], [], seconds)[0]:
            return b""
        try:
            data = os.read(self.fd, count)
        except OSError as error:
            raise self._broken(error) from error
        if not data:
            raise DeviceError(f"serial port {self.path!r} was closed by the other side")
        return data

    def write(self, data: bytes) -> None:
        view, end = memoryview(data), time.monotonic() + _SILENT + len(data) / 1000
        while view:
            if select.select([], [self.fd], [], 1.0)[1]:
                try:
                    view = view[os.write(self.fd, view) :]
                except OSError as error:
                    raise self._broken(error) from error
            elif time.monotonic() > end:
                raise DeviceError(f"serial port {self.path!r} takes no data")

    def _broken(self, error: OSError) -> DeviceError:
        return DeviceError(f"serial port {self.path!r}: {error.strerror}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)
