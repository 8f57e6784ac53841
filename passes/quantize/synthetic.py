"""Calibration where the user has no samples: noise of the scale that the model was trained on.

Where the preprocessing is known, the noise is pictures. Where it is not, the noise is multiplied until the
first convolution's channels deviate as its batch norm says they did in training (the observation of Nagel et
al. 2019, arXiv:1906.04721, on samples instead of formulas). Holding every later layer to its batch norm, too,
made ranges worse: measured on ResNet-20 and MobileNetV1, for one picture at a time and over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import onnx_ir as ir

from effc.core.artifact import TensorSpec
from effc.core.channel_statistics import recall
from effc.core.data import Samples, SyntheticSamples, fingerprint
from effc.core.ir import Array, is_op
from effc.core.measure import Feeds
from effc.core.preprocess import Preprocess
from effc.core.reference import OnnxRuntimeRunner
from effc.core.specs import static_specs
from effc.passes.quantize.calibrate import with_outputs

COUNT = 32


class SmoothPictures:
    """Pictures of noise whose amplitude falls with frequency, as that of photographs does, preprocessed."""

    synthetic = True

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        preprocess: Preprocess,
        *,
        count: int = COUNT,
        seed: int = 0,
    ) -> None:
        self.inputs = tuple(inputs)
        self.preprocess = preprocess
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Feeds]:
        rng = np.random.default_rng(self.seed)
        spec = self.inputs[0]
        _, channels, height, width = self.preprocess.geometry(spec.shape)
        for _ in range(self.count):
            pixels = smooth_noise(rng, height, width, channels)
            yield {spec.name: self.preprocess.pixels(pixels, spec.shape, spec.dtype)}

    def levels(self, name: str) -> Array | None:
        """Every number that the input can hold."""
        floating = np.dtype(self.inputs[0].dtype).kind == "f"
        return self.preprocess.reals(np.arange(256)) if floating else None

    @property
    def fingerprint(self) -> str:
        return f"smooth:{self.count}:{self.seed}:{fingerprint(self.inputs, self.preprocess)}"


def smooth_noise(rng: np.random.Generator, height: int, width: int, channels: int) -> Array:
    """A picture, uint8 [H, W, C], with amplitudes 1/f; its channels are alike, as a photograph's are."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    frequency = np.maximum(np.hypot(down, across), 1 / max(height, width))
    planes = rng.standard_normal((channels + 1, height, width))
    planes = np.fft.ifft2(np.fft.fft2(planes) / frequency).real
    planes /= planes.std(axis=(1, 2), keepdims=True) + 1e-12
    mixed = planes[:1] + 0.4 * planes[1:]
    # mean and contrast vary between pictures: 8-bit levels of photographs have about these
    bright, contrast = rng.uniform(90, 150), rng.uniform(40, 75)
    found: Array = np.clip(bright + contrast * mixed, 0, 255).round().astype(np.uint8)
    return found.transpose(1, 2, 0)


class ScaledNoise:
    """Standard normal inputs, each times its factor."""

    synthetic = True

    def __init__(self, noise: SyntheticSamples, factors: Mapping[str, float]) -> None:
        self.noise = noise
        self.factors = dict(factors)

    def __len__(self) -> int:
        return len(self.noise)

    def __iter__(self) -> Iterator[Feeds]:
        for feeds in self.noise:
            yield {
                name: (x * self.factors[name]).astype(x.dtype) if name in self.factors else x
                for name, x in feeds.items()
            }

    @property
    def fingerprint(self) -> str:
        return f"{self.noise.fingerprint}*{sorted(self.factors.items())}"


def calibration_samples(given: Samples | None, model: ir.Model, seed: int) -> Samples:
    """The user's samples; made-up ones give way to more, of the scale that the model was trained on."""
    if given is not None and not isinstance(given, SyntheticSamples):
        return given
    inputs = static_specs([v for v in model.graph.inputs if v.name not in model.graph.initializers])
    preprocess = given.preprocess if given is not None else None
    if preprocess is not None:
        return SmoothPictures(inputs, preprocess, seed=seed)
    noise = SyntheticSamples(inputs, count=COUNT, seed=seed)
    return ScaledNoise(noise, input_factors(model, noise))


def input_factors(model: ir.Model, noise: Samples) -> dict[str, float]:
    """What each input must be multiplied by for its first convolution's channels to deviate as trained.

    Only inputs that a convolution reads whose batch norm is known; the median over its channels.
    """
    found: dict[str, float] = {}
    for value in model.graph.inputs:
        readers = [n for n in value.consumers() if is_op(n, "Conv")]
        known = [(n.outputs[0], r) for n in readers if (r := recall(n.outputs[0])) is not None]
        if not known:
            continue
        output, statistics = known[0]
        with OnnxRuntimeRunner(with_outputs(model, [str(output.name)])) as runner:
            answers = [runner.infer(f)[str(output.name)] for f in islice(noise, 4)]
        axes = (0, *range(2, answers[0].ndim))
        observed = np.sqrt(np.mean([a.var(axis=axes) for a in answers], axis=0))
        alive = (observed > 0) & (statistics.deviation > 0)
        if alive.any():
            found[str(value.name)] = float(np.median((statistics.deviation / observed)[alive]))
    return found
