"""Control flow, states, lists, functions, half precision, and operations that can't be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effc.backends.coreml.interpret import Interpreter
from effc.backends.coreml.interpret.ops import OPERATIONS
from effc.core.errors import ConfigError, EffcError, LoweringError

X = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], np.float32)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cond(mil: Any, sign: float) -> None:
    def build(mb: Any, x: Any) -> list[Any]:
        total = mb.reduce_sum(x=x)
        twice = mb.mul(x=x, y=2.0)
        return mb.cond(
            pred=mb.greater(x=total, y=0.0),
            _true_fn=lambda: (mb.add(x=twice, y=1.0), mb.identity(x=x)),
            _false_fn=lambda: (mb.identity(x=x), mb.sub(x=twice, y=3.0)),
        )

    x = X * np.float32(sign)
    got = mil.run(build, {"x": x})
    wants = (2 * x + 1, x) if sign > 0 else (x, 2 * x - 3)
    for g, w in zip(got, wants, strict=True):
        np.testing.assert_array_equal(g, w)


def test_while_loop(mil: Any) -> None:
    """Doubles until the sum passes 100, and counts; the body also uses a value from outside."""

    def build(mb: Any, x: Any) -> list[Any]:
        step = mb.reduce_max(x=x)
        return mb.while_loop(
            _cond=lambda v, n: mb.less(x=mb.reduce_sum(x=v), y=100.0),
            _body=lambda v, n: (mb.add(x=mb.mul(x=v, y=2.0), y=step), mb.add(x=n, y=1)),
            loop_vars=(x, mb.fill(shape=[1], value=0)),
        )

    value, count = X.copy(), 0
    while value.sum() < 100:
        value, count = value * 2 + X.max(), count + 1
    got, steps = mil.run(build, {"x": X})
    np.testing.assert_array_equal(got, value)
    assert steps.tolist() == [count] and count > 2


def test_lists(mil: Any) -> None:
    def build(mb: Any, x: Any) -> list[Any]:
        ls = mb.make_list(init_length=2, dynamic_length=True, elem_shape=(3,), dtype="fp32")
        first, second = mb.split(x=x, num_splits=2, axis=0)
        ls = mb.list_write(ls=ls, index=1, value=mb.squeeze(x=first, axes=[0]))
        ls = mb.list_scatter(ls=ls, indices=[0, 3], value=mb.concat(values=[second, first], axis=0))
        return [
            mb.list_read(ls=ls, index=1),
            mb.list_gather(ls=ls, indices=[3, 0, 2]),
            mb.expand_dims(x=mb.list_length(ls=ls), axes=[0]),
        ]

    read, gathered, length = mil.run(build, {"x": X})
    np.testing.assert_array_equal(read, X[0])
    np.testing.assert_array_equal(gathered, np.stack([X[0], X[1], 0 * X[0]]))
    assert length.tolist() == [4]


def test_state(mil: Any) -> None:
    ct, mb, types = mil.ct, mil.mb, mil.types

    @mb.program(
        input_specs=[mb.TensorSpec((3,), dtype=types.fp16), mb.StateTensorSpec((3,), types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any, held: Any) -> Any:
        before = mb.read_state(input=held)
        after = mb.coreml_update_state(state=held, value=mb.add(x=before, y=x))
        return mb.mul(x=after, y=np.float16(10), name="y"), mb.identity(x=before, name="before")

    path = mil._folder / "state.mlpackage"
    ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=ct.PassPipeline.EMPTY, skip_model_load=True,
    ).save(str(path))  # fmt: skip
    interpreter = Interpreter(path)
    state = interpreter.make_state()
    x = np.array([1, 2, 3], np.float16)
    for n in range(3):
        got = interpreter.predict({"x": x}, state)
        assert got["before"].tolist() == (n * x).tolist()
        assert got["y"].tolist() == (10 * (n + 1) * x).tolist()
    assert state["held"].tolist() == [3, 6, 9] and state["held"].dtype == np.float16
    assert interpreter.make_state()["held"].tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="needs its state: held"):
        interpreter.predict({"x": x})


def test_functions_of_a_package(mil: Any, tmp_path: Path) -> None:
    one = mil.save(lambda mb, x: mb.mul(x=x, y=2.0), {"x": X})
    two = mil.save(lambda mb, x: mb.mul(x=x, y=3.0), {"x": X[:1]})
    description = mil.ct.utils.MultiFunctionDescriptor()
    description.add_function(str(one), "main", "double")
    description.add_function(str(two), "main", "triple")
    description.default_function_name = "triple"
    mil.ct.utils.save_multifunction(description, str(tmp_path / "both.mlpackage"))
    default = Interpreter(tmp_path / "both.mlpackage")
    assert default.functions == ("double", "triple") and default.function == "triple"
    assert np.array_equal(default.predict({"x": X[:1]})["out_0"], X[:1] * 3)
    other = Interpreter(tmp_path / "both.mlpackage", "double")
    assert np.array_equal(other.predict({"x": X})["out_0"], X * 2)
    with pytest.raises(ConfigError, match="no function 'half'; it has double, triple"):
        Interpreter(tmp_path / "both.mlpackage", "half")


def test_half_precision_rounds_every_result(mil: Any) -> None:
    """2048 + 1 is 2048 in half precision, 65504 * 2 is infinite, and sums are not rounded within."""
    x = np.array([2048.0, 65504.0, 0.1, 1.0], np.float16)
    ones = np.ones((1, 3000), np.float16)

    def build(mb: Any, x: Any, o: Any) -> list[Any]:
        return [
            mb.add(x=x, y=np.float16(1)),
            mb.mul(x=x, y=np.float16(2)),
            mb.mul(x=mb.exp(x=x), y=np.float16(1)),
            mb.reduce_sum(x=o, axes=[1]),
            mb.matmul(x=o, y=np.full((3000, 1), 0.1, np.float16)),
        ]

    path = mil.save(build, {"x": x, "o": ones})
    interpreter = Interpreter(path)
    assert interpreter.half
    got = interpreter.predict({"x": x, "o": ones})
    assert all(v.dtype == np.float16 for v in got.values())
    assert got["out_0"][0] == 2048 and np.isinf(got["out_1"][1])
    assert got["out_2"][2] == np.float16(np.exp(np.float32(np.float16(0.1))))
    assert got["out_3"][0] == 3000
    assert got["out_4"][0, 0] == np.float16(3000 * np.float32(np.float16(0.1)))


def test_single_precision_is_not_half(mil: Any) -> None:
    assert not Interpreter(mil.save(lambda mb, x: mb.relu(x=x), {"x": X})).half


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "normal", "uniform"])
def test_random_operations_are_refused(mil: Any, name: str) -> None:
    def build(mb: Any, x: Any) -> Any:
        given = {
            "bernoulli": {"shape": [2, 3]},
            "categorical": {"x": x},
            "normal": {"shape": [2, 3]},
            "uniform": {"shape": [2, 3]},
        }[name]
        return mb.add(x=x, y=mb.slice_by_size(
            x=mb.cast(x=getattr(mb, f"random_{name}")(**given), dtype="fp32"),
            begin=[0, 0], size=[1, 1],
        ))  # fmt: skip

    path = mil.save(build, {"x": X})
    with pytest.raises(LoweringError, match=rf"{path.name}: operation 'random_{name}'"):
        Interpreter(path)


def test_the_declared_shape_has_to_be_the_real_one(mil: Any, tmp_path: Path) -> None:
    path = mil.save(lambda mb, x: mb.square(x=x), {"x": X})
    model = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model.FromString(model.read_bytes())
    block = spec.mlProgram.functions["main"].block_specializations["CoreML8"]
    square = next(o for o in block.operations if o.type == "square")
    square.outputs[0].type.tensorType.dimensions[1].constant.size = 4
    model.write_bytes(spec.SerializeToString())
    with pytest.raises(EffcError, match=r"'square'.*\(2, 3\), declared is fp32\[2,4\]"):
        Interpreter(path).predict({"x": X})


def test_every_operation_is_tested() -> None:
    """By its name in a test of this folder."""
    texts = "".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py"))
    absent = [
        name for name in OPERATIONS
        if not re.search(rf"mb\.{name}\(|\"{name}[/\"]", texts)
    ]  # fmt: skip
    assert not absent
    assert len(OPERATIONS) >= 150
