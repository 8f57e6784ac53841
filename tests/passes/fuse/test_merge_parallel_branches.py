from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effc.passes.fuse.fold_batch_norm import FoldBatchNorm
from effc.passes.fuse.merge_parallel_branches import MergeParallelBranches

HYPOTHESIS = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ALWAYS = MergeParallelBranches(max_mac_ratio=1e9)


def numbers(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)).astype(np.float32)


def norm(name: str, channels: int) -> dict[str, np.ndarray]:
    return {
        f"{name}_g": numbers(1, channels),
        f"{name}_b": numbers(2, channels),
        f"{name}_m": numbers(3, channels),
        f"{name}_v": np.abs(numbers(4, channels)),
    }


def bn(name: str, of: str) -> str:
    return f"BatchNormalization({of}, {name}_g, {name}_b, {name}_m, {name}_v)"


def model(build, body: str, channels: int = 4, x: str = "1,4,8,9", **arrays):
    return build(f"g (float[{x}] x) => (float[N,C,H,W] y) {{ {body} }}", **arrays)


REPVGG = f"""
  a = Conv<pads=[1,1,1,1], strides=[@,@]>(x, w3)
  a2 = {bn("n3", "a")}
  b = Conv<strides=[@,@]>(x, w1)
  b2 = {bn("n1", "b")}
  s = Add(a2, b2)
"""


