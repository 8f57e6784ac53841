"""The model as a library of embedded build systems: Zephyr, Arduino, PlatformIO."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from effc.backends.tvm.mcu.device.sources import Sources
from effc.core.target import HardwareProfile

# from the model and the board to file -> text
Layout = Callable[[Sources, HardwareProfile], Mapping[str, str]]
_NAME = "effc_model"
_VERSION = "1.0.0"


def _zephyr(sources: Sources, profile: HardwareProfile) -> Mapping[str, str]:
    """A module (docs.zephyrproject.org, "Modules"): add it to ZEPHYR_EXTRA_MODULES, set CONFIG_EFFC_MODEL."""
    files = " ".join(f"../{_NAME}/{n}" for n in sorted(sources.files) if n.endswith(".c"))
    return {
        "zephyr/module.yml": f"name: {_NAME}\nbuild:\n  cmake: zephyr\n  kconfig: zephyr/Kconfig\n",
        "zephyr/Kconfig": (
            'config EFFC_MODEL\n\tbool "A vision model as C"\n\thelp\n'
            "\t  model.h: effc_invoke() and the places of its inputs and outputs.\n"
        ),
        "zephyr/CMakeLists.txt": (
            "if(CONFIG_EFFC_MODEL)\n  zephyr_library()\n"
            f"  zephyr_library_sources({files})\n"
            f"  zephyr_include_directories(../{_NAME})\n"
            f"  zephyr_library_compile_options({' '.join(sources.flags)})\nendif()\n"
        ),
        **{f"{_NAME}/{name}": text for name, text in sources.files.items()},
    }


_SKETCH = """// Fill the input, run, read the output.
extern "C" {{
#include <{header}>
}}

void setup() {{ Serial.begin(115200); }}

void loop() {{
  {inputs}
  unsigned long begin = micros();
  int status = effc_invoke();
  unsigned long took = micros() - begin;
  const {ctype} *output = (const {ctype} *)({output});
  Serial.print(status);
  Serial.print(" ");
  Serial.print((long)output[0]);
  Serial.print(" us ");
  Serial.println(took);
  delay(1000);
}}
"""
_C = {"int8": "int8_t", "uint8": "uint8_t", "float32": "float", "int32": "int32_t"}


def _arduino(sources: Sources, profile: HardwareProfile) -> Mapping[str, str]:
    """A library (arduino.github.io/arduino-cli, "Library specification"), with an example sketch."""
    inputs = "\n  ".join(
        f"memset({p.address}, 0, {p.border.tensor.bytes});  // {_plain(p.border.name)}"
        for p in sources.inputs
    )
    first = sources.outputs[0]
    sketch = _SKETCH.format(
        header=sources.header,
        inputs=inputs,
        ctype=_C.get(first.border.tensor.dtype, "uint8_t"),
        output=first.address,
    )
    return {
        "library.properties": (
            f"name={_NAME}\nversion={_VERSION}\nauthor=effc\nmaintainer=effc\n"
            f"sentence=A vision model for {profile.title}.\nparagraph=C99 without heap.\n"
            f"category=Data Processing\narchitectures=*\nincludes={sources.header}\n"
        ),
        **{f"src/{name}": text for name, text in sources.files.items()},
        "examples/inference/inference.ino": sketch,
    }


def _platformio(sources: Sources, profile: HardwareProfile) -> Mapping[str, str]:
    """A library (docs.platformio.org, "library.json"): put it into lib/ of a project."""
    described = {
        "name": _NAME,
        "version": _VERSION,
        "description": f"A vision model for {profile.title}",
        "frameworks": "*",
        "platforms": "*",
        "headers": sources.header,
        "build": {"srcDir": "src", "includeDir": "src", "flags": ["-std=gnu99", *sources.flags]},
    }
    return {
        "library.json": json.dumps(described, indent=2) + "\n",
        **{f"src/{name}": text for name, text in sources.files.items()},
    }


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-/: " else "_" for c in name)


ZEPHYR: Layout = _zephyr
ARDUINO: Layout = _arduino
PLATFORMIO: Layout = _platformio
