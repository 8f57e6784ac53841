"""The passes: one a file, listed here by id; users add theirs by entry point or by path."""

from __future__ import annotations

from effc.core.errors import ConfigError
from effc.core.passinfra import Pass, Pipeline
from effc.core.registry import Registry, load

PASSES = Registry(
    "pass",
    "effc.passes",
    {
        "repeat": "effc.core.passinfra:Repeat",
        # canonicalize
        "convert-opset": "effc.passes.canonicalize.convert_opset:ConvertOpset",
        "lift-constants": "effc.passes.canonicalize.lift_constants:LiftConstants",
        "lower-sequences": "effc.passes.canonicalize.lower_sequences:LowerSequences",
        "fold-constants": "effc.passes.canonicalize.fold_constants:FoldConstants",
        "fold-shapes": "effc.passes.canonicalize.fold_shapes:FoldShapes",
        "narrow-indices": "effc.passes.canonicalize.narrow_indices:NarrowIndices",
        "remove-identity": "effc.passes.canonicalize.remove_identity:RemoveIdentity",
        "simplify-layout-ops": "effc.passes.canonicalize.simplify_layout_ops:SimplifyLayoutOps",
        "eliminate-common-subexpressions": (
            "effc.passes.canonicalize.eliminate_common_subexpressions:EliminateCommonSubexpressions"
        ),
        "eliminate-dead-code": "effc.passes.canonicalize.eliminate_dead_code:EliminateDeadCode",
        # fuse
        "fold-batch-norm": "effc.passes.fuse.fold_batch_norm:FoldBatchNorm",
        "fold-bias": "effc.passes.fuse.fold_bias:FoldBias",
        "fold-pad": "effc.passes.fuse.fold_pad:FoldPad",
        "merge-linear": "effc.passes.fuse.merge_linear:MergeLinear",
        "merge-parallel-branches": (
            "effc.passes.fuse.merge_parallel_branches:MergeParallelBranches"
        ),
        "recognize-activations": "effc.passes.fuse.recognize_activations:RecognizeActivations",
        "recognize-normalization": "effc.passes.fuse.recognize_normalization:RecognizeNormalization",
        "recognize-attention": "effc.passes.fuse.recognize_attention:RecognizeAttention",
        "decompose-attention": "effc.passes.fuse.decompose_attention:DecomposeAttention",
        # quantize
        "quantize": "effc.passes.quantize.quantize:Quantize",
        "lint-quantization": "effc.passes.quantize.lint_quantization:LintQuantization",
        "equalize-layers": "effc.passes.quantize.equalize_layers:EqualizeLayers",
        "migrate-difficulty": "effc.passes.quantize.migrate_difficulty:MigrateDifficulty",
        "correct-bias": "effc.passes.quantize.correct_bias:CorrectBias",
        "adaround": "effc.passes.quantize.adaround:Adaround",
        "train-quantized": "effc.passes.quantize.train_quantized:TrainQuantized",
        "narrow-weights": "effc.passes.quantize.narrow_weights:NarrowWeights",
        "halve-scales": "effc.passes.quantize.halve_scales:HalveScales",
        "restore-float": "effc.passes.quantize.restore_float:RestoreFloat",
        "lower-qoperators": "effc.passes.quantize.lower_qoperators:LowerQoperators",
        # compress
        "convert-float16": "effc.passes.compress.convert_float16:ConvertFloat16",
        "compute-bfloat16": "effc.passes.compress.compute_bfloat16:ComputeBfloat16",
        "widen-reductions": "effc.passes.compress.widen_reductions:WidenReductions",
        "prune-weights": "effc.passes.compress.prune_weights:PruneWeights",
        "quantize-weights": "effc.passes.compress.quantize_weights:QuantizeWeights",
        "share-weights": "effc.passes.compress.share_weights:ShareWeights",
        "palettize": "effc.passes.compress.palettize:Palettize",
        "binarize": "effc.passes.compress.binarize:Binarize",
        "integerize": "effc.passes.quantize.integerize:Integerize",
    },
)

CANONICALIZE = (
    "lift-constants,convert-opset,lower-qoperators,lower-sequences,fold-shapes,remove-identity,simplify-layout-ops,"
    "fold-constants,eliminate-common-subexpressions,eliminate-dead-code,repeat"
)
# what is recognized first can't be torn apart by folding its constants into a neighbour; attention
# comes last, so that its scale has already gone into the query's projection where that is possible
FUSE = (
    "recognize-activations,recognize-normalization,fold-pad,fold-batch-norm,fold-bias,merge-linear,"
    "merge-parallel-branches,simplify-layout-ops,repeat,recognize-attention,simplify-layout-ops,"
    "eliminate-common-subexpressions,eliminate-dead-code,repeat"
)
# what a quantizing build may run between the two; each can be left out
RECOVERY = ("equalize-layers", "migrate-difficulty", "correct-bias", "adaround", "train-quantized")


def lookup(name: str) -> type[Pass]:
    """The class of a pass: by id, or `file.py:Class` / `module:Class`."""
    cls = load(name, "pass") if ":" in name else PASSES.get(name)
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise ConfigError(f"pass {name!r} is not a subclass of effc.core.passinfra.Pass")
    return cls


def parse(text: str) -> Pipeline:
    """Pipeline text -> pipeline, with built-in and plugged-in passes."""
    return Pipeline.parse(text, lookup)
