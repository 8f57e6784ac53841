"""The page that goes with a package: what it takes and gives, and Swift that calls it."""

from __future__ import annotations

from effc.backends.coreml.interface import Port
from effc.backends.coreml.options import Options

_CROP = {"squash": "scaleFill", "crop": "centerCrop"}
_TYPES = {"fp32": "Float", "fp16": "Float16", "int32": "Int32"}


def usage(
    package: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...], options: Options
) -> str:
    """Markdown."""
    stem = package.removesuffix(".mlpackage")
    rows = [f"| input | `{p.mil}` | {_kind(p)} | {p.name} |" for p in inputs]
    rows += [f"| output | `{p.mil}` | {_kind(p)} | {p.name} |" for p in outputs]
    if options.labels:
        rows.append(f"| output | `classLabel` | one of {len(options.labels)} names | |")
        rows.append("| output | `classLabel_probs` | name -> score, as the model gives it | |")
    pictured = inputs[0].image if len(inputs) == 1 else None
    code = (
        _vision(stem, inputs[0], outputs, options) if pictured else _tensors(stem, inputs, outputs)
    )
    return "\n".join(
        [
            f"# {package}",
            "",
            f"An ML Program for {options.deployment} and newer. Drag it into Xcode, which compiles it and "
            "makes a class of it; `MLModel(contentsOf:)` wants the compiled `.mlmodelc`.",
            "",
            "| | name | type | in the source |",
            "|---|---|---|---|",
            *rows,
            "",
            "```swift",
            *code,
            "```",
            "",
            *_functions(options),
            "On a Mac, `effc finish` on the folder that holds this page runs the package on all compute "
            "units, compares it with the goldens, and measures it.",
            "",
        ]
    )


def _kind(port: Port) -> str:
    also = (
        f" (usually; it takes {port.described()} of the source)" if port.sizes is not None else ""
    )
    if port.image is not None:
        _, _, h, w = port.mil_shape
        return f"{port.image.color} picture, {w} x {h} pixels{also}"
    if port.open and not also:
        also = " (axes " + ", ".join(map(str, port.open)) + " follow the input's size)"
    return f"{_TYPES[port.kind]} {list(port.mil_shape)}{also}"


def _vision(stem: str, port: Port, outputs: tuple[Port, ...], options: Options) -> list[str]:
    picture = port.image
    crop = _CROP[picture.resize] if picture else "scaleFill"
    head = [
        "import CoreML",
        "import Vision",
        "",
        f'let url = Bundle.main.url(forResource: "{stem}", withExtension: "mlmodelc")!',
        "let configuration = MLModelConfiguration()",
        "configuration.computeUnits = .all",
        "let model = try VNCoreMLModel(for: MLModel(contentsOf: url, configuration: configuration))",
        "let request = VNCoreMLRequest(model: model)",
        f"request.imageCropAndScaleOption = .{crop}  // what effc's samples were made with",
        "try VNImageRequestHandler(cgImage: image).perform([request])",
    ]
    if options.labels:
        return [
            *head,
            "for found in (request.results as! [VNClassificationObservation]).prefix(5) {",
            "    print(found.identifier, found.confidence)",
            "}",
        ]
    return [
        *head,
        "for found in request.results as! [VNCoreMLFeatureValueObservation] {",
        "    print(found.featureName, found.featureValue.multiArrayValue!.shape)",
        "}",
        f"// features: {', '.join(p.mil for p in outputs)}",
    ]


def _tensors(stem: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> list[str]:
    lines = [
        "import CoreML",
        "",
        f'let url = Bundle.main.url(forResource: "{stem}", withExtension: "mlmodelc")!',
        "let configuration = MLModelConfiguration()",
        "configuration.computeUnits = .all",
        "let model = try MLModel(contentsOf: url, configuration: configuration)",
    ]
    for p in inputs:
        lines.append(
            f"let {p.mil} = MLShapedArray<{_TYPES[p.kind]}>(repeating: 0, shape: {list(p.mil_shape)})"
        )
    pairs = ", ".join(f'"{p.mil}": MLFeatureValue(shapedArray: {p.mil})' for p in inputs)
    return [
        *lines,
        f"let provider = try MLDictionaryFeatureProvider(dictionary: [{pairs}])",
        "let result = try model.prediction(from: provider)",
        *(f'let {p.mil} = result.featureValue(for: "{p.mil}")!.multiArrayValue!' for p in outputs),
    ]


def _functions(options: Options) -> list[str]:
    if not options.join:
        return []
    names = ", ".join(f"`{n}`" for n in (options.function, *options.join))
    return [
        f"The package has the functions {names}, which share their weights: "
        '`configuration.functionName = "NAME"` chooses one, '
        f"`{options.function}` is the default.",
        "",
    ]
