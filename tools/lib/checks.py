"""What tools/test does: install what the tests need, then run every check, cheapest first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from bootstrap import ROOT, InstallError, install, say

EXTRAS = ("dev", "tvm", "torch", "coreml", "tensorrt-rtx", "cuda", "gpu")


@dataclass(frozen=True)
class SystemTool:
    """A program that no Python package brings, and the Debian packages that do."""

    command: str
    packages: tuple[str, ...]
    use: str


SYSTEM_TOOLS = (
    SystemTool("cc", ("gcc", "libc6-dev"), "links the artifacts of the TVM backend"),
    SystemTool("make", ("make",), "builds projects for microcontrollers"),
    SystemTool("cmake", ("cmake",), "builds projects for microcontrollers"),
    SystemTool(
        "arm-none-eabi-gcc",
        ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi"),
        "builds firmware for Cortex-M",
    ),
    SystemTool("qemu-system-arm", ("qemu-system-arm",), "runs firmware for Cortex-M"),
    SystemTool(
        "riscv64-unknown-elf-gcc", ("gcc-riscv64-unknown-elf",), "builds firmware for RISC-V"
    ),
    SystemTool("qemu-system-riscv32", ("qemu-system-misc",), "runs firmware for RISC-V"),
    SystemTool(
        "aarch64-linux-gnu-gcc",
        ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
        "links artifacts for ARM Linux",
    ),
    SystemTool("qemu-aarch64", ("qemu-user",), "runs artifacts for ARM Linux"),
    SystemTool("ssh", ("openssh-client",), "takes bundles to their device"),
    SystemTool("sshd", ("openssh-server",), "plays that device in the tests"),
)
# and where Debian puts daemons, which a user's PATH leaves out
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def main(arguments: list[str]) -> int:
    fast, pytest_arguments = parse(arguments)
    try:
        install_tools(SYSTEM_TOOLS)
        install(ROOT, EXTRAS)
    except InstallError as error:
        say(f"error: {error}")
        return 2
    bin_folder = ROOT / ".venv/bin"
    python = str(bin_folder / "python")
    checks = {
        "ruff check": [str(bin_folder / "ruff"), "check", "--quiet", "."],
        "ruff format": [str(bin_folder / "ruff"), "format", "--check", "--quiet", "."],
        # the links in effc/ lead mypy through every floor, core/ included
        "mypy": [python, "-m", "mypy", "--no-error-summary", "effc"],
        "import-linter": [str(bin_folder / "lint-imports"), "--no-logo"],
    }
    failed = [name for name, command in checks.items() if not passes(name, command)]
    slow = ["-m", "not slow"] if fast else []
    print("pytest", flush=True)
    # a file's tests stay together: their fixtures build models and compile kernels
    spread = ["-n", str(max(2, min(os.cpu_count() or 1, 8))), "--dist", "loadfile"]
    code = run([python, "-m", "pytest", *spread, *slow, *pytest_arguments]).returncode
    if failed:
        print(f"failed before pytest: {', '.join(failed)}", flush=True)
    return code or bool(failed)


def parse(arguments: list[str]) -> tuple[bool, list[str]]:
    fast = arguments[:1] == ["fast"]
    rest = arguments[1:] if fast else arguments
    if rest and rest[0] != "--":
        print("usage: tools/test [fast] [-- PYTEST ARGUMENTS]", file=sys.stderr)
        raise SystemExit(2)
    return fast, rest[1:]


def passes(name: str, command: list[str]) -> bool:
    """Run one check; its output is shown only where it found something."""
    done = run(command, capture=True)
    print(f"{name}: {'ok' if done.returncode == 0 else 'failed'}", flush=True)
    if done.returncode != 0:
        print(done.stdout.strip(), flush=True)
    return done.returncode == 0


def run(command: list[str], *, capture: bool = False) -> subprocess.CompletedProcess[str]:
    if capture:
        return subprocess.run(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    return subprocess.run(command, cwd=ROOT, text=True)


def install_tools(tools: Iterable[SystemTool]) -> None:
    """Install the Debian packages of the missing tools where that is allowed, else say what is missing."""
    missing = [tool for tool in tools if shutil.which(tool.command, path=PLACES) is None]
    if not missing:
        return
    packages = sorted({p for tool in missing for p in tool.packages})
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    allowed = shutil.which("apt-get") and (
        not as_root
        or (shutil.which("sudo") and run([*as_root, "true"], capture=True).returncode == 0)
    )
    if allowed:
        say(f"installing Debian packages: {', '.join(packages)}")
        quiet = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        run([*quiet, "update"], capture=True)
        done = run([*quiet, "install", "--no-install-recommends", "-y", *packages], capture=True)
        if done.returncode == 0:
            return
        say(f"apt-get failed: {done.stdout.strip()[-500:]}")
    listed = "; ".join(f"{tool.command} ({tool.use})" for tool in missing)
    raise InstallError(f"missing: {listed}. Debian and Ubuntu: apt install {' '.join(packages)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
