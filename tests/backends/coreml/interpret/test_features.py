"""Images, class labels, flexible shapes, and feeds that don't fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from effc.backends.coreml.interpret import Interpreter
from effc.core.errors import ConfigError

X = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], np.float32)
PIXELS = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 9


def image_model(mil: Any, layout: str, channels: int, scale: float, bias: Any) -> Interpreter:
    ct = mil.ct
    given = ct.ImageType(
        name="x", shape=(1, channels, 2, 4), scale=scale, bias=bias,
        color_layout=getattr(ct.colorlayout, layout),
    )  # fmt: skip
    path = mil.save(
        lambda mb, x: mb.add(x=x, y=0.0),
        {"x": np.zeros((1, channels, 2, 4), np.float32)},
        inputs=[given],
        pass_pipeline=ct.PassPipeline.DEFAULT,
    )
    return Interpreter(path)


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_colour_image(mil: Any, layout: str) -> None:
    """Scale and bias stand in the program; the colours come in the model's order."""
    interpreter = image_model(mil, layout, 3, 0.5, [-1.0, -2.0, -3.0])
    order = [0, 1, 2] if layout == "RGB" else [2, 1, 0]
    want = PIXELS[..., order].transpose(2, 0, 1) * 0.5 - np.array([1, 2, 3]).reshape(3, 1, 1)
    for given in (PIXELS, Image.fromarray(PIXELS)):
        (got,) = interpreter.predict({"x": given}).values()
        np.testing.assert_allclose(got[0], want, rtol=1e-6)


