"""TIR as CUDA C: statements and expressions of scalars, as rules and kernel builders make them.

float16 values are floats in registers and rounded when they are stored, or where TIR casts to float16.
Products behind `llvm.arithmetic.fence` are never fused with sums. What has no form here is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import tvm
from tvm import tirx

from effc.backends.tvm.ops.contract import Refused

Expr = Any
Stmt = Any

MEMORY = {
    "float16": "unsigned short", "float32": "float", "float64": "double", "bool": "unsigned char",
    "int8": "signed char", "int16": "short", "int32": "int", "int64": "long long",
    "uint8": "unsigned char", "uint16": "unsigned short", "uint32": "unsigned int",
    "uint64": "unsigned long long",
}  # fmt: skip
_REGISTER = {**MEMORY, "float16": "float", "bool": "bool"}
_BINARY = {
    "Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Mod": "%", "EQ": "==", "NE": "!=", "LT": "<",
    "LE": "<=", "GT": ">", "GE": ">=", "And": "&&", "Or": "||", "BitwiseAnd": "&", "BitwiseOr": "|",
    "BitwiseXor": "^",
}  # fmt: skip
_OPERATOR_CALLS = {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}
_LIBM = {
    "exp", "log", "log2", "log10", "log1p", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "floor", "ceil", "trunc", "fabs", "pow", "round",
    "nearbyint", "atan2", "fmod",
}  # fmt: skip
_LLVM = {"llvm.nearbyint": "rint", "llvm.fabs": "fabs", "llvm.floor": "floor", "llvm.sqrt": "sqrt"}


def memory_type(dtype: str) -> str:
    """The C type of an element in memory; Refused where there is none."""
    if dtype not in MEMORY:
        raise Refused(f"its data is {dtype}, which these kernels don't take", "convert the model")
    return MEMORY[dtype]


def register_type(dtype: str) -> str:
    """The C type of a value in a register."""
    if dtype not in _REGISTER:
        raise Refused(f"a value of {dtype} has no form in CUDA C here", "convert the model")
    return _REGISTER[dtype]


def dtype_of(expr: Expr) -> str:
    """The TIR dtype of an expression."""
    return str(expr.ty.dtype)


class Names:
    """C names of TIR variables and buffers, unique within a function."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._by_hash: dict[int, list[tuple[Any, str]]] = {}
        self._taken = set(taken)

    def add(self, var: Any, hint: str) -> str:
        """A new name for `var`."""
        stem = "".join(c if c.isalnum() else "_" for c in hint) or "v"
        stem = f"{stem}_"  # apart from C's keywords and CUDA's built-ins
        name, n = stem, 0
        while name in self._taken:
            n += 1
            name = f"{stem}{n}"
        self._taken.add(name)
        self.set(var, name)
        return name

    def set(self, var: Any, name: str) -> None:
        """`var` is called `name`."""
        self._by_hash.setdefault(hash(var), []).append((var, name))

    def get(self, var: Any) -> str | None:
        """The name of `var`, if it has one."""
        for other, name in reversed(self._by_hash.get(hash(var), [])):
            if other.same_as(var):
                return str(name)
        return None


