"""Runs a saved Core ML model with numpy, as Apple's documentation defines it; no Mac is needed."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from effc.backends.coreml.interpret.features import check_output, feature, fed, shown
from effc.backends.coreml.interpret.package import Package
from effc.backends.coreml.interpret.program import Program, State
from effc.core.errors import ConfigError, FrontendError
from effc.core.measure import Array


class Interpreter:
    """A function of a saved `.mlpackage` (or a `.mlmodel` file that holds an ML Program).

    function: its name in a package of several; the default one otherwise.
    half: whether fp16 is emulated (see program.py); the answers are then those of no device exactly.
    labels: the classes of a classifier, in the order of its probabilities.

    Raises FrontendError for a package that is damaged or points outside of itself, LoweringError for an
    operation or opset that is not known.
    """

    def __init__(self, path: Path | str, function: str = "") -> None:
        self.path = Path(path)
        package = Package(self.path)
        description = package.specification.description
        self.functions: tuple[str, ...] = tuple(f.name for f in description.functions) or ("main",)
        self.function = function or description.defaultFunctionName or self.functions[0]
        if self.function not in self.functions:
            raise ConfigError(
                f"{self.path}: no function {self.function!r}; it has {', '.join(self.functions)}"
            )
        if description.functions:
            description = next(f for f in description.functions if f.name == self.function)
        where = str(self.path)
        self.inputs = tuple(feature(f, where) for f in description.input)
        self.outputs = tuple(feature(f, where) for f in description.output)
        self.states = tuple(feature(f, where) for f in description.state)
        self.label_output = str(description.predictedFeatureName)
        self.probabilities_output = str(description.predictedProbabilitiesName)
        self._program = Program(package, self.function)
        self.half = self._program.half
        self.labels = self._labels()
        self._check()

    def _check(self) -> None:
        program = self._program
        for wanted in (*self.inputs, *self.states):
            kind = program.inputs.get(wanted.name)
            if kind is None or kind.is_state != (wanted in self.states):
                raise FrontendError(f"{self.path}: the program has no input {wanted.name!r}")
        if missing := set(program.inputs) - {f.name for f in (*self.inputs, *self.states)}:
            raise FrontendError(f"{self.path}: the description lacks the inputs {sorted(missing)}")
        for wanted in self.outputs:
            if wanted.name not in program.block.outputs:
                raise FrontendError(f"{self.path}: the program has no output {wanted.name!r}")
            check_output(wanted, program.types.get(wanted.name), str(self.path))

    def _labels(self) -> tuple[str | int, ...]:
        for step in self._program.block.steps:
            if step.kind == "classify":
                classes = step.arguments.get("classes", ())
                return tuple(c if isinstance(c, str) else int(c) for c in classes)
        return ()

    def make_state(self) -> dict[str, Array]:
        """What a stateful model starts from: zeros."""
        return {f.name: np.zeros(f.shape, f.dtype) for f in self.states}

    def predict(
        self, feeds: Mapping[str, Any], state: MutableMapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """The outputs by name; `state` (see `make_state`) is brought up to date.

        A class label comes as a 0-d array, its probabilities as a vector in the order of `labels`. Raises
        ConfigError for feeds that don't fit, EffcError where an operation has no meaning for its
        arguments.
        """
        known = [f.name for f in self.inputs]
        if unknown := sorted(set(feeds) - set(known)):
            raise ConfigError(f"{self.path}: no input {unknown[0]!r}; it has {', '.join(known)}")
        values: dict[str, Any] = {}
        for wanted in self.inputs:
            kind = self._program.inputs[wanted.name]
            assert kind is not None  # _check
            if wanted.name in feeds:
                values[wanted.name] = fed(feeds[wanted.name], wanted, kind)
            elif wanted.optional:
                filled = np.full(wanted.shape, wanted.default, wanted.dtype)
                values[wanted.name] = fed(filled, wanted, kind)
            else:
                raise ConfigError(f"{self.path}: input {wanted.name!r} is missing")
        cells = self._cells(state)
        results = self._program.run({**values, **cells})
        for name, cell in cells.items():
            assert state is not None  # _cells
            state[name] = cell.value.astype(state[name].dtype)
        found = dict(zip(self._program.block.outputs, results, strict=True))
        return {wanted.name: shown(found[wanted.name], wanted) for wanted in self.outputs}

    def _cells(self, state: Mapping[str, Array] | None) -> dict[str, State]:
        if not self.states:
            return {}
        if state is None or set(state) != {f.name for f in self.states}:
            names = ", ".join(f.name for f in self.states)
            raise ConfigError(f"{self.path}: the model needs its state: {names}")
        cells = {}
        for wanted in self.states:
            kind = self._program.inputs[wanted.name]
            assert kind is not None  # _check
            cells[wanted.name] = State(fed(state[wanted.name], wanted, kind))
        return cells
