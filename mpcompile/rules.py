"""The op table: what each op wants, one row an op, torch and ONNX names side by side.

A row speaks about the floating-point tensors of the op only. Integers, booleans, FP64 and complex
tensors are never touched. An op that stands in no row stays in FP32.

Sources: Micikevicius et al., arXiv 1710.03740, section 3.3 (``paper 3.3``); the op lists of
``torch.amp`` (``autocast``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Wish(Enum):
    """The precision an op's result should have."""

    HALF = "half"
    """Wants the 16-bit format: a Tensor Core does it."""
    FREE = "free"
    """Takes either; the planner decides by its neighbours."""
    FULL = "full"
    """Wants FP32."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Attributes:
        name: the row's name, used in reports and policies.
        torch: ATen op names without namespace and overload, separated by blanks.
        onnx: ONNX op types, separated by blanks.
        wish: what its result should be.
        inside: the arithmetic is FP32 whatever the inputs are stored in; reading a 16-bit input
            costs a cast that a fusing backend keeps in registers.
        saves: what autograd keeps for backward: ``"in"``, ``"out"``, both, or nothing.
        why: the reason, as a report prints it.
    """

    name: str
    torch: str
    onnx: str
    wish: Wish
    inside: bool
    saves: str
    why: str
    full_arguments: str = ""

    @property
    def streams(self) -> bool:
        """Whether a fusing backend makes a loop of the op."""
        return self.wish is not Wish.HALF and self.name not in (
            "embedding",
            "interpolation",
            "unknown",
        )


_HALF, _FREE, _FULL = Wish.HALF, Wish.FREE, Wish.FULL

