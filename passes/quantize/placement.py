"""Where Q/DQ pairs go: the demands of the operators, followed from the outputs back to the inputs.

A multiplication wants quantized inputs. Any other operator is quantized where a quantized reader wants its
result, and then wants its own inputs so. What stands between a node and the Relu, Clip or residual Add that
it takes in stays real. A tensor wanted quantized is a `Point`; points that operators only move into one
another form a group with one scale.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from effc.core.ir import const, is_op, shape_of, sole_producer, sole_use
from effc.core.schemes import Kind, Law, OpRule, Scheme, activation_inputs, weight_axis


@dataclass(frozen=True, slots=True)
class Point:
    """A computed tensor that gets a Q/DQ pair; `readers` None is all of them, the model's output too."""

    value: ir.Value
    readers: tuple[ir.Node, ...] | None
    group: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant that is the weight of `users`, quantized along `axis`."""

    value: ir.Value
    axis: int
    users: tuple[ir.Node, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant operand that is no weight; with a group it takes that group's scale."""

    value: ir.Value
    users: tuple[ir.Node, ...]
    group: int | None


@dataclass(frozen=True, slots=True)
class Join:
    """An input of a Concat, of the group `part`, that needs the scale of the group `whole` there.

    Where nothing else has a say in the part's scale (`free`) it takes the other without loss.
    """

    node: ir.Node
    value: ir.Value
    part: int
    whole: int
    free: bool


@dataclass(frozen=True, slots=True)
class Placement:
    """What to quantize in a graph.

    `groups` lists the computed tensors of each group that hold the elements of all others: what
    calibration observes. `quantized` are the nodes that compute on integers.
    """

    points: tuple[Point, ...]
    groups: tuple[tuple[ir.Value, ...], ...]
    weights: tuple[Weight, ...]
    constants: tuple[Constant, ...]
    joins: tuple[Join, ...]
    quantized: tuple[ir.Node, ...]


def place(graph: ir.Graph, scheme: Scheme, keep_float: Collection[str] = ()) -> Placement:
    """The placement of `scheme` in `graph`, the nodes called `keep_float` left alone. Changes nothing."""
    search = _Search(graph, scheme, frozenset(keep_float))
    search.run()
    return search.result()


