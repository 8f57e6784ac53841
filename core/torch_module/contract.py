"""Products of matrices, attention, and the losses of training."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from effc.core.ir import attr
from effc.core.torch_module.op import Function, Op


def _matmul(op: Op, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _gemm(op: Op, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if op.get("transA", 0) else a
    b = b.T if op.get("transB", 0) else b
    alpha, beta = op.get("alpha", 1.0), op.get("beta", 1.0)
    y = a @ b
    if alpha != 1:
        y = y * alpha
    return y if c is None else y + (c if beta == 1 else c * beta)


def _einsum(op: Op, *xs: Tensor) -> Tensor:
    y: Tensor = torch.einsum(op.get("equation").replace(" ", ""), *xs)
    return y


def _attention(
    op: Op,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
) -> Any:
    """Scaled dot-product attention, opset 23 and 24: 3-d or 4-d operands, grouped heads, caches."""
    flat = q.ndim == 3
    q_heads, kv_heads = op.get("q_num_heads"), op.get("kv_num_heads")
    if flat:
        q, k, v = (
            x.reshape(x.shape[0], x.shape[1], n, -1).transpose(1, 2)
            for x, n in ((q, q_heads), (k, kv_heads), (v, kv_heads))
        )
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    present_key, present_value = k, v
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scale = op.get("scale") or 1 / math.sqrt(q.shape[-1])
    root = math.sqrt(scale)
    scores = (q * root) @ (k * root).transpose(-1, -2)
    raw = scores
    bias = torch.zeros(q.shape[2], k.shape[2], dtype=q.dtype)
    if op.get("is_causal", 0):
        past = 0 if past_key is None else past_key.shape[2]
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(past)
        bias = bias.masked_fill(~seen, -math.inf)
    if mask is not None:
        if mask.shape[-1] < k.shape[2]:  # shorter masks hide what they don't reach
            hidden: Any = False if mask.dtype == torch.bool else -math.inf
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]), value=hidden)
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -math.inf)
        bias = bias + mask
    cap = op.get("softcap", 0.0)
    if cap:
        scores = cap * torch.tanh(scores / cap)
    scores = scores + bias
    precise = scores
    if op.get("softmax_precision"):
        precise = scores.to(op.dtype(op.get("softmax_precision")))
    weights = torch.softmax(precise, -1).to(q.dtype)
    weights = torch.where(torch.isnan(weights), torch.zeros_like(weights), weights)
    y = weights @ v
    if flat:
        y = y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)
    shown = weights if op.get("qk_matmul_output_mode", 0) == 3 else raw
    return (y, present_key, present_value, shown)[: len(op.wanted)]


def attention_refusal(node: ir.Node) -> str:
    """Why an Attention can't be computed here; empty where it can."""
    mode = attr(node, "qk_matmul_output_mode", 0)
    if len(node.outputs) > 3 and node.outputs[3].name and mode in (1, 2):
        return f"qk_matmul_output_mode={mode} has no torch function here"
    if any(attr(node, name, -1) != -1 for name in ("left_window_size", "right_window_size")):
        return "a local window has no torch function here"
    if len(node.inputs) > 6 and node.inputs[6] is not None:
        return "nonpad_kv_seqlen has no torch function here"
    return ""


def _rotary(op: Op, x: Tensor, cos: Tensor, sin: Tensor, at: Tensor | None = None) -> Tensor:
    flat = x.ndim == 3
    if flat:
        x = x.reshape(x.shape[0], x.shape[1], op.get("num_heads"), -1)
    else:
        x = x.transpose(1, 2)
    size = op.get("rotary_embedding_dim", 0) or x.shape[-1]
    part, rest = x[..., :size], x[..., size:]
    if at is not None:
        cos, sin = cos[at.long()], sin[at.long()]
    cos, sin = cos[..., : size // 2].unsqueeze(2), sin[..., : size // 2].unsqueeze(2)
    if op.get("interleaved", 0):
        a, b = part[..., 0::2], part[..., 1::2]
        turned = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = part.chunk(2, -1)
        turned = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    y = torch.cat([turned, rest], -1)
    return y.reshape(y.shape[0], y.shape[1], -1) if flat else y.transpose(1, 2)


def _nll(op: Op, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Negative log likelihood of class indices along axis 1."""
    ignored = op.get("ignore_index")
    target = target.long()
    kept = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
    safe = torch.where(kept, target, torch.zeros_like(target))
    loss = -torch.gather(x, 1, safe.unsqueeze(1)).squeeze(1)
    scale = kept.to(x.dtype) if weight is None else weight[safe] * kept
    loss = loss * scale
    kind = op.get("reduction", "mean")
    if kind == "none":
        return loss
    return loss.sum() if kind == "sum" else loss.sum() / scale.sum()


def _cross_entropy(op: Op, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Any:
    logs = F.log_softmax(x, 1)
    return (_nll(op, logs, target, weight), logs)[: len(op.wanted)]


TABLE: dict[str, Function] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "NegativeLogLikelihoodLoss": _nll,
    "SoftmaxCrossEntropyLoss": _cross_entropy,
}
