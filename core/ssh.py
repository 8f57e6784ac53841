"""Another machine through the ssh and scp programs: its commands, its files, and errors in one line.

Keys, known hosts, jump hosts and all else are as the user's ssh configuration says; nothing here loosens
how a host's key is checked, and no password is ever asked for (BatchMode).
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from effc.core.errors import ConfigError, DeviceError

_FOLDER = re.compile(r"/[A-Za-z0-9._/-]*/effc-[A-Za-z0-9]{8,}")
_SSH_FAILED = 255
# what ssh says -> what to do
_REMEDIES = (
    ("host key verification failed", "connect once by hand, compare the fingerprint, and accept it: ssh {}"),
    ("remote host identification has changed", "find out why; if it is right, ssh-keygen -R the host"),
    ("permission denied", "put your public key there: ssh-copy-id {} (effc asks for no passwords)"),
    ("connection refused", "is sshd running there, on this port? ssh://user@host:port"),
    ("could not resolve hostname", "check the name of the host"),
    ("timed out", "is the device on, and on this network?"),
    ("no route to host", "is the device on, and on this network?"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    """Where `ssh://user@host:port` leads; without user or port ssh's configuration decides."""

    host: str
    user: str = ""
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """ConfigError where `text` is no such address, or holds a password or a path."""
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port, parts = "", None, urlsplit("")
        name = r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*"
        plain = parts.scheme == "ssh" and parts.password is None and parts.path in ("", "/")
        user = parts.username or ""
        if not plain or not re.fullmatch(name, host) or (user and not re.fullmatch(name, user)):
            raise ConfigError(
                f"{text!r} is no address of a device",
                hint="write ssh://user@host or ssh://user@host:port",
            )
        return cls(host, user, port)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}" + (f":{self.port}" if self.port is not None else "")

    @property
    def login(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port is not None else ""
        return f"{self.user}@{host}{port}" if self.user else f"{host}{port}"


@dataclass(frozen=True, slots=True)
class Connection:
    """Commands and copies on one machine. `config` is ssh's own -F: another configuration file."""

    address: Address
    config: Path | None = None

    def run(
        self, command: Sequence[str], *, seconds: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` there; DeviceError where ssh itself fails, or it takes over `seconds`."""
        text = shlex.join(command)
        done = _run(
            [*self._program("ssh"), "-T", "--", f"ssh://{self.address.url}", text],
            self.address,
            seconds,
        )
        if done.returncode == _SSH_FAILED:
            raise self._error(done.stderr)
        return done

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """A new folder there; it and what is in it are removed at the end."""
        made = self.run(["sh", "-c", 'mktemp -d "${TMPDIR:-/tmp}/effc-XXXXXXXXXX"'])
        folder = made.stdout.strip()
        if made.returncode != 0 or not _FOLDER.fullmatch(folder) or "/../" in folder:
            raise DeviceError(
                f"no folder can be made on {self.address}: {_last(made.stderr) or folder or 'no answer'}",
                hint="is /tmp there writable, and does the login shell print nothing?",
            )
        try:
            yield folder
        finally:
            with contextlib.suppress(
                DeviceError
            ):  # what failed before is what the user has to know
                self.run(["rm", "-rf", "--", folder], seconds=60)

    def send(self, source: Path, folder: str) -> None:
        """Copy the folder `source` to become `folder`/its name there."""
        self._copy([str(source.resolve()), f"scp://{self.address.url}/{folder}/"])

    def fetch(self, path: str, folder: Path) -> None:
        """Copy the file or folder `path` from there into `folder`."""
        self._copy([f"scp://{self.address.url}/{path}", str(folder.resolve())])

    def command(self, command: Sequence[str]) -> list[str]:
        """What runs `command` there with this machine's pipes; added arguments are plain words."""
        return [*self._program("ssh"), "-T", "--", f"ssh://{self.address.url}", shlex.join(command)]

    def _copy(self, ends: list[str]) -> None:
        done = _run([*self._program("scp"), "-q", "-r", "--", *ends], self.address)
        if done.returncode != 0:
            raise self._error(done.stderr)

    def _program(self, name: str) -> list[str]:
        found = shutil.which(name)
        if found is None:
            raise DeviceError(
                f"the program {name} is not installed", hint="apt install openssh-client"
            )
        config = ["-F", str(self.config)] if self.config is not None else []
        options = ["BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15"]
        return [found, *config, *(part for o in options for part in ("-o", o))]

    def _error(self, said: str) -> DeviceError:
        lower = said.lower()
        for sign, remedy in _REMEDIES:
            if sign in lower:
                line = next(x for x in said.splitlines() if sign in x.lower())
                return DeviceError(
                    f"ssh to {self.address} failed: {_clean(line)}",
                    hint=remedy.format(self.address.login),
                )
        return DeviceError(f"ssh to {self.address} failed: {_last(said) or 'no reason given'}")


def _run(
    command: list[str], address: Address, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{address} did not answer within {seconds:g} s") from error


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return _clean(lines[-1]) if lines else ""


def _clean(line: str) -> str:
    return line.strip().strip("@").strip()[:300]