@dataclass
class _Search:
    graph: ir.Graph
    scheme: Scheme
    keep: frozenset[str]
    # value -> the nodes that read it quantized, in reverse order of the graph
    reads: defaultdict[ir.Value, list[ir.Node]] = field(default_factory=lambda: defaultdict(list))
    # value -> the value that its maker's result ends in, where nodes in between are taken in
    ends: dict[ir.Value, ir.Value] = field(default_factory=dict)
    whole: set[ir.Value] = field(default_factory=set)  # quantized for every reader
    active: list[ir.Node] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)

    def run(self) -> None:
        order = {node: i for i, node in enumerate(self.graph)}
        if self.scheme.interface:
            for value in (*self.graph.outputs, *self.graph.inputs):
                made = value.producer()
                done = is_op(made, "DequantizeLinear") or (made is None and not _read(value))
                if value.dtype == ir.DataType.FLOAT and const(value) is None and not done:
                    self.whole.add(value)
        for node in reversed(list(self.graph)):
            rule = None if node.name in self.keep else self.scheme.rule(node)
            if rule is not None and _float_inputs(node, rule):
                self._visit(node, rule, order)

    def _visit(self, node: ir.Node, rule: OpRule, order: dict[ir.Node, int]) -> None:
        ends = [self._end(o) for o in node.outputs]
        if rule.output == "always":
            self.whole.update(ends)
        wanted = any(self._wanted(e) for e in ends)
        if self.scheme.interface or (wanted and rule.kind is Kind.MOVE):
            # parts of a Split are all stored as integers once one is
            used = [e for e in ends if not self._wanted(e) and _read(e) and not e.is_graph_output()]
            self.whole.update(used)
            wanted = wanted or bool(used)
        if rule.kind is Kind.MULTIPLY:
            self._multiply(node)
            return
        if not wanted:
            return
        inputs = [v for i in activation_inputs(node, rule) if (v := node.inputs[i]) is not None]
        if rule.kind is Kind.CLAMP:
            if inner := self._absorbed(inputs[0]):
                self.ends[inner] = ends[0]
                return
            if self.scheme.residual == "identity":
                return
        if rule.kind is Kind.COMBINE and node.op_type == "Add":
            if inner := self._biased(node):
                self.ends[inner] = ends[0]
                return
            inner = self._multiplied(node, order) if self.scheme.residual != "separate" else None
            if inner is not None:
                self.ends[inner] = ends[0]
                inputs = [v for v in inputs if v is not inner]
            elif self.scheme.residual == "identity":
                return
        if self.scheme.composite and self._compose(node, rule, inputs, ends[0]):
            return
        self.active.append(node)
        for value in dict.fromkeys(inputs):
            self.reads[value].append(node)

    def _end(self, value: ir.Value) -> ir.Value:
        while value in self.ends:
            value = self.ends[value]
        return value

    def _wanted(self, value: ir.Value) -> bool:
        return bool(self.reads.get(value)) or value in self.whole

    def _multiply(self, node: ir.Node) -> None:
        self.active.append(node)
        for index in (0, 1):
            value = node.inputs[index]
            if value is None:
                continue
            if index == 1 and const(value) is not None:
                self.weights.append(Weight(value, weight_axis(node), (node,)))
            elif node not in self.reads[value]:
                self.reads[value].append(node)

    def _absorbed(self, value: ir.Value) -> ir.Value | None:
        """`value` if the node that makes it can clamp its result itself."""
        node = value.producer()
        rule = self._rule(node)
        if node is None or rule is None or sole_use(value) is None:
            return None
        return value if rule.kind in (Kind.MULTIPLY, Kind.COMBINE, Kind.REDUCE) else None

    def _biased(self, add: ir.Node) -> ir.Value | None:
        """The result of a MatMul whose bias `add` adds: a constant along the last axis."""
        if not self.scheme.bias_add:
            return None
        for value, bias in (add.inputs[:2], add.inputs[1::-1]):
            shape = shape_of(bias) if const(bias) is not None else None
            made = sole_producer(value, "MatMul")
            if shape is None or value is None or made is None or self._rule(made) is None:
                continue
            if (
                len(shape) >= 1
                and all(d == 1 for d in shape[:-1])
                and value.shape == add.outputs[0].shape
            ):
                return value
        return None

    def _multiplied(self, add: ir.Node, order: dict[ir.Node, int]) -> ir.Value | None:
        """The operand of a residual add that comes straight from a multiplication: the later of two."""
        found: list[tuple[int, ir.Value]] = []
        for value in add.inputs:
            node = value.producer() if value is not None else None
            rule = self._rule(node)
            if value is None or node is None or rule is None or rule.kind is not Kind.MULTIPLY:
                continue
            if (
                sole_use(value) is add
                and value.shape is not None
                and value.shape == add.outputs[0].shape
            ):
                found.append((order[node], value))
        if not found or any(const(v) is not None for v in add.inputs):
            return None
        return max(found, key=lambda f: f[0])[1]

    def _compose(self, node: ir.Node, rule: OpRule, inputs: list[ir.Value], end: ir.Value) -> bool:
        """Whether `node` ends a function of one tensor made of several nodes: x * Sigmoid(x)."""
        if node.op_type != "Mul" or rule.kind is not Kind.COMBINE or len(inputs) != 2:
            return False
        for value, inner in (inputs, inputs[::-1]):
            made = inner.producer()
            inner_rule = self._rule(made)
            if (
                made is not None
                and inner_rule is not None
                and inner_rule.kind is Kind.FUNCTION
                and made.inputs[0] is value
                and sole_use(inner) is node
            ):
                self.active.append(node)
                self.reads[value].extend((node, made))
                return True
        return False

    def _rule(self, node: ir.Node | None) -> OpRule | None:
        if node is None or node.graph is not self.graph or node.name in self.keep:
            return None
        rule = self.scheme.rule(node)
        return rule if rule is not None and _float_inputs(node, rule) else None

    def result(self) -> Placement:
        values = [
            v
            for v in (*self.graph.inputs, *(o for n in self.graph for o in n.outputs))
            if self._wanted(v)
        ]
        group_of, groups = self._groups(values)
        points, constants = [], []
        for value in values:
            if value in self.whole:
                readers = None
            elif self.scheme.every_reader:
                readers = tuple(dict.fromkeys(u.node for u in value.uses()))
            else:
                readers = tuple(dict.fromkeys(self.reads[value]))
            points.append(Point(value, readers, group_of[value]))
        for (value, group), users in self._constants(group_of).items():
            constants.append(Constant(value, tuple(users), group))
        joins = self._joins(group_of, groups) if Law.JOINED in self.scheme.laws else ()
        return Placement(
            tuple(points),
            groups,
            _merged(self.weights),
            tuple(constants),
            joins,
            tuple(reversed(self.active)),
        )

    def _constants(
        self, group_of: dict[ir.Value, int]
    ) -> dict[tuple[ir.Value, int | None], list[ir.Node]]:
        """Who reads each constant, by the group whose scale it must have there."""
        found: dict[tuple[ir.Value, int | None], list[ir.Node]] = {}
        for value, users in self.reads.items():
            if const(value) is None or value.producer() is not None:
                continue
            for user in dict.fromkeys(users):
                rule = self.scheme.rule(user)
                moved = rule is not None and rule.kind is Kind.MOVE
                group = group_of.get(user.outputs[0]) if moved else None
                found.setdefault((value, group), []).append(user)
        return found

    def _joins(
        self, group_of: dict[ir.Value, int], groups: tuple[tuple[ir.Value, ...], ...]
    ) -> tuple[Join, ...]:
        sizes = Counter(group_of.values())
        found = []
        for node in reversed(self.active):
            whole = group_of.get(node.outputs[0])
            if node.op_type != "Concat" or whole is None:
                continue
            for value in dict.fromkeys(node.inputs):
                part = group_of.get(value) if value is not None else None
                if value is None or part is None or part == whole:
                    continue
                free = sizes[part] == 1 and sole_use(value) is node
                found.append(Join(node, value, part, whole, free))
        return tuple(found)

    def _groups(
        self, values: Iterable[ir.Value]
    ) -> tuple[dict[ir.Value, int], tuple[tuple[ir.Value, ...], ...]]:
        parent: dict[ir.Value, ir.Value] = {}

        def root(v: ir.Value) -> ir.Value:
            while (up := parent.get(v, v)) is not v:
                v = up
            return v

        contained: set[ir.Value] = set()  # its elements are all in another tensor of the group
        for node in self.active:
            rule = self.scheme.rule(node)
            if rule is None or rule.kind is not Kind.MOVE:
                continue
            if node.op_type == "Concat":
                continue  # its inputs come from different places: see Join
            for v in node.outputs:
                if node.inputs[0] is not None:
                    parent[root(v)] = root(node.inputs[0])
            contained.update(node.outputs)
        members: dict[ir.Value, list[ir.Value]] = {}
        for v in values:
            members.setdefault(root(v), []).append(v)
        numbers = {r: i for i, r in enumerate(members)}
        group_of = {v: numbers[root(v)] for vs in members.values() for v in vs}
        return group_of, tuple(
            tuple(v for v in vs if v not in contained) for vs in members.values()
        )


def _read(value: ir.Value) -> bool:
    return any(not is_op(r, "QuantizeLinear") for r in value.consumers())


def _float_inputs(node: ir.Node, rule: OpRule) -> bool:
    """Whether the node reads reals, none of which are quantized already."""
    if any(v is not None and is_op(v.producer(), "DequantizeLinear") for v in node.inputs):
        return False
    values = [node.inputs[i] for i in activation_inputs(node, rule) if i < len(node.inputs)]
    return all(v is not None and v.dtype == ir.DataType.FLOAT for v in values)


def _merged(weights: Iterable[Weight]) -> tuple[Weight, ...]:
    """One entry a constant and axis."""
    found: dict[tuple[int, int], Weight] = {}
    for weight in weights:
        key = (id(weight.value), weight.axis)
        old = found.get(key)
        users = weight.users if old is None else (*weight.users, *old.users)
        found[key] = Weight(weight.value, weight.axis, users)
    return tuple(reversed(found.values()))
