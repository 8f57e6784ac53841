"""A stand-in for TensorRT's Python module: onnxruntime behind the names that the build script uses.

It is no TensorRT and proves nothing about one: tests of copying, processes and reports run with it.
EFFC_STAND_IN_TENSORRT says which version it plays, EFFC_STAND_IN_FAILS what goes wrong: `memory` (the builder
gives up), `killed` (the kernel ends the process), `answers` (an engine that answers wrong).
"""

import ctypes
import enum
import os
import signal
from pathlib import Path

import numpy as np

__version__ = os.environ.get("EFFC_STAND_IN_TENSORRT", "10.3.0")
MAJOR = int(__version__.split(".")[0])
FAILS = os.environ.get("EFFC_STAND_IN_FAILS", "")
TYPES = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64", "tensor(float16)": "HALF"}
NUMPY = {"FLOAT": np.float32, "INT64": np.int64, "HALF": np.float16}
DataType = enum.Enum("DataType", list(NUMPY))
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
CREATION = {8: ["EXPLICIT_BATCH"], 10: ["EXPLICIT_BATCH", "STRONGLY_TYPED"], 11: ["STRONGLY_TYPED"]}
NetworkDefinitionCreationFlag = enum.IntEnum(
    "NetworkDefinitionCreationFlag", CREATION[MAJOR], start=0
)
BuilderFlag = enum.Enum("BuilderFlag", ["REFIT", *(["FP16", "INT8"] if MAJOR < 11 else [])])


class ILogger:
    Severity = enum.Enum("Severity", ["ERROR", "INTERNAL_ERROR", "INFO"])

    def __init__(self):
        pass


class Network:
    def __init__(self, flags):
        self.flags, self.path = flags, None


class Builder:
    def __init__(self, log):
        self.said = log

    def create_network(self, flags=0):
        return Network(flags)

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        if FAILS == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if FAILS == "memory":
            self.said.log(ILogger.Severity.ERROR, "Requested amount of GPU memory: out of memory")
            return None
        if MAJOR < 10 and not config.flags:
            raise RuntimeError("a network without flags would compute in float32")
        return Path(network.path).read_bytes()


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, best, largest):
        self.shapes[name] = (least, best, largest)


class Config:
    def __init__(self):
        self.flags, self.timing = [], None

    def set_memory_pool_limit(self, pool, size):
        assert pool is MemoryPoolType.WORKSPACE and size > 0

    def add_optimization_profile(self, profile):
        assert profile.shapes

    def set_flag(self, flag):
        self.flags.append(flag)

    def create_timing_cache(self, data):
        return Cache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.timing = cache

    def get_timing_cache(self):
        return self.timing


class Cache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data + b"one more build\n"


class OnnxParser:
    num_errors = 0

    def __init__(self, network, log):
        self.network = network

    def parse_from_file(self, path):
        self.network.path = path
        return True


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, log):
        pass

    def deserialize_cuda_engine(self, data):
        return Engine(data)


class Engine:
    def __init__(self, data):
        import onnxruntime  # here only: most processes load no engine

        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.inputs = {v.name: v for v in self.session.get_inputs()}
        self.all = {**self.inputs, **{v.name: v for v in self.session.get_outputs()}}
        self.num_io_tensors = len(self.all)

    def get_tensor_name(self, index):
        return list(self.all)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType[TYPES[self.all[name].type]]

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        batch = next(iter(self.shapes.values()))[0]
        declared = tuple(self.engine.all[name].shape)
        return self.shapes.get(name) or tuple(batch if d == "batch" else d for d in declared)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        feeds = {}
        for name in self.engine.inputs:
            kind = NUMPY[self.engine.get_tensor_dtype(name).name]
            shape = self.get_tensor_shape(name)
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            raw = ctypes.string_at(self.addresses[name], size)
            feeds[name] = np.frombuffer(raw, kind).reshape(shape)
        for value, array in zip(
            self.engine.session.get_outputs(), self.engine.session.run(None, feeds), strict=True
        ):
            answer = np.ascontiguousarray(-array if FAILS == "answers" else array)
            ctypes.memmove(self.addresses[value.name], answer.ctypes.data, answer.nbytes)
        return True
