"""A board that ssh reaches: `run_model` is copied there, fed through ssh, and timed where it runs."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from effc.backends.tvm.library import LIBRARY, PROGRAM
from effc.backends.tvm.streams import StreamRunner
from effc.core.artifact import Artifact
from effc.core.errors import DeviceError
from effc.core.measure import Runner
from effc.core.ssh import Address, Connection


@dataclass(frozen=True, slots=True)
class Board:
    """The machine at `address` (ssh://user@host:port); `config` is ssh's -F."""

    address: str
    config: Path | None = None
    source: Literal["device", "emulator"] = field(default="device", init=False)
    elsewhere: bool = field(default=True, init=False)  # this machine's speed is no measure of it

    @property
    def name(self) -> str:
        """Where it is."""
        return str(Address.parse(self.address))

    @property
    def how(self) -> str:
        """What the verdict says about the way the answers were got."""
        return f"on {self.name}"

    def runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        connection = Connection(Address.parse(self.address), self.config)
        return BoardRunner(artifact, connection, threads)


class BoardRunner(StreamRunner):
    """`run_model` in a folder of its own on the board, which is removed at the end."""

    def __init__(self, artifact: Artifact, connection: Connection, threads: int = 1) -> None:
        super().__init__(artifact, (), str(connection.address), threads)
        self._connection = connection
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            there = opening.enter_context(self._connection.scratch())
            here = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="effc-send-")))
            sent = here / "model"
            sent.mkdir()
            for name in (LIBRARY, PROGRAM):
                source = self.artifact.path / name
                if not source.is_file():
                    raise DeviceError(
                        f"the artifact has no {name}, which a board needs",
                        hint="build it for a target of another processor than this machine's",
                    )
                (sent / name).write_bytes(source.read_bytes())
            self._connection.send(sent, there)
            program = f"{there}/model/{PROGRAM}"
            made = self._connection.run(["chmod", "755", program])
            if made.returncode != 0:
                raise DeviceError(f"{self.device}: {made.stderr.strip()[-300:]}")
            self.command = tuple(self._connection.command([program]))
            self._open = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._open.close()