class Printer:
    """Prints one function's body. `natural` are names that hold no negative number."""

    def __init__(self, names: Mapping[str, Any], natural: Iterable[str] = ()) -> None:
        """`names`: C name -> the TIR variable or buffer that it stands for."""
        self.names = Names(names)
        for name, var in names.items():
            self.names.set(var, name)
        self.natural = set(natural)
        self.local: set[str] = set()  # buffers in registers
        self.lines: list[str] = []
        self.depth = 1

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    # statements

    def stmt(self, s: Stmt) -> None:
        """Print a statement."""
        getattr(self, f"_{type(s).__name__}", self._unknown)(s)

    def _unknown(self, s: Any) -> Any:
        raise Refused(f"TIR's {type(s).__name__} has no form in CUDA C here", "build for a CPU")

    def _SeqStmt(self, s: Stmt) -> None:
        for inner in s.seq:
            self.stmt(inner)

    def _AttrStmt(self, s: Stmt) -> None:
        self.stmt(s.body)

    def _DeclBuffer(self, s: Stmt) -> None:
        if self.names.get(s.buffer) is None:
            data = getattr(s, "data", None)
            name = self.names.get(data) if data is not None else None
            if name is None:
                raise Refused("a buffer without storage in TIR", "build for a CPU")
            self.names.set(s.buffer, name)

    def _AllocBuffer(self, s: Stmt) -> None:
        b = s.buffer
        elements = math.prod(int(e) for e in b.shape)
        name = self.names.add(b, b.name)
        self.local.add(name)
        self.line(f"{register_type(str(b.dtype))} {name}[{elements}];")

    def _Bind(self, s: Stmt) -> None:
        value = self.expr(s.value)
        name = self.names.add(s.var, s.var.name)
        if self._is_natural(s.value):
            self.natural.add(name)
        self.line(f"const {register_type(dtype_of(s.var))} {name} = {value};")

    def _For(self, s: Stmt) -> None:
        if s.kind == tirx.ForKind.VECTORIZED:
            raise Refused("a vectorized loop has no form in CUDA C here", "build for a CPU")
        low, extent = self.expr(s.min), self.expr(s.extent)
        name = self.names.add(s.loop_var, s.loop_var.name)
        if self._is_natural(s.min):
            self.natural.add(name)
        if s.kind == tirx.ForKind.UNROLLED:
            self.line("#pragma unroll")
        stop = extent if low == "0" else f"{low} + {extent}"
        self.line(f"for (int {name} = {low}; {name} < {stop}; ++{name}) {{")
        self._block(s.body)

    def _block(self, s: Stmt) -> None:
        self.depth += 1
        self.stmt(s)
        self.depth -= 1
        self.line("}")

    def _IfThenElse(self, s: Stmt) -> None:
        self.line(f"if ({self.expr(s.condition)}) {{")
        self._block(s.then_case)
        if s.else_case is not None:
            self.line("else {")
            self._block(s.else_case)

    def _Evaluate(self, s: Stmt) -> None:
        if not isinstance(s.value, (tirx.IntImm, tirx.Var)):
            self.line(f"{self.expr(s.value)};")

    def _BufferStore(self, s: Stmt) -> None:
        b = s.buffer
        name, at = self._buffer(b), self._flat(b, s.indices)
        value = self.expr(s.value)
        if str(b.dtype) == "float16" and name not in self.local:
            value = f"effc_half({value})"
        self.line(f"{name}[{at}] = {value};")

    # expressions

    def _buffer(self, b: Any) -> str:
        name = self.names.get(b)
        if name is None:
            raise Refused(f"TIR reads the buffer {b.name!r}, which nothing declares", "report it")
        return name

    def _flat(self, b: Any, indices: Any) -> str:
        index = list(indices)
        if len(index) == 1:
            return self.expr(index[0])
        flat = index[0]
        for extent, i in zip(list(b.shape)[1:], index[1:], strict=True):
            flat = flat * extent + i
        return self.expr(flat)

    def expr(self, e: Expr) -> str:
        """An expression, in parentheses where it has parts."""
        if isinstance(e, (int, bool)):
            return str(int(e))
        kind = type(e).__name__
        if kind in _BINARY and not dtype_of(e).startswith("float16x"):
            return f"({self.expr(e.a)} {_BINARY[kind]} {self.expr(e.b)})"
        return str(getattr(self, f"_{kind}", self._unknown)(e))

    def _Var(self, e: Expr) -> str:
        name = self.names.get(e)
        if name is None:
            raise Refused(f"TIR reads the variable {e.name!r}, which nothing binds", "report it")
        return name

    def _IntImm(self, e: Expr) -> str:
        value, dtype = int(e.value), dtype_of(e)
        if dtype == "bool":
            return "true" if value else "false"
        if dtype == "int64":
            return f"(-{-(value + 1)}ll - 1)" if value < 0 else f"{value}ll"
        if dtype == "uint64":
            return f"{value}ull"
        if dtype.startswith("uint"):
            return f"{value}u"
        return (
            f"({value + 1} - 1)"
            if value == -(2**31)
            else (f"({value})" if value < 0 else str(value))
        )

    def _FloatImm(self, e: Expr) -> str:
        value, double = float(e.value), dtype_of(e) == "float64"
        if math.isnan(value):
            return "effc_nan_double()" if double else "effc_nan()"
        if math.isinf(value):
            sign = "-" if value < 0 else ""
            return f"({sign}effc_infinity_double())" if double else f"({sign}effc_infinity())"
        text = repr(value) if double else f"{value:.9g}"
        text = text if any(c in text for c in ".e") else f"{text}.0"
        text += "" if double else "f"
        return f"({text})" if value < 0 or text.startswith("-") else text

    def _Cast(self, e: Expr) -> str:
        source, target, value = dtype_of(e.value), dtype_of(e), self.expr(e.value)
        if source == target:
            return value
        if target == "float16":
            return f"effc_rounded((float)({value}))"
        if target == "bool":
            return f"({value} != 0)"
        return f"(({register_type(target)})({value}))"

    def _Not(self, e: Expr) -> str:
        return f"(!{self.expr(e.a)})"

    def _LShift(self, e: Expr) -> str:
        return self._shift("<<", "effc_shift_left", e.a, e.b)

    def _RShift(self, e: Expr) -> str:
        return self._shift(">>", "effc_shift_right", e.a, e.b)

    def _shift(self, operator: str, function: str, a: Expr, b: Expr) -> str:
        if isinstance(b, tirx.IntImm):
            return f"({self.expr(a)} {operator} {self.expr(b)})"
        return f"{function}({self.expr(a)}, {self.expr(b)})"

    def _BitwiseNot(self, e: Expr) -> str:
        return f"(~{self.expr(e.a)})"

    def _Select(self, e: Expr) -> str:
        return (
            f"({self.expr(e.condition)} ? {self.expr(e.true_value)} : {self.expr(e.false_value)})"
        )

    def _Min(self, e: Expr) -> str:
        return f"effc_min({self.expr(e.a)}, {self.expr(e.b)})"

    def _Max(self, e: Expr) -> str:
        return f"effc_max({self.expr(e.a)}, {self.expr(e.b)})"

    def _FloorDiv(self, e: Expr) -> str:
        a, b = self.expr(e.a), self.expr(e.b)
        if self._is_natural(e.a) and self._is_natural(e.b):
            return f"({a} / {b})"
        return f"effc_floor_div({a}, {b})"

    def _FloorMod(self, e: Expr) -> str:
        a, b = self.expr(e.a), self.expr(e.b)
        if self._is_natural(e.a) and self._is_natural(e.b):
            return f"({a} % {b})"
        return f"effc_floor_mod({a}, {b})"

    def _Let(self, e: Expr) -> str:
        raise Refused("TIR's Let has no form in CUDA C here", "build for a CPU")

    def _TensorLoad(self, e: Expr) -> str:
        name = self._buffer(e.source)
        text = f"{name}[{self._flat(e.source, e.indices)}]"
        if str(e.source.dtype) == "float16" and name not in self.local:
            return f"effc_float({text})"
        return text

    _BufferLoad = _TensorLoad

    def _Call(self, e: Expr) -> str:
        op = str(getattr(e.op, "name", e.op)).rpartition(".")[2]
        dtype = dtype_of(e)
        args = list(e.args)
        if op in _OPERATOR_CALLS:
            return f"({self.expr(args[0])} {_OPERATOR_CALLS[op]} {self.expr(args[1])})"
        if op in ("shift_left", "shift_right"):
            operator = "<<" if op == "shift_left" else ">>"
            return self._shift(operator, f"effc_{op}", args[0], args[1])
        if op == "bitwise_not":
            return f"(~{self.expr(args[0])})"
        if op == "if_then_else":
            condition, yes, no = map(self.expr, args)
            return f"({condition} ? {yes} : {no})"
        if op == "reinterpret":
            return self._reinterpret(args[0], dtype)
        if op in ("isnan", "isinf", "isfinite"):
            return f"effc_{op}({self.expr(args[0])})"
        if op in ("call_llvm_pure_intrin", "call_llvm_intrin"):
            return self._llvm(args, dtype)
        if op in ("call_pure_extern", "call_extern"):
            op, args = str(args[0].value), args[1:]
            op = op[:-1] if op.endswith("f") and op[:-1] in _LIBM else op
        if op == "abs" or (op == "fabs" and "int" in dtype):
            op = "abs" if "int" in dtype else "fabs"
            if op == "abs":
                return f"effc_abs({self.expr(args[0])})"
        if op in _LIBM:
            return self._libm(op, args, dtype)
        raise Refused(f"TIR's {op} has no form in CUDA C here", "build for a CPU")

    def _libm(self, op: str, args: list[Expr], dtype: str) -> str:
        suffix = "" if dtype == "float64" else "f"
        name = "rint" if op == "nearbyint" else op
        return f"{name}{suffix}({', '.join(map(self.expr, args))})"

    def _llvm(self, args: list[Expr], dtype: str) -> str:
        first = args[0]
        name = getattr(first, "value", first)
        if isinstance(name, int):
            name = tvm.get_global_func("target.llvm_get_intrinsic_name")(name)
        name = str(name)
        if name == "llvm.arithmetic.fence":
            value = args[1]
            if type(value).__name__ == "Mul" and dtype == "float32":
                return f"__fmul_rn({self.expr(value.a)}, {self.expr(value.b)})"
            return self.expr(value)
        if name not in _LLVM:
            raise Refused(f"{name} has no form in CUDA C here", "build for a CPU")
        return self._libm(_LLVM[name], args[1:], dtype)

    def _reinterpret(self, value: Expr, target: str) -> str:
        source, text = dtype_of(value), self.expr(value)
        if source == "float16":
            text, source = f"effc_half({text})", "uint16"
        if target == "float16":
            return f"effc_float((unsigned short)({text}))"
        if source == target:
            return text
        return (
            f"effc_bits<{register_type(target)}>({register_type(source)}({text}))"
            if (" " not in register_type(source))
            else f"effc_bits<{register_type(target)}>(({register_type(source)})({text}))"
        )

    def _is_natural(self, e: Expr) -> bool:
        """Whether an integer expression is certainly not negative."""
        if isinstance(e, int):
            return e >= 0
        kind = type(e).__name__
        if kind == "IntImm":
            return int(e.value) >= 0
        if kind == "Var":
            return self.names.get(e) in self.natural
        if kind in ("Add", "Mul", "Min", "FloorDiv"):
            return self._is_natural(e.a) and self._is_natural(e.b)
        if kind == "Max":
            return self._is_natural(e.a) or self._is_natural(e.b)
        if kind == "FloorMod":
            return self._is_natural(e.b)
        return dtype_of(e).startswith("uint") if hasattr(e, "ty") else False
