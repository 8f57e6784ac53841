"""What the board says about itself: a latency means little without its power mode, clocks and heat."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

_HOT = 85.0  # degrees Celsius near which Jetson modules lower their clocks


def state(root: Path = Path("/")) -> dict[str, Any]:
    """Name, power mode, GPU clocks and temperatures, from sysfs and nvpmodel, as far as they are told."""
    found: dict[str, Any] = {}
    name = _read(root / "proc/device-tree/model").strip("\0")
    if name:
        found["board"] = name
    release = _read(root / "etc/nv_tegra_release").split("\n", 1)[0]
    if release:
        found["l4t"] = release.strip("# ")
    if shutil.which("nvpmodel"):
        done = subprocess.run(
            ["nvpmodel", "-q"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        mode = [line for line in done.stdout.splitlines() if "Mode" in line]
        found["power_mode"] = mode[0].split(":", 1)[-1].strip() if mode else ""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if folder.name.endswith((".gpu", ".ga10b", ".gv11b")) or "gpu" in folder.name:
            clocks = {n: _read(folder / f"{n}_freq") for n in ("cur", "min", "max")}
            found["gpu_hz"] = {n: int(v) for n, v in clocks.items() if v.isdigit()}
    heat = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, text = _read(zone / "type"), _read(zone / "temp")
        if text.lstrip("-").isdigit() and 0 < int(text) < 200000:
            heat[kind] = int(text) / 1000
    if heat:
        found["celsius"] = heat
    return found


def memory_free(root: Path = Path("/")) -> int | None:
    """MemAvailable in bytes: on a Jetson the GPU takes from the same memory."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def cautions(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Why the times may not repeat."""
    notes = []
    clocks = after.get("gpu_hz", {})
    if clocks.get("min") and clocks.get("max") and clocks["min"] < clocks["max"]:
        notes.append("the GPU's clock changes with load: sudo jetson_clocks holds it")
    hottest = max(after.get("celsius", {}).values(), default=0.0)
    if hottest >= _HOT:
        notes.append(f"the board is at {hottest:.0f} degrees Celsius and may lower its clocks")
    if before.get("power_mode") and "MAXN" not in before["power_mode"]:
        notes.append(f"power mode {before['power_mode']}: not the fastest (sudo nvpmodel -m 0)")
    return notes


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
