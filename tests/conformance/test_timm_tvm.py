"""Real architectures down to native code: lowered, compiled, run here, and held to their answers."""

from __future__ import annotations

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
from effc.core.verify import judge

REFUSED: dict[str, str] = {}  # architecture -> the operator that this backend does not take


def test_native_code_keeps_the_answers(timm_case, tmp_path):
    backend = make_backend("tvm")
    found = backend.probe()
    if not found.ok:
        pytest.skip(found.reason)
    target = Target(load_profile("host"))
    model = timm_case.load()
    infer_shapes(model)
    inputs, outputs = static_specs(model.graph.inputs), static_specs(model.graph.outputs)
    feeds = random_feeds(model, 2)
    original, goldens = model.clone(), record_goldens(model, feeds)
    text = f"{passes.CANONICALIZE},{passes.FUSE},{backend.legalize(target)}"
    passes.parse(text).run(model, PassContext(target))

    problems = backend.check(model, target)
    if timm_case.name in REFUSED:
        assert REFUSED[timm_case.name] in {p.op for p in problems}
        return
    assert not problems
    program = backend.lower(model, target)
    assert not backend.describe(program)["fallbacks"]
    files = backend.compile(program, target, tmp_path)
    manifest = Manifest(
        format=1,
        source={"name": timm_case.name},
        target="host",
        backend="tvm",
        precision="fp32",
        inputs=inputs,
        outputs=outputs,
        files={path.name: "" for path in files.values()},
        passes=(),
        pipeline=text,
        versions={},
        verdict=Verdict("not run", ""),
    )
    (device,) = backend.devices(target)
    with device.runner(Artifact(tmp_path, manifest), 2) as runner:
        verdict = judge(
            goldens,
            [runner.infer(f) for f in feeds],
            Effect.EXACT,
            lambda: record_goldens(original, feeds, optimize=True),
        )
    assert verdict.status == "passed", verdict.reason
