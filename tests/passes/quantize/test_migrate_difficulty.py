"""The same function, with an outlier channel handed to the weights."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir

from effc.core.data import SyntheticSamples
from effc.core.passinfra import Effect, PassContext
from effc.core.reference import record_goldens
from effc.core.shapes import infer_shapes
from effc.core.specs import static_specs
from effc.core.verify import judge
from effc.passes.quantize.calibrate import with_outputs
from effc.passes.quantize.migrate_difficulty import MigrateDifficulty

# a transformer's MLP: layer normalization whose scale makes one channel an outlier, read by two products
TEXT = """
<ir_version: 10, opset_import: ["": 23]>
g (float[1,6,8] x) => (float[1,6,4] y) {
  n = LayerNormalization<axis=-1>(x, gamma, beta)
  q = MatMul(n, wq)
  k = MatMul(n, wk)
  kb = Add(k, bk)
  y = Mul(q, kb)
}"""


def build() -> ir.Model:
    rng = np.random.default_rng(0)
    gamma = rng.uniform(0.5, 1.5, 8)
    gamma[3] = 80.0
    arrays = {
        "gamma": gamma,
        "beta": rng.normal(size=8),
        "wq": rng.normal(size=(8, 4)),
        "wk": rng.normal(size=(8, 4)),
        "bk": rng.normal(size=4),
    }
    proto = onnx.parser.parse_model(TEXT)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def spread(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> float:
    """The widest channel of the normalized tensor over the median one."""
    (found,) = record_goldens(with_outputs(model, ["n"]), feeds[:1])
    channels = np.abs(found["n"]).max((0, 1))
    return float(channels.max() / np.median(channels))


def test_the_outlier_goes_into_the_weights_of_all_readers() -> None:
    model = build()
    samples = SyntheticSamples(static_specs(model.graph.inputs), count=4)
    feeds = [dict(f) for f in samples]
    goldens, before = record_goldens(model, feeds), spread(model, feeds)
    assert MigrateDifficulty().run(model, PassContext(samples=samples)) == 1
    verdict = judge(goldens, record_goldens(model, feeds), Effect.EXACT)
    assert verdict.status == "passed", verdict.reason
    assert before > 40 and spread(model, feeds) < before / 3


def test_alpha_0_only_looks_at_the_weights() -> None:
    model = build()
    samples = SyntheticSamples(static_specs(model.graph.inputs), count=2)
    feeds = [dict(f) for f in samples]
    before = spread(model, feeds)
    MigrateDifficulty(alpha=0.0).run(model, PassContext(samples=samples))
    assert spread(model, feeds) > before / 3  # the outlier of the activations is not seen
