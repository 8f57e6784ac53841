"""Runs an artifact's `run_model` as a child process, here or wherever a command prefix takes it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

import numpy as np

from effc.core.artifact import Artifact
from effc.core.errors import ConfigError, DeviceError
from effc.core.measure import Array, Feeds, LayerTime, Measurement, Runner


@dataclass(frozen=True, slots=True)
class CallName:
    """A call as `run_model --describe` prints it."""

    template: str
    nodes: tuple[str, ...]


class StreamRunner(Runner):
    """One process for all inferences: inputs go to its standard input, answers come from its output.

    `command` starts `run_model`; DeviceError says what it wrote to its error output where it fails.
    """

    def __init__(
        self, artifact: Artifact, command: Sequence[str], device: str, threads: int = 1
    ) -> None:
        self.artifact, self.command, self.device = artifact, tuple(command), device
        self.threads = threads
        self.name = f"effc {artifact.manifest.backend}"
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._said is not None:
            self._said.close()
            self._said = None

    def packed(self, feeds: Feeds) -> bytes:
        """One sample: all inputs, one behind the other."""
        parts = []
        for spec in self.artifact.manifest.inputs:
            if spec.name not in feeds:
                raise ConfigError(f"input {spec.name!r} is missing")
            array = np.asarray(feeds[spec.name])
            if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
                raise ConfigError(
                    f"input {spec.name!r} is {array.dtype} of shape {array.shape}",
                    hint=f"the model takes {spec.dtype} of shape {spec.shape}",
                )
            parts.append(np.ascontiguousarray(array).tobytes())
        return b"".join(parts)

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        data = self.packed(feeds)
        if self._process is None:
            self._said = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                [*self.command, "--threads", str(self.threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        outputs = {}
        try:
            process.stdin.write(data)
            process.stdin.flush()
            if not self.artifact.manifest.inputs:
                process.stdin.close()
            for spec in self.artifact.manifest.outputs:
                dtype = np.dtype(spec.dtype)
                wanted = int(np.prod(spec.shape)) * dtype.itemsize
                got = process.stdout.read(wanted)
                if len(got) < wanted:
                    raise EOFError
                outputs[spec.name] = np.frombuffer(got, dtype).reshape(spec.shape).copy()
        except (OSError, EOFError) as error:
            raise DeviceError(f"{self.device}: {self._reason()}") from error
        if not self.artifact.manifest.inputs:
            self._process = None
            process.stdout.close()
            process.wait()
        return outputs

    def _reason(self) -> str:
        assert self._process is not None
        assert self._said is not None
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            status = 0
        self._said.seek(0)
        return _last_words(self._said.read(), status)

    def once(self, arguments: Sequence[str], feeds: Feeds | None = None) -> str:
        """What `run_model ARGUMENTS` prints for one sample."""
        done = subprocess.run(
            [*self.command, "--threads", str(self.threads), *arguments],
            input=b"" if feeds is None else self.packed(feeds),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise DeviceError(f"{self.device}: {_last_words(done.stderr, done.returncode)}")
        return done.stdout.decode(errors="replace")

    def calls(self) -> list[CallName]:
        """The calls of the model, in order."""
        lines = [line.split() for line in self.once(["--describe"]).splitlines()]
        return [CallName(words[1], tuple(words[2:])) for words in lines if words[0] == "call"]

    def time(self, feeds: Feeds, repeats: int) -> Measurement:
        seconds = tuple(float(s) for s in self.once(["--time", str(repeats)], feeds).split())
        return Measurement("device", self.device, self.name, self.threads, seconds)

    def layers(self, feeds: Feeds, repeats: int) -> list[LayerTime]:
        lines = self.once(["--profile", str(repeats)], feeds).splitlines()
        medians = np.median([[float(v) for v in line.split()] for line in lines], axis=0) * 1e-9
        return [
            LayerTime(call.nodes[0], call.template, call.nodes, float(seconds))
            for call, seconds in zip(self.calls(), medians, strict=True)
        ]


def _last_words(said: bytes, status: int) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    if lines:
        return lines[-1].removeprefix("run_model: ")
    if status < 0:
        return f"the program was ended by signal {-status}"
    return f"the program ended with status {status}"