def repvgg_arrays(groups: int = 1) -> dict[str, np.ndarray]:
    arrays = {"w3": numbers(5, 4, 4 // groups, 3, 3), "w1": numbers(6, 4, 4 // groups, 1, 1)}
    return {**arrays, **norm("n3", 4), **norm("n1", 4), **norm("n0", 4)}


def test_repvgg_block(build, rewrite):
    body = REPVGG.replace("@", "1") + f"c = {bn('n0', 'x')} t = Add(s, c) y = Relu(t)"
    m = model(build, body, **repvgg_arrays())
    r = rewrite(m, FoldBatchNorm(), MergeParallelBranches())
    assert r.ops == ["Conv", "Relu"]
    assert r.node("Conv").inputs[1].shape == (4, 4, 3, 3)


def test_repvgg_block_with_stride(build, rewrite):
    m = model(build, REPVGG.replace("@", "2") + "y = Relu(s)", **repvgg_arrays())
    assert rewrite(m, FoldBatchNorm(), MergeParallelBranches()).ops == ["Conv", "Relu"]


@pytest.mark.parametrize("groups", [2, 4])
def test_mobileone_block(build, rewrite, groups):
    body = f"""
      a = Conv<pads=[1,1,1,1], group={groups}>(x, w3)
      b = Conv<pads=[1,1,1,1], group={groups}>(x, v3, bias)
      c = Conv<group={groups}>(x, w1)
      d = {bn("n0", "x")}
      s = Sum(a, b, c, d)
      y = {bn("n1", "s")}
    """
    arrays = {
        **repvgg_arrays(groups),
        "v3": numbers(7, 4, 4 // groups, 3, 3),
        "bias": numbers(8, 4),
    }
    r = rewrite(model(build, body, **arrays), MergeParallelBranches())
    assert r.ops == ["Conv"] and r.node("Conv").attributes["group"].value == groups


def test_acnet_block(build, rewrite):
    body = """
      a = Conv<pads=[1,1,1,1]>(x, w)
      b = Conv<pads=[1,0,1,0]>(x, v)
      c = Conv<pads=[0,1,0,1]>(x, h)
      s = Add(b, c)
      y = Add(s, a)
    """
    arrays = {"w": numbers(1, 4, 4, 3, 3), "v": numbers(2, 4, 4, 3, 1), "h": numbers(3, 4, 4, 1, 3)}
    assert rewrite(model(build, body, **arrays), MergeParallelBranches()).ops == ["Conv"]


def test_a_cross_of_two_kernels_would_cost_more(build, rewrite):
    body = """
      b = Conv<pads=[1,0,1,0]>(x, v)
      c = Conv<pads=[0,1,0,1]>(x, h)
      y = Add(b, c)
    """
    arrays = {"v": numbers(2, 4, 4, 3, 1), "h": numbers(3, 4, 4, 1, 3)}
    assert rewrite(model(build, body, **arrays), MergeParallelBranches()).count == 0
    assert rewrite(model(build, body, **arrays), ALWAYS).ops == ["Conv"]


def test_the_largest_takes_in_what_costs_nothing(build, rewrite):
    # 7x1 would make the 3x3 a 7x3; the 1x1 and the identity fit into the 3x3
    body = """
      a = Conv<pads=[1,1,1,1]>(x, w)
      b = Conv<pads=[3,0,3,0], group=4>(x, v)
      c = Conv(x, p)
      s = Add(a, b)
      t = Add(s, c)
      y = Add(t, x)
    """
    arrays = {"w": numbers(1, 4, 4, 3, 3), "v": numbers(2, 4, 1, 7, 1), "p": numbers(3, 4, 4, 1, 1)}
    assert rewrite(model(build, body, **arrays), MergeParallelBranches()).ops == [
        "Conv",
        "Conv",
        "Add",
    ]


def test_identity_into_depthwise_with_layer_scale(build, rewrite):
    # FastViT's token mixer: x + gamma * (mixer(x) - norm(x))
    body = f"""
      a = Conv<pads=[1,1,1,1], group=4>(x, w, b)
      n = {bn("n0", "x")}
      d = Sub(a, n)
      e = Mul(gamma, d)
      y = Add(x, e)
    """
    arrays = {"w": numbers(1, 4, 1, 3, 3), "b": numbers(2, 4), "gamma": numbers(3, 4, 1, 1)}
    r = rewrite(model(build, body, **arrays, **norm("n0", 4)), MergeParallelBranches())
    assert r.ops == ["Conv"]


def test_average_pool_is_a_convolution(build, rewrite):
    body = """
      a = Conv<pads=[1,1,1,1], group=4>(x, w)
      b = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)
      y = Sub(a, b)
    """
    assert rewrite(model(build, body, w=numbers(1, 4, 1, 3, 3)), MergeParallelBranches()).ops == [
        "Conv"
    ]
    uncounted = body.replace(", count_include_pad=1", "")
    m = model(build, uncounted, w=numbers(1, 4, 1, 3, 3))
    assert rewrite(m, MergeParallelBranches()).count == 0


def test_other_terms_stay(build, rewrite):
    body = """
      z = Relu(x)
      a = Conv<pads=[1,1,1,1]>(x, w)
      s = Sub(z, a)
      b = Conv(x, v)
      t = Add(s, b)
      k = Add(t, c)
      y = Relu(k)
    """
    arrays = {"w": numbers(1, 4, 4, 3, 3), "v": numbers(2, 4, 4, 1, 1), "c": numbers(3, 4, 1, 1)}
    r = rewrite(model(build, body, **arrays), MergeParallelBranches())
    assert sorted(r.ops) == ["Add", "Conv", "Relu", "Relu"]


def test_two_inputs_in_one_sum(build, rewrite):
    body = """
      z = Relu(x)
      a = Conv<pads=[1,1,1,1]>(x, w)  b = Conv<pads=[1,1,1,1]>(z, w)
      c = Conv(x, v)  d = Conv(z, v)
      s = Add(a, b)  t = Add(c, d)
      y = Add(s, t)
    """
    r = rewrite(
        model(build, body, w=numbers(1, 4, 4, 3, 3), v=numbers(2, 4, 4, 1, 1)),
        MergeParallelBranches(),
    )
    assert sorted(r.ops) == ["Add", "Conv", "Conv", "Relu"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv(x, v) s = Add(a, c) y = Add(s, b)",
        "a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(x) c = Conv(b, v) y = Add(a, c)",
        "a = Conv<pads=[1,1,1,1]>(x, w) c = Conv(x, v) d = Mul(a, c) y = Add(d, x)",
    ],
)  # fmt: skip
def test_declines(build, rewrite, body):
    m = model(build, body, w=numbers(1, 4, 4, 3, 3), v=numbers(2, 4, 4, 1, 1))
    assert rewrite(m, MergeParallelBranches()).count == 0


def test_declines_outputs_that_broadcast(build, rewrite):
    # 8x9 + 1x1: the second is one number a channel, not a kernel
    body = "a = Conv<pads=[1,1,1,1]>(x, w) b = Conv(x, v) y = Add(a, b)"
    m = model(build, body, w=numbers(1, 4, 4, 3, 3), v=numbers(2, 4, 4, 8, 9))
    assert rewrite(m, ALWAYS).count == 0
    body = "a = Conv<pads=[1,1,1,1]>(x, w) b = Conv(x, v) y = Add(a, b)"
    m = model(build, body, w=numbers(1, 4, 4, 3, 3), v=numbers(2, 1, 4, 1, 1))
    assert rewrite(m, ALWAYS).count == 0
    body = "a = Conv<pads=[1,1,1,1]>(x, w) y = Add(a, x)"
    m = model(build, body, x="1,1,8,9", w=numbers(1, 4, 1, 3, 3))
    assert rewrite(m, ALWAYS).count == 0


def test_concatenated_convolutions(build, rewrite):
    body = """
      a = Conv(x, w, b) a2 = Relu(a)
      c = Conv(x, v) c2 = Relu(c)
      d = Conv<pads=[1,1,1,1]>(x, u) d2 = Relu(d)
      y = Concat<axis=1>(a2, c2, d2)
    """
    arrays = {"w": numbers(1, 6, 4, 1, 1), "b": numbers(2, 6), "v": numbers(3, 2, 4, 1, 1)}
    r = rewrite(model(build, body, **arrays, u=numbers(4, 4, 4, 3, 3)), MergeParallelBranches())
    assert sorted(r.ops) == ["Concat", "Conv", "Conv", "Relu", "Relu"]
    assert rewrite(model(build, body, **arrays, u=numbers(4, 4, 4, 3, 3)), ALWAYS).ops == [
        "Conv",
        "Relu",
    ]


def test_concat_declines_other_activations_and_axes(build, rewrite):
    arrays = {"w": numbers(1, 4, 4, 1, 1), "v": numbers(3, 4, 4, 1, 1)}
    for tail in (
        "b = Relu(a) d = Sigmoid(c) y = Concat<axis=1>(b, d)",
        "y = Concat<axis=2>(a, c)",
        "b = LeakyRelu<alpha=0.1>(a) d = LeakyRelu<alpha=0.2>(c) y = Concat<axis=1>(b, d)",
    ):
        m = model(build, f"a = Conv(x, w) c = Conv(x, v) {tail}", **arrays)
        assert rewrite(m, MergeParallelBranches()).count == 0


@st.composite
def branches(draw):
    strides = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        group = draw(st.sampled_from([groups, 4]))
        # any padding that gives outputs of one size
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        begin = [draw(st.integers(0, t)) for t in total]
        end = [t - b for t, b in zip(total, begin, strict=True)]
        found.append((kernel, dilations, group, [*begin, *end]))
    return strides, found, draw(st.booleans()), draw(st.booleans())


@HYPOTHESIS
@given(branches())
def test_any_aligned_branches(build, rewrite, drawn):
    strides, found, identity, scaled = drawn
    lines, arrays, last = [], {}, None
    for i, (kernel, dilations, group, pads) in enumerate(found):
        arrays[f"w{i}"] = numbers(i, 4, 4 // group, *kernel)
        lines.append(
            f"b{i} = Conv<group={group}, pads={pads}, dilations={list(dilations)},"
            f" strides={list(strides)}>(x, w{i})"
        )
        value = f"b{i}"
        if scaled:
            arrays[f"k{i}"] = numbers(i + 9, 4, 1, 1)
            lines.append(f"m{i} = Mul(b{i}, k{i})")
            value = f"m{i}"
        if last is not None:
            lines.append(f"s{i} = {'Add' if i % 2 else 'Sub'}({last}, {value})")
            value = f"s{i}"
        last = value
    if identity and strides == (1, 1):
        lines.append(f"t = Add({last}, x)")
        last = "t"
    lines.append(f"y = Relu({last})")
    r = rewrite(model(build, "\n".join(lines), **arrays), ALWAYS)
    assert r.ops.count("Conv") == 1
    m = model(build, "\n".join(lines), **arrays)
    macs = sum(v.const_value.size for v in m.graph.initializers.values() if v.name[0] == "w")
    r = rewrite(m, MergeParallelBranches())
    after = sum(n.inputs[1].const_value.size for n in r.model.graph if n.op_type == "Conv")
    assert after <= macs


@HYPOTHESIS
@given(
    pads=st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=2, max_size=3),
    kernels=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=3, max_size=3),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    mode=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]),
)
def test_any_padding(build, rewrite, pads, kernels, strides, mode):
    """Misaligned outputs must be refused or still be right (sizes that agree after the stride)."""
    sizes = set()
    lines, arrays = [], {}
    for i, p in enumerate(pads):
        k = kernels[i]
        window = f"pads={list(p)}" if mode == "NOTSET" else f'auto_pad="{mode}"'
        sizes.add(
            tuple((e + p[j] + p[j + 2] - k[j]) // strides[j] for j, e in enumerate((8, 9)))
            if mode == "NOTSET"
            else 0
        )
        arrays[f"w{i}"] = numbers(i, 4, 4, *k)
        lines.append(f"b{i} = Conv<{window}, strides={list(strides)}>(x, w{i})")
    if len(sizes) > 1:
        return  # the sum is no valid model
    names = ", ".join(f"b{i}" for i in range(len(pads)))
    lines.append(f"y = Sum({names})")
    r = rewrite(model(build, "\n".join(lines), **arrays), ALWAYS)
    assert r.ops == ["Conv"]
