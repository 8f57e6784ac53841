"""Real architectures as Core ML packages: saved, reloaded by the interpreter, held to their answers."""

from __future__ import annotations

import os

import pytest

from effc import passes
from effc.backends import make_backend
from effc.core.artifact import Artifact, Manifest, Verdict
from effc.core.passinfra import Effect, PassContext
from effc.core.profiles import load_profile
from effc.core.reference import random_feeds, record_goldens
from effc.core.shapes import infer_shapes
from effc.core.specs import static_specs
from effc.core.target import Target
from effc.core.verify import compare_outputs, judge

REFUSED: dict[str, str] = {}  # architecture -> the operator that Core ML does not take


# in the slow run; all of them (ten minutes) with EFFC_EVERY_MODEL=1
CHOSEN = ("levit_128s", "swin_tiny_patch4_window7_224", "mobilenetv4_conv_small")


@pytest.mark.slow
def test_the_package_keeps_the_answers(timm_case, tmp_path):
    if timm_case.name not in CHOSEN and not os.environ.get("EFFC_EVERY_MODEL"):
        pytest.skip("set EFFC_EVERY_MODEL=1 to convert it")
    backend = make_backend("coreml")
    found = backend.probe()
    if not found.ok:
        pytest.skip(found.reason)
    target = Target(load_profile("iphone-15"))
    model = timm_case.load()
    infer_shapes(model)
    inputs, outputs = static_specs(model.graph.inputs), static_specs(model.graph.outputs)
    feeds = random_feeds(model, 1)
    original, goldens = model.clone(), record_goldens(model, feeds)
    text = f"{passes.CANONICALIZE},{passes.FUSE},{backend.legalize(target)}"
    passes.parse(text).run(model, PassContext(target))

    problems = backend.check(model, target)
    if timm_case.name in REFUSED:
        assert REFUSED[timm_case.name] in {p.op for p in problems}
        return
    assert not problems
    program = backend.lower(model, target)
    details = backend.describe(program)
    backend.compile(program, target, tmp_path)
    manifest = Manifest(
        format=1,
        source={"name": timm_case.name},
        target="iphone-15",
        backend="coreml",
        precision="fp32",
        inputs=inputs,
        outputs=outputs,
        files={},
        passes=(),
        pipeline=text,
        versions={},
        verdict=Verdict("not run", ""),
        details=details,
    )
    device = next(d for d in backend.devices(target) if d.source == "emulator")
    with device.runner(Artifact(tmp_path, manifest)) as runner:
        verdict = judge(
            goldens,
            [runner.infer(f) for f in feeds],
            Effect.EXACT,
            lambda: record_goldens(original, feeds, optimize=True),
        )
    assert verdict.status == "passed", verdict.reason
    # 1e-5, or twice what the passes alone change in onnxruntime: random deep networks amplify rounding
    noise = max(e.max_rel for e in compare_outputs(goldens, record_goldens(model, feeds)))
    assert verdict.max_error is not None
    assert verdict.max_error < max(1e-5, 2 * noise), (verdict, noise)
