"""Every member of the zoo: builds in a second, valid, alive, described truthfully, reproducible."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from effc import zoo
from effc.core.check import check_model
from effc.core.errors import ConfigError
from effc.core.preprocess import Preprocess
from effc.core.reference import OnnxRuntimeRunner, random_feeds
from effc.core.shapes import fix_shapes, infer_shapes
from effc.core.source import fingerprint
from effc.zoo.builder import Builder

NAMES = [n for n in zoo.names() if n.startswith("tiny-")]


def test_there_are_members() -> None:
    assert len(NAMES) >= 17


@pytest.mark.parametrize("name", NAMES)
def test_member(name: str) -> None:
    member = zoo.member(name)
    start = time.process_time()
    model = zoo.build(name)
    assert time.process_time() - start < 1
    check_model(model)
    assert member.name == name and member.summary and member.reference
    Preprocess.parse(member.preprocess)
    counted = [
        v.const_value.size
        for v in model.graph.initializers.values()
        if v.const_value is not None and v.const_value.dtype.is_floating_point() and v.shape
    ]
    assert sum(counted) == member.parameters
    value = model.graph.inputs[0]
    fix_shapes(model, {value.name or "": member.input_shape})
    infer_shapes(model)
    assert all(v.shape is not None and v.shape.is_static() for v in model.graph.outputs)
    first, second = random_feeds(model, 2)
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        for key, answer in runner.infer(first).items():
            assert np.isfinite(answer).all() and answer.std() > 1e-3
            # a model that forgets its input would make every comparison vacuous
            other = runner.infer(second)[key]
            assert np.abs(answer - other).max() > 1e-3 * np.abs(answer).max()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_not_degenerate(name: str) -> None:
    for value in zoo.build(name).graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 8:
            array = tensor.numpy()
            assert array.std() > 1e-2 and np.count_nonzero(array) == array.size, value.name


@pytest.mark.parametrize("name", NAMES)
def test_seed_and_batch(name: str) -> None:
    assert fingerprint(zoo.build(name)) == fingerprint(zoo.build(name))
    assert fingerprint(zoo.build(name)) != fingerprint(zoo.build(name, seed=1))
    shape = zoo.build(f"{name}{{batch=3,seed=2}}").graph.inputs[0].shape
    assert shape is not None and shape[0] == 3
    model = zoo.build(name, batch=0)
    assert model.graph.inputs[0].shape is not None and model.graph.inputs[0].shape.is_dynamic(0)
    fix_shapes(model, {model.graph.inputs[0].name or "": (2, *zoo.member(name).input_shape[1:])})
    infer_shapes(model)
    with OnnxRuntimeRunner(model, optimize=False) as runner:
        for answer in runner.infer(random_feeds(model, 1)[0]).values():
            assert answer.shape[0] == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tiny-resent", "unknown model 'tiny-resent'"),
        ("tiny-mlp{size=3}", "no option 'size'"),
        ("tiny-mlp{batch=x}", "is no int"),
        ("tiny-mlp{batch=-1}", "is no int"),
        ("tiny-mlp{batch}", "has no value"),
        ("tiny-mlp{", "names no model"),
        ("", "names no model"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        zoo.build(text)
    assert "\n" not in str(caught.value)


def test_tiny_members_load_no_torch() -> None:
    code = (
        "import sys; from effc import zoo; [zoo.build(n) for n in zoo.names() if n[:5] == 'tiny-']; "
        "assert not {'torch', 'timm', 'tvm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_builder_knows_every_shape() -> None:
    net = Builder("b")
    x = net.input("x", (2, 4, 8, 8))
    assert net.conv(x, 6, 3, 2).shape == (2, 6, 4, 4)
    assert net.conv_transpose(x, 5, 2, 2).shape == (2, 5, 16, 16)
    assert net.upsample(x, 2).shape == (2, 4, 16, 16)
    assert [part.shape[1] for part in net.split(x, 1, 3) if part.shape] == [1, 3]
    assert net.slice(x, 2, 7, 3).shape == (2, 4, 8, 5)
    assert net.reshape(x, 0, -1).shape == (2, 256)
    with pytest.raises(ValueError, match="no static size"):
        net.linear(net.input("open", ("n", "k")), 3)
