"""What quantizing a model would cost, node by node, without building an artifact."""

from __future__ import annotations

import msgspec

from effc.build import load_source, open_calibration
from effc.choices import BuildOptions, choose_backend, choose_pipelines, choose_target
from effc.core.artifact import Manifest
from effc.core.errors import ConfigError
from effc.core.passinfra import PassContext
from effc.precision.blame import BlameRow
from effc.precision.plan import Planned, Progress, Workbench, compress, part


def explain(
    source: str,
    target: str,
    options: BuildOptions,
    progress: Progress = lambda what, share: None,
) -> Planned:
    """Quantize `source` as `effc build --precision int8` would, and stop there."""
    chosen = choose_target(target, options)
    progress("load", 0.0)
    loaded = load_source(source, options)
    backend = choose_backend(chosen, options)
    front, _ = choose_pipelines(options, backend, chosen)
    device = next(iter(backend.devices(chosen)), None)
    samples = open_calibration(loaded, options)
    model = loaded.model.clone()
    front.run(model, PassContext(chosen, samples, options.seed))
    bench = Workbench(backend, chosen, device, samples, options, (), part(progress, 0.1, 1.0))
    return compress(model, bench, loaded.sha256)


def stored_blame(manifest: Manifest) -> tuple[BlameRow, ...]:
    """The table that the build of an artifact kept. ConfigError where it was not quantized."""
    kept = manifest.details.get("precision", {}).get("blame")
    if not kept:
        raise ConfigError(
            "this artifact was not quantized, so there is nothing to blame",
            hint="effc build --precision int8 keeps the table; effc blame MODEL makes it",
        )
    return msgspec.convert(kept, tuple[BlameRow, ...])