def test_grey_image(mil: Any) -> None:
    interpreter = image_model(mil, "GRAYSCALE", 1, 2.0, 0.25)
    grey = PIXELS[..., 1].copy()
    for given in (grey, Image.fromarray(grey)):
        (got,) = interpreter.predict({"x": given}).values()
        np.testing.assert_allclose(got[0, 0], grey * 2.0 + 0.25)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (PIXELS[:1], r"is \[1, 4\] \(height, width\), it takes \[2, 4\]"),
        (PIXELS[..., 0], "takes an image: uint8"),
        (PIXELS.astype(np.float32), "takes an image: uint8"),
        (PIXELS[..., :2], "takes 3 channels, not 2"),
        (Image.fromarray(PIXELS[..., 0].copy()), "PIL image of mode RGB, not L"),
    ],
)
def test_images_that_do_not_fit(mil: Any, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        image_model(mil, "RGB", 3, 1.0, None).predict({"x": given})


@pytest.mark.parametrize("layout", ["RGB", "BGR", "GRAYSCALE"])
def test_image_output(mil: Any, layout: str) -> None:
    from coremltools.proto import Model_pb2

    channels = 1 if layout == "GRAYSCALE" else 3
    x = np.linspace(-20, 300, channels * 8, dtype=np.float32).reshape(1, channels, 2, 4)
    path = mil.save(lambda mb, x: mb.identity(x=x), {"x": x})
    # coremltools describes outputs as images for some of its frontends only
    model = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = Model_pb2.Model.FromString(model.read_bytes())
    image = spec.description.output[0].type.imageType
    image.width, image.height = 4, 2
    image.colorSpace = {"GRAYSCALE": 10, "RGB": 20, "BGR": 30}[layout]
    model.write_bytes(spec.SerializeToString())
    got = Interpreter(path).predict({"x": x})["out_0"]
    want = np.clip(np.rint(x[0]), 0, 255).astype(np.uint8)
    if layout == "GRAYSCALE":
        assert np.array_equal(got, want[0])
    else:
        turned = want if layout == "RGB" else want[::-1]
        assert np.array_equal(got, turned.transpose(1, 2, 0))


@pytest.mark.parametrize("labels", [["cat", "dog", "owl"], [7, 8, 9]])
def test_classifier(mil: Any, labels: list[Any]) -> None:
    ct = mil.ct
    path = mil.save(
        lambda mb, x: mb.softmax(x=x), {"x": X[:1]},
        classifier_config=ct.ClassifierConfig(labels, predicted_feature_name="best"),
        inputs=[ct.TensorType(name="x", shape=(1, 3))],
        pass_pipeline=ct.PassPipeline.DEFAULT,
    )  # fmt: skip
    interpreter = Interpreter(path)
    assert interpreter._program.block.steps[-1].kind == "classify"
    assert list(interpreter.labels) == labels and interpreter.label_output == "best"
    got = interpreter.predict({"x": X[:1]})
    assert got["best"].item() == labels[2]
    e = np.exp(X[0] - 3)
    np.testing.assert_allclose(got[interpreter.probabilities_output], e / e.sum(), rtol=1e-6)


def flexible(mil: Any, shape: Any) -> Interpreter:
    ct, mb, types = mil.ct, mil.mb, mil.types
    from coremltools.converters.mil.mil import get_new_symbol

    with mil._function(
        {"x": mb.placeholder(shape=(1, get_new_symbol()), dtype=types.fp32)},
        opset_version=ct.target.iOS18,
    ) as function:
        x = function.inputs["x"]
        y = mb.reshape(x=mb.mul(x=x, y=2.0), shape=mb.concat(values=[[-1], [1]], axis=0), name="y")
        function.set_outputs([y])
    program = mil._program()
    program.add_function("main", function)
    model = ct.convert(
        program, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS18, skip_model_load=True,
        inputs=[ct.TensorType(name="x", shape=shape)],
    )  # fmt: skip
    mil._count += 1
    path = mil._folder / f"f{mil._count}.mlpackage"
    model.save(str(path))
    return Interpreter(path)


def test_shapes_in_a_range(mil: Any) -> None:
    interpreter = flexible(mil, (1, mil.ct.RangeDim(2, 5)))
    for size in (2, 5):
        got = interpreter.predict({"x": np.ones((1, size), np.float32)})["y"]
        assert got.shape == (size, 1)
    with pytest.raises(ConfigError, match=r"shape \[1, 6\], it takes \[1..1, 2..5\]"):
        interpreter.predict({"x": np.ones((1, 6), np.float32)})


def test_enumerated_shapes(mil: Any) -> None:
    interpreter = flexible(mil, mil.ct.EnumeratedShapes(shapes=[(1, 2), (1, 4)]))
    assert interpreter.predict({"x": np.ones((1, 4), np.float32)})["y"].shape == (4, 1)
    with pytest.raises(ConfigError, match=r"it takes \[1, [24]\] or \[1, [24]\]"):
        interpreter.predict({"x": np.ones((1, 3), np.float32)})


def test_feeds_that_do_not_fit(mil: Any) -> None:
    ints = np.array([1, 2], np.int32)
    path = mil.save(lambda mb, x, n: [mb.relu(x=x), mb.add(x=n, y=1)], {"x": X, "n": ints})
    interpreter = Interpreter(path)
    wide = interpreter.predict({"x": X.astype(np.float64), "n": ints.astype(np.int64)})
    assert wide["out_0"].dtype == np.float32 and wide["out_1"].tolist() == [2, 3]
    for feeds, message in [
        ({"x": X}, "input 'n' is missing"),
        ({"x": X, "n": ints, "z": X}, "no input 'z'; it has x, n"),
        ({"x": X[:1], "n": ints}, r"'x' has the shape \[1, 3\], it takes \[2, 3\]"),
        ({"x": X, "n": ints * 1.0}, "'n' takes int32, not float64"),
        ({"x": X, "n": ints.astype(np.int64) + 2**40}, "'n' holds values beyond int32"),
        ({"x": X.astype(str), "n": ints}, "'x' takes float32"),
    ]:
        with pytest.raises(ConfigError, match=message):
            interpreter.predict(feeds)
