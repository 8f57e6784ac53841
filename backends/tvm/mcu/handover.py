"""A program as the device package takes it: texts of files, tensors, layers."""

from __future__ import annotations

from effc.backends.tvm.mcu.device.sources import Layer, Port, Sources
from effc.backends.tvm.mcu.program import Program
from effc.backends.tvm.mcu.sources import texts

FLAGS = ("-O3",)  # of the compiler


def device_sources(program: Program) -> Sources:
    """The C of `program`, where its tensors are, and what it calls."""
    return Sources(
        texts(program),
        tuple(Port(b, f"effc_input({k})") for k, b in enumerate(program.inputs)),
        tuple(Port(b, f"effc_output({k})") for k, b in enumerate(program.outputs)),
        tuple(
            Layer(f"{k} {c.op}", c.kernel.name, c.kernel.name.removeprefix("effc_"), c.nodes)
            for k, c in enumerate(program.calls)
        ),
        flags=FLAGS,
    )