# fmt: off
TABLE: tuple[Rule, ...] = (
    # Tensor Core: 16-bit operands, FP32 accumulation, rounded once on the write (paper 3.3).
    Rule("matmul", "linear matmul mm bmm addmm addbmm baddbmm addmv mv addr einsum dot vdot inner "
         "chain_matmul linalg_multi_dot linalg_vecdot tensordot bilinear",
         "MatMul Gemm Einsum", _HALF, False, "in", "a Tensor Core accumulates it in FP32"),
    Rule("conv", "conv1d conv2d conv3d conv_tbc convolution _convolution conv_transpose1d "
         "conv_transpose2d conv_transpose3d",
         "Conv ConvTranspose", _HALF, False, "in", "a Tensor Core accumulates it in FP32"),
    Rule("attention", "scaled_dot_product_attention _scaled_dot_product_flash_attention "
         "_native_multi_head_attention",
         "Attention", _HALF, False, "in out", "fused attention kernels want 16-bit operands"),
    Rule("rnn", "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
         "LSTM GRU RNN", _HALF, False, "in out", "recurrent matmuls run on Tensor Cores"),

    # FP32 arithmetic, 16-bit in and out: reductions that are bound by bandwidth (paper 3.3).
    Rule("norm layer", "layer_norm native_layer_norm group_norm batch_norm instance_norm rms_norm "
         "_native_batch_norm_legit_functional native_batch_norm local_response_norm",
         "LayerNormalization GroupNormalization BatchNormalization InstanceNormalization "
         "RMSNormalization SimplifiedLayerNormalization",
         _FREE, True, "in", "statistics are summed in FP32, storage may be 16 bits"),
    Rule("softmax", "softmax _softmax _safe_softmax",
         "Softmax", _FREE, True, "out", "exponentials are summed in FP32, results lie in [0, 1]"),
    Rule("mean", "mean adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d "
         "avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d",
         "ReduceMean AveragePool GlobalAveragePool", _FREE, True, "",
         "summed in FP32; a mean is no larger than its inputs"),

    # FP32 arithmetic and FP32 out: the range of the result grows.
    Rule("loss", "cross_entropy_loss nll_loss nll_loss2d nll_loss_nd mse_loss l1_loss "
         "smooth_l1_loss huber_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits "
         "poisson_nll_loss cosine_embedding_loss hinge_embedding_loss margin_ranking_loss "
         "multilabel_margin_loss multi_margin_loss soft_margin_loss "
         "triplet_margin_loss gaussian_nll_loss ctc_loss",
         "SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss", _FULL, True, "in",
         "a loss is computed and kept in FP32"),
    Rule("log_softmax", "log_softmax _log_softmax logsumexp log_sigmoid log_sigmoid_forward",
         "LogSoftmax ReduceLogSumExp", _FULL, True, "out",
         "large negative results lose digits in 16 bits"),
    Rule("range grows", "exp exp2 expm1 log log2 log10 log1p pow reciprocal rsqrt sinh cosh tan "
         "acos asin softplus erfinv square _standard_gamma lgamma digamma",
         "Exp Log Pow Reciprocal Sinh Cosh Tan Acos Asin Softplus", _FULL, True, "in out",
         "its result can leave the range of FP16"),
    Rule("sum", "sum prod cumsum cumprod logcumsumexp nansum trace",
         "ReduceSum ReduceProd CumSum ReduceSumSquare", _FULL, True, "",
         "a sum grows with its length"),
    Rule("vector norm", "norm linalg_vector_norm linalg_matrix_norm linalg_norm frobenius_norm "
         "nuclear_norm cosine_similarity pairwise_distance dist cdist pdist renorm var std "
         "var_mean std_mean _weight_norm normalize",
         "ReduceL1 ReduceL2 LpNormalization", _FULL, True, "in", "it squares its inputs"),
    Rule("interpolation", "upsample_nearest1d upsample_nearest2d upsample_nearest3d "
         "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d "
         "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
         "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d "
         "grid_sampler_3d",
         "Resize GridSample", _FREE, True, "in",
         "weights are computed in FP32, results lie between the inputs"),

    # Either: adds no more rounding than the format it is stored in.
    Rule("pointwise", "add sub rsub mul div neg abs clamp clamp_min clamp_max hardtanh relu6 "
         "maximum minimum addcmul addcdiv lerp sqrt sin cos atan atan2 tanh erf floor ceil round "
         "frac remainder fmod threshold where masked_fill",
         "Add Sub Mul Div Neg Abs Sign Clip Max Min Sqrt Sin Cos Atan Tanh Erf Where",
         _FREE, False, "in", "adds no more rounding than its storage"),
    Rule("activation", "relu leaky_relu rrelu elu celu selu gelu silu mish sigmoid hardsigmoid "
         "hardswish hardshrink softshrink softsign prelu _prelu_kernel glu logit tanhshrink",
         "Relu LeakyRelu Elu Celu Selu Gelu Sigmoid HardSigmoid HardSwish Mish Softsign PRelu",
         _FREE, False, "in", "adds no more rounding than its storage"),
    Rule("dropout", "dropout native_dropout feature_dropout alpha_dropout feature_alpha_dropout",
         "Dropout", _FREE, False, "", "scales by a constant"),
    Rule("embedding", "embedding embedding_bag _embedding_bag",
         "Gather", _FREE, False, "", "copies rows of the table"),

    Rule("constant", "zeros ones full arange linspace empty eye zeros_like ones_like full_like "
         "empty_like new_zeros new_ones new_full new_empty scalar_tensor rand randn bernoulli "
         "normal rand_like randn_like randint one_hot",
         "Constant ConstantOfShape Range RandomNormal RandomUniform Bernoulli EyeLike OneHot",
         _FULL, False, "", "made, not computed from anything"),
    Rule("comparison", "eq ne lt le gt ge isnan isinf isfinite argmax argmin argsort nonzero sign "
         "logical_and logical_or logical_not logical_xor bucketize searchsorted count_nonzero any "
         "all is_nonzero isclose allclose",
         "Equal Less LessOrEqual Greater GreaterOrEqual IsNaN IsInf ArgMax ArgMin NonZero Not And "
         "Or Xor",
         _FREE, False, "", "its result is no floating-point tensor"),

    # Transparent: moves values, never computes.
    Rule("movement", "view _unsafe_view reshape flatten unflatten permute transpose t mT mH "
         "movedim swapaxes squeeze unsqueeze expand expand_as broadcast_to contiguous clone alias "
         "detach detach_ lift_fresh_copy slice select narrow split split_with_sizes chunk "
         "tensor_split unbind hsplit vsplit index_select gather take_along_dim index "
         "cat concat stack hstack vstack pad constant_pad_nd reflection_pad1d reflection_pad2d "
         "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d roll flip repeat "
         "repeat_interleave tile diagonal diag_embed tril triu unfold im2col col2im pixel_shuffle "
         "pixel_unshuffle channel_shuffle max_pool1d max_pool2d max_pool3d "
         "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d "
         "adaptive_max_pool3d max min amax amin sort topk movedim meshgrid select_scatter "
         "slice_scatter ravel squeeze_copy view_as",
         "Reshape Transpose Flatten Squeeze Unsqueeze Expand Identity Slice Split Concat Pad "
         "GatherElements GatherND MaxPool ReduceMax ReduceMin Tile TopK",
         _FREE, False, "", "moves values without computing"),
)
# fmt: on


def _by_name(column: str) -> Mapping[str, Rule]:
    rows: dict[str, Rule] = {}
    for rule in TABLE:
        for name in set(getattr(rule, column).split()):
            if name in rows:
                raise ValueError(f"{name} stands in two rows: {rows[name].name} and {rule.name}")
            rows[name] = rule
    return MappingProxyType(rows)


TORCH_RULES: Mapping[str, Rule] = _by_name("torch")
"""ATen op name, without namespace and overload, to its row."""

ONNX_RULES: Mapping[str, Rule] = _by_name("onnx")
"""ONNX op type to its row."""

UNKNOWN = Rule("unknown", "", "", Wish.FULL, False, "in out", "no row of the op table names it")
"""What an op gets that stands in no row."""
