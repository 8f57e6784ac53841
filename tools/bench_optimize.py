"""Times canonicalize and fuse on large graphs, beside onnxsim and onnxruntime, and prints a table.

    python tools/bench_optimize.py                       # 1,000, 10,000 and 20,000 nodes, 1 GB of weights
    python tools/bench_optimize.py --nodes 10000 --weights 0 --repeats 5

Each run is a process of its own. Seconds are those of the optimization alone, on the clock (`optimize`)
and of the processor (`cpu`), and with loading and writing the model (`total`); the peak is the largest
resident set of the process, mapped files included. The model is a chain of blocks as exporters write
them: Conv, BatchNormalization, HardSwish spelled in four nodes, a residual Add, a Reshape whose target
is computed from Shape, and an Identity. The heavy model is a chain of MatMul, Add, Identity and Relu.
Peers that are not installed are left out, by name.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

CHANNELS = 8
TOOLS = ("effc", "onnxruntime", "onnxsim", "onnxslim")


class Block:
    """Writes the blocks of the benchmark model, 16 nodes each."""

    def __init__(self, graph: ir.Graph, seed: int) -> None:
        self.graph = graph
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def constant(self, array: np.ndarray) -> ir.Value:
        name = f"c{len(self.graph.initializers)}"
        value = ir.Value(
            name=name,
            const_value=ir.tensor(array, name=name),
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        self.graph.register_initializer(value)
        return value

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes, name=f"{kind}_{self.count}")
        self.count += 1
        self.graph.append(node)
        return node.outputs[0]

    def write(self, x: ir.Value) -> ir.Value:
        f32, c = np.float32, CHANNELS
        w = self.constant(self.rng.standard_normal((c, c, 3, 3)).astype(f32) / (3 * c))
        y = self.op("Conv", x, w, pads=[1, 1, 1, 1])
        vectors = [self.constant((self.rng.random(c) + 0.5).astype(f32)) for _ in range(4)]
        y = self.op("BatchNormalization", y, *vectors)
        three, six = self.op_constant(np.array(3, f32)), self.op_constant(np.array(6, f32))
        clipped = self.op("Clip", self.op("Add", y, three), self.op_constant(np.array(0, f32)), six)
        y = self.op("Div", self.op("Mul", y, clipped), six)
        batch = self.op("Gather", self.op("Shape", y), self.op_constant(np.array([0], np.int64)))
        target = self.op("Concat", batch, self.constant(np.array([c, 8, 8], np.int64)), axis=0)
        y = self.op("Identity", self.op("Reshape", y, target))
        return self.op("Add", x, y)

    def op_constant(self, array: np.ndarray) -> ir.Value:
        return self.op("Constant", value=ir.tensor(array))


def graph_of(nodes: int, path: Path) -> int:
    """Write the model with about `nodes` nodes to `path`; the exact number."""
    x = ir.Value(
        name="x", shape=ir.Shape([1, CHANNELS, 8, 8]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 17}, name="chain")
    block = Block(graph, 0)
    y: ir.Value = x
    while block.count < nodes:
        y = block.write(y)
    y.name, y.type, y.shape = "y", x.type, ir.Shape([1, CHANNELS, 8, 8])
    graph.outputs.append(y)
    ir.save(ir.Model(graph, ir_version=8), path)
    return block.count


def weights_of(size: int, path: Path) -> int:
    """Write a model of `size` bytes of external weights (MatMul layers of 16 MiB each); its nodes."""
    width = 2048
    x = ir.Value(name="x", shape=ir.Shape([1, width]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 17}, name="weights")
    block = Block(graph, 0)
    y: ir.Value = x
    data = path.with_suffix(".data")
    offset = 0
    with data.open("wb") as f:
        while offset < size:
            array = block.rng.standard_normal((width, width), dtype=np.float32) / 64
            f.write(array.tobytes())
            name = f"w{offset}"
            tensor = ir.ExternalTensor(
                data.name, offset, array.nbytes, ir.DataType.FLOAT, shape=ir.Shape(array.shape),
                name=name, base_dir=path.parent,
            )  # fmt: skip
            w = ir.Value(
                name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
            )
            graph.register_initializer(w)
            bias = block.constant(block.rng.standard_normal(width).astype(np.float32))
            y = block.op(
                "Relu", block.op("Identity", block.op("Add", block.op("MatMul", y, w), bias))
            )
            offset += array.nbytes
    y.name, y.type, y.shape = "y", x.type, ir.Shape([1, width])
    graph.outputs.append(y)
    onnx.save(ir.to_proto(ir.Model(graph, ir_version=8)), path)
    return block.count


def run_one(tool: str, path: Path) -> dict[str, float]:
    """Optimize `path` with `tool` in this process."""
    start = time.perf_counter()
    output = path.with_name(f"{tool}.onnx")
    big = path.with_suffix(".data").exists()
    if tool == "effc":
        from effc import passes
        from effc.core.passinfra import PassContext
        from effc.core.shapes import infer_shapes

        pipeline = passes.parse(f"{passes.CANONICALIZE},{passes.FUSE}")
        model = ir.load(path)
        begin, cpu = time.perf_counter(), time.process_time()
        infer_shapes(model)
        records = pipeline.run(model, PassContext())
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        left = len(model.graph)
        # as a build goes on: the weights are read where they lie, and written once
        ir.save(model, output, external_data=f"{tool}.data" if big else None)
        steps = {r.id: r.seconds for r in records}
    elif tool == "onnxruntime":
        import onnxruntime as ort

        begin, cpu = time.perf_counter(), time.process_time()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(output)
        if big:
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", f"{tool}.data"
            )
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        left, steps = len(onnx.load(output, load_external_data=False).graph.node), {}
    else:
        module = importlib.import_module(tool)
        loaded = onnx.load(path)
        begin, cpu = time.perf_counter(), time.process_time()
        simplified = (
            module.simplify(loaded)[0] if tool == "onnxsim" else module.slim(loaded)  # onnxslim
        )
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        left, steps = len(simplified.graph.node), {}
        onnx.save(simplified, output, save_as_external_data=big, location=f"{tool}.data")
    return {
        "optimize": seconds,
        "cpu": cpu,
        "total": time.perf_counter() - start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "left": left,
        "steps": steps,
    }  # type: ignore[dict-item]


def measure(tool: str, path: Path, repeats: int, limit: float) -> dict[str, float] | str:
    """The medians over `repeats` processes, or why there are none."""
    if importlib.util.find_spec(tool) is None:
        return "not installed"
    runs = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--one", tool, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"over {limit:.0f} s"
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["failed"])[-1][:80]
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    result = {
        k: statistics.median(r[k] for r in runs) for k in ("optimize", "cpu", "total", "left")
    }
    result["peak"] = max(r["peak"] for r in runs)
    result["steps"] = runs[0]["steps"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1000, 10_000, 20_000])
    parser.add_argument("--weights", type=int, default=1 << 30, help="bytes; 0: leave out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one run")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument(
        "--steps", action="store_true", help="also the seconds of each pass of effc"
    )
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.one[0], Path(args.one[1]))))
        return
    print(
        f"{'model':24} {'tool':12} {'optimize':>10} {'cpu':>9} {'total':>9} {'peak':>9} {'nodes left':>11}"
    )
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(f"{n} nodes", n, False) for n in args.nodes]
        jobs += [(f"{args.weights / 2**30:.1f} GiB of weights", args.weights, True)] * bool(
            args.weights
        )
        for title, size, heavy in jobs:
            path = Path(folder) / "model.onnx"
            (weights_of if heavy else graph_of)(size, path)
            for tool in args.tools:
                row = measure(tool, path, args.repeats, args.limit)
                if isinstance(row, str):
                    print(f"{title:24} {tool:12} {row}")
                    continue
                print(
                    f"{title:24} {tool:12} {row['optimize']:8.2f} s {row['cpu']:7.2f} s {row['total']:7.2f} s"
                    f" {row['peak'] / 1e9:6.2f} GB {row['left']:11.0f}",
                    flush=True,
                )
                if args.steps and row["steps"]:
                    for step, seconds in row["steps"].items():  # type: ignore[attr-defined]
                        print(f"{'':37} {seconds * 1e3:8.1f} ms  {step}")


if __name__ == "__main__":
    main()
