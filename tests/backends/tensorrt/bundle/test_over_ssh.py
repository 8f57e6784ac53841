"""The whole trip over ssh, to an sshd of the tests' own, where stand-ins play TensorRT and CUDA."""

from __future__ import annotations

import getpass
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from effc.backends.tensorrt.bundle import finish_on
from effc.cli import cli
from effc.core.artifact import load_artifact
from effc.core.errors import ConfigError, DeviceError
from effc.core.ssh import Address, Connection

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Server:
    """A running sshd and what a client needs."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.folder / "client"

    def scratch(self) -> list[Path]:
        """What trips left on the "device"."""
        return list((self.folder / "device").glob("effc-*"))

    def configured(self, name: str, **changes: str) -> Path:
        """Another configuration of the client."""
        lines = dict(line.split(" ", 1) for line in self.config.read_text().splitlines())
        path = self.folder / name
        path.write_text("".join(f"{k} {v}\n" for k, v in {**lines, **changes}.items()))
        return path


def key(path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="module")
def server(stand_ins: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd here: apt install openssh-server openssh-client")
    folder = tmp_path_factory.mktemp("sshd")
    host, user = key(folder / "host"), key(folder / "user")
    shutil.copyfile(f"{user}.pub", folder / "authorized")
    device, programs = folder / "device", folder / "bin"
    device.mkdir()
    programs.mkdir()
    # `python3` on the "device" is the interpreter of the tests
    (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python3").chmod(0o755)
    variables = {**stand_ins, "TMPDIR": str(device), "PATH": f"{programs}:/usr/bin:/bin"}
    variables["SHLVL"] = "3"  # bash under sshd reads its user's .bashrc at level 1, and PATH there
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {host}", "StrictModes no",
        f"AuthorizedKeysFile {folder / 'authorized'}", f"PidFile {folder / 'pid'}",
        "PasswordAuthentication no", "KbdInteractiveAuthentication no", "UsePAM no",
        "PermitRootLogin prohibit-password", "Subsystem sftp internal-sftp",
        "SetEnv " + " ".join(f'{k}="{v}"' for k, v in variables.items()),
    ]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(settings) + "\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    public = Path(f"{host}.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {public}")
    client = {
        "IdentityFile": str(user), "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(folder / "known"), "GlobalKnownHostsFile": "none",
    }  # fmt: skip
    (folder / "client").write_text("".join(f"{k} {v}\n" for k, v in client.items()))
    process = subprocess.Popen(
        [SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")]
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-200:]}")
            time.sleep(0.05)
        yield Server(folder, port)
    finally:
        process.terminate()
        process.wait(10)


def test_stand_in_whole_trip(bundle: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy, build, measure, fetch, by the command; TensorRT there is a stand-in."""
    module = importlib.import_module("effc.backends.tensorrt.bundle.finish")
    monkeypatch.setattr(module, "ARGUMENTS", ("--seconds", "0.02"))
    command = [
        "finish",
        str(bundle),
        "--device",
        server.address,
        "--ssh-config",
        str(server.config),
    ]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "int8: passed" in done.output and "TensorRT 10.3.0" in done.output
    manifest = load_artifact(bundle).manifest
    assert manifest.verdict.status == "passed"
    assert "engine built on" in manifest.verdict.reason
    report = json.loads((bundle / "report.json").read_text())
    assert [r["form"] for r in report["engines"]] == ["int8", "fp16"]
    engines = sorted(p.name for p in (bundle / "engines").iterdir())
    assert engines == ["fp16-trt10.3.0.engine", "int8-trt10.3.0.engine"]
    assert manifest.details["finished"]["int8"]["sha256"] == report["engines"][0]["sha256"]
    assert not server.scratch()


def test_an_unknown_host_key_is_refused(bundle: Path, server: Server) -> None:
    (server.folder / "empty").write_text("")
    config = server.configured("stranger", UserKnownHostsFile=str(server.folder / "empty"))
    with pytest.raises(DeviceError, match="Host key verification failed") as caught:
        finish_on(load_artifact(bundle), server.address, config)
    assert "compare the fingerprint" in caught.value.hint
    assert (server.folder / "empty").read_text() == ""  # and it is not learned either


def test_another_host_key_is_refused(bundle: Path, server: Server) -> None:
    other = key(server.folder / "impostor")
    public = Path(f"{other}.pub").read_text()
    (server.folder / "wrong").write_text(f"[127.0.0.1]:{server.port} {public}")
    config = server.configured("impostors", UserKnownHostsFile=str(server.folder / "wrong"))
    with pytest.raises(DeviceError, match="(?i)host (key|identification)"):
        finish_on(load_artifact(bundle), server.address, config)


def test_a_key_that_is_not_authorized(bundle: Path, server: Server) -> None:
    other = key(server.folder / "unauthorized")
    config = server.configured("nobody", IdentityFile=str(other))
    with pytest.raises(DeviceError, match="Permission denied") as caught:
        finish_on(load_artifact(bundle), server.address, config)
    assert "ssh-copy-id" in caught.value.hint


def test_nobody_listens(bundle: Path, server: Server) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(DeviceError, match=f"ssh to 127.0.0.1:{port} failed: .*Connection refused"):
        finish_on(load_artifact(bundle), f"ssh://127.0.0.1:{port}", server.config)


def test_what_the_script_refuses_there_is_said_here(bundle: Path, server: Server) -> None:
    """Another bundle in the middle of the way: its hashes are checked before anything else."""
    artifact = load_artifact(bundle)
    (bundle / "fp16.onnx").write_bytes(b"damaged after the check")
    with pytest.raises(
        DeviceError, match=r"on .*127.0.0.1:\d+: file 'fp16.onnx' .* not what was built"
    ):
        finish_on(artifact, server.address, server.config)
    assert not (bundle / "report.json").exists()
    assert not server.scratch()


def test_commands_and_names_are_quoted(server: Server) -> None:
    there = Connection(Address.parse(server.address), server.config)
    assert there.run(["echo", "a b", "$HOME", "'q'"]).stdout == "a b $HOME 'q'\n"
    with there.scratch() as folder:
        assert Path(folder).parent == server.folder / "device"
    assert not server.scratch()


@pytest.mark.parametrize(
    ("text", "login", "port"),
    [("ssh://me@orin.local", "me@orin.local", None), ("ssh://10.0.0.7:2222/", "10.0.0.7", 2222),
     ("ssh://u@[fe80::1%25eth0]:22", "u@fe80::1%25eth0", 22)],
)  # fmt: skip
def test_addresses(text: str, login: str, port: int | None) -> None:
    found = Address.parse(text)
    assert (found.login, found.port) == (login, port)


@pytest.mark.parametrize(
    "text",
    ["orin.local", "http://orin", "ssh://", "ssh://me:secret@orin", "ssh://-oProxyCommand=x", "ssh://a b",
     "ssh://orin/path", "ssh://orin:port", "ssh://me@-x", "ssh://-l@orin"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a device"):
        Address.parse(text)
