"""A stand-in for the program trtexec: onnxruntime behind the options that the build script gives it."""

import json
import shutil
import sys

import numpy as np

FLAGS = {"--fp16", "--int8", "--stronglyTyped", "--skipInference", "--buildOnly", "--useSpinWait"}
VALUES = {"--onnx", "--saveEngine", "--memPoolSize", "--timingCacheFile", "--loadEngine", "--loadInputs",
          "--exportOutput", "--exportTimes", "--duration", "--iterations", "--warmUp"}  # fmt: skip

print("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b30] #", *sys.argv)
given = dict(a.partition("=")[::2] for a in sys.argv[1:])
if "--help" in given:
    sys.exit(0)
unknown = [k for k, v in given.items() if k not in (VALUES if v else FLAGS)]
if unknown:
    print(f"[07/01/2026-10:00:00] [E] Unknown option: {unknown[0]}")
    sys.exit(1)
if "--onnx" in given:
    shutil.copyfile(given["--onnx"], given["--saveEngine"])
    sys.exit(0)

import onnxruntime  # noqa: E402 - slow, and of use for engines only

session = onnxruntime.InferenceSession(given["--loadEngine"], providers=["CPUExecutionProvider"])
files = dict(pair.split(":", 1) for pair in given["--loadInputs"].split(","))
feeds = {
    v.name: np.fromfile(files[v.name], np.float32).reshape(v.shape) for v in session.get_inputs()
}
answers = [
    {"name": v.name, "dimensions": "x".join(map(str, a.shape)), "values": a.ravel().tolist()}
    for v, a in zip(session.get_outputs(), session.run(None, feeds), strict=True)
]
with open(given["--exportOutput"], "w") as file:
    json.dump(answers, file)
with open(given["--exportTimes"], "w") as file:
    json.dump([{"latencyMs": 0.5, "computeMs": 0.25}] * 10, file)
