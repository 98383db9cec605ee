"""The op table: the precision in which each op computes and stores, with torch and ONNX names.

A row is only about the floating-point tensors of the op. Integers, booleans, FP64 and complex
tensors are never changed: indices and masks are never cast. An op that is in no row stays in FP32.
``docs/op-classes.md`` says the same in words.

Sources: Micikevicius et al., arXiv 1710.03740, section 3.3 (``paper 3.3``); the op lists of
``torch.amp``; torch's registry, autograd and inductor, against which the tests check every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from mpcompile.plan.rule import PrecisionClass, Rule, Sensitivity

_Row: TypeAlias = tuple[str, bool, str, str] | tuple[str, bool, str, str, Sensitivity]
"""Saves, streams, torch names, ONNX names, and the sensitivity if it is not that of the family."""


def _rows(
    name: str,
    precision_class: PrecisionClass,
    why: str,
    *rows: _Row,
    full: str = "",
    sensitivity: Sensitivity = Sensitivity.HARMLESS,
) -> tuple[Rule, ...]:
    """Return the rows of a family."""
    made = []
    for saves, streams, torch, onnx, *own in rows:
        sensitive = own[0] if own else sensitivity
        rule = Rule(name, torch, onnx, precision_class, saves, streams, why, full, sensitive)
        made.append(rule)
    return tuple(made)


_TENSOR_CORE, _REDUCTION, _WIDE, _EITHER, _TRANSPARENT, _UNTOUCHABLE = PrecisionClass
(_HARMLESS, _STEEP, _PERIODIC, _ADDING, _CANCELLING, _COMPARISON, _DISCONTINUOUS, _UNKNOWN,
 _ILL_CONDITIONED) = Sensitivity  # fmt: skip

# fmt: off
TABLE: tuple[Rule, ...] = (
    # Tensor Core: 16-bit operands, FP32 accumulation, rounded once on the write (paper 3.3).
    *_rows("matmul", _TENSOR_CORE, "a Tensor Core accumulates it in FP32",
        ("in", False, "linear matmul mm bmm addmm addbmm baddbmm addmv mv addr einsum inner "
         "chain_matmul linalg_matmul linalg_multi_dot linalg_vecdot tensordot bilinear _trilinear "
         "_addmm_activation _grouped_mm", "MatMul Gemm Einsum")),
    *_rows("conv", _TENSOR_CORE, "a Tensor Core accumulates it in FP32",
        ("in", False, "conv1d conv2d conv3d conv_tbc convolution _convolution _convolution_mode "
         "conv_transpose1d conv_transpose2d conv_transpose3d thnn_conv2d _conv_depthwise2d "
         "conv_depthwise3d cudnn_convolution cudnn_convolution_transpose cudnn_convolution_relu "
         "cudnn_convolution_add_relu", "Conv ConvTranspose")),
    *_rows("attention", _TENSOR_CORE, "fused attention kernels want 16-bit operands",
        ("in out", False, "scaled_dot_product_attention _scaled_dot_product_flash_attention "
         "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
         "_scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math "
         "_flash_attention_forward _efficient_attention_forward _cudnn_attention_forward "
         "_native_multi_head_attention", "Attention")),
    *_rows("rnn", _TENSOR_CORE, "recurrent matmuls run on Tensor Cores",
        ("in out", False, "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell "
         "rnn_relu_cell _thnn_fused_lstm_cell _thnn_fused_gru_cell _cudnn_rnn", "LSTM GRU RNN")),

    # FP32 arithmetic, 16 bits in and out: bound by bandwidth (paper 3.3).
    *_rows("norm layer", _REDUCTION, "statistics are summed in FP32, storage may be 16 bits",
        ("in", True, "rms_norm _fused_rms_norm",
         "RMSNormalization SimplifiedLayerNormalization LRN"),
        ("in", True, "layer_norm native_layer_norm group_norm native_group_norm batch_norm "
         "instance_norm native_batch_norm _native_batch_norm_legit "
         "_native_batch_norm_legit_functional _native_batch_norm_legit_no_training "
         "_batch_norm_with_update_functional _batch_norm_no_update _batch_norm_impl_index",
         "LayerNormalization GroupNormalization BatchNormalization InstanceNormalization "
         "MeanVarianceNormalization", _CANCELLING),
        ("in", False, "cudnn_batch_norm batch_norm_elemt", "", _CANCELLING),
        full="weight bias running_mean running_var mean invstd"),
    *_rows("softmax", _REDUCTION, "exponentials are summed in FP32, results are in [0, 1]",
        ("out", True, "softmax _softmax _safe_softmax special_softmax", "Softmax"),
        ("out", False, "_masked_softmax", "")),
    *_rows("log_softmax", _REDUCTION, "summed in FP32, results have the range of the inputs",
        ("out", True, "log_softmax _log_softmax special_log_softmax", "LogSoftmax")),
    *_rows("mean", _REDUCTION, "summed in FP32; a mean is no larger than its inputs",
        ("", True, "mean", "ReduceMean Mean"),
        ("in", True, "nanmean", "")),
    *_rows("grid sampler", _REDUCTION, "weights are FP32, results are between the inputs",
        ("in", False, "grid_sampler grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback",
         "GridSample", _DISCONTINUOUS),
        full="grid"),

    # FP32 in and out: the range of the result grows, or the kernel knows no 16 bits.
    *_rows("loss", _WIDE, "a loss is computed and kept in FP32",
        ("in", True, "cross_entropy_loss nll_loss nll_loss2d nll_loss_nd nll_loss_forward "
         "nll_loss2d_forward", "SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss", _HARMLESS),
        ("in", True, "mse_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy "
         "binary_cross_entropy_with_logits poisson_nll_loss cosine_embedding_loss "
         "multilabel_margin_loss multilabel_margin_loss_forward multi_margin_loss "
         "soft_margin_loss", ""),
        ("", True, "l1_loss hinge_embedding_loss margin_ranking_loss triplet_margin_loss", ""),
        ("in out", False, "ctc_loss _ctc_loss", "", _HARMLESS),
        sensitivity=_STEEP),
    *_rows("log_sigmoid", _WIDE, "a log-likelihood: near 1, 16 bits lose the difference from 1",
        ("in", True, "log_sigmoid log_sigmoid_forward", "", _STEEP)),
    *_rows("range grows", _WIDE, "its result can leave the range of FP16, or it is steep",
        ("out", True, "reciprocal rsqrt", "Reciprocal"),
        ("out", True, "exp exp2 special_exp2 expm1 special_expm1", "Exp", _STEEP),
        ("out", True, "tan", "Tan", _PERIODIC),
        ("in", True, "square softplus logaddexp logaddexp2", "Softplus"),
        ("in", True, "log log2 log10 log1p special_log1p float_power sinh cosh acos arccos asin "
         "arcsin acosh arccosh atanh arctanh erfinv special_erfinv xlogy special_xlogy "
         "special_xlog1py special_entr", "Log Sinh Cosh Acos Acosh Asin Atanh", _STEEP),
        ("in out", True, "pow ldexp", "Pow"),
        ("", True, "nextafter", "", _DISCONTINUOUS)),
    *_rows("special function", _WIDE, "a series computed in FP32",
        ("in", True, "lgamma special_gammaln mvlgamma special_multigammaln", "", _STEEP),
        ("in", True, "i0 special_i0 special_bessel_j0 special_bessel_y0 special_modified_bessel_i0",
         "", _PERIODIC),
        ("in", False, "special_modified_bessel_k0", ""),
        ("in", False, "digamma special_digamma special_psi polygamma special_polygamma igamma "
         "igammac special_gammainc special_gammaincc special_zeta", "", _STEEP),
        ("in out", False, "special_i0e special_i1e special_modified_bessel_k1", ""),
        ("in out", True, "special_erfcx special_log_ndtr", "", _STEEP),
        ("in out", True, "special_i1 special_bessel_j1 special_bessel_y1 "
         "special_modified_bessel_i1",
         "", _PERIODIC),
        ("", False, "special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1", ""),
        ("", False, "special_airy_ai special_spherical_bessel_j0 special_chebyshev_polynomial_t "
         "special_chebyshev_polynomial_u special_chebyshev_polynomial_v "
         "special_chebyshev_polynomial_w special_shifted_chebyshev_polynomial_t "
         "special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v "
         "special_shifted_chebyshev_polynomial_w special_hermite_polynomial_h "
         "special_hermite_polynomial_he special_laguerre_polynomial_l "
         "special_legendre_polynomial_p", "", _PERIODIC),
        ("", True, "special_ndtr", ""),
        ("out", False, "special_ndtri", "", _STEEP)),
    *_rows("sum", _WIDE, "a sum or product grows with its length",
        ("", True, "sum sum_to_size trace trapezoid trapz", "ReduceSum"),
        ("in", True, "nansum dot vdot", "ReduceSumSquare"),
        ("in out", True, "logsumexp special_logsumexp", "ReduceLogSum ReduceLogSumExp"),
        ("in out", True, "prod", "ReduceProd", _STEEP),
        ("", False, "cumsum cumulative_trapezoid", "CumSum"),
        ("", False, "histc histogram histogramdd _histogramdd_bin_edges _histogramdd_from_bin_cts "
         "_histogramdd_from_bin_tensors", "", _DISCONTINUOUS),
        ("in out", False, "cumprod", "CumProd", _STEEP),
        ("in out", False, "logcumsumexp _logcumsumexp segment_reduce", ""),
        ("in", False, "vander linalg_vander", "")),
    *_rows("scatter sum", _WIDE, "adding up in 16 bits would round every addend",
        ("", False, "scatter_add _unsafe_masked_index_put_accumulate", ""),
        ("in out", False, "scatter_reduce index_reduce", ""),
        ("in", False, "index_add", "")),
    *_rows("vector norm", _WIDE, "it squares its inputs",
        ("in out", True, "norm norm_except_dim linalg_vector_norm linalg_norm frobenius_norm",
         "ReduceL1 ReduceL2 LpNormalization LpPool GlobalLpPool"),
        ("in out", True, "dist", "", _CANCELLING),
        ("in out", False, "linalg_matrix_norm", ""),
        ("in out", False, "cdist _cdist_forward _euclidean_dist pdist _pdist_forward",
         "", _CANCELLING),
        ("", False, "linalg__powsum nuclear_norm embedding_renorm", ""),
        ("in", True, "cosine_similarity renorm _weight_norm _weight_norm_interface", ""),
        ("out", True, "pairwise_distance", "", _CANCELLING)),
    *_rows("variance", _WIDE, "it squares its inputs",
        ("in", True, "var var_mean cov", "", _CANCELLING),
        ("in out", True, "std std_mean", "", _CANCELLING),
        ("", True, "corrcoef", "", _CANCELLING),
        ("in", False, "batch_norm_stats", "", _CANCELLING),
        ("", False, "batch_norm_gather_stats batch_norm_gather_stats_with_counts "
         "batch_norm_update_stats", "", _CANCELLING)),
    *_rows("quantile", _WIDE, "its kernel takes no 16-bit numbers",
        ("in", False, "quantile nanquantile", "")),
    *_rows("linear algebra", _WIDE, "it loses digits, and its kernels take no 16-bit numbers",
        ("out", False, "cholesky inverse linalg_cholesky linalg_cholesky_ex linalg_eig "
         "linalg_eigh _linalg_eigh linalg_eigvals _linalg_eigvals linalg_eigvalsh linalg_inv "
         "linalg_inv_ex linalg_lu linalg_lu_factor linalg_lu_factor_ex _lu_with_info linalg_qr qr "
         "linalg_svd _linalg_svd linalg_svdvals svd linalg_tensorinv", ""),
        ("in out", False, "cholesky_inverse cholesky_solve _cholesky_solve_helper det slogdet "
         "linalg_det _linalg_det linalg_householder_product linalg_lstsq linalg_lu_solve "
         "_compute_linear_combination linalg_matrix_power matrix_power linalg_pinv pinverse "
         "linalg_polar linalg_slogdet _linalg_slogdet linalg_solve linalg_solve_ex "
         "_linalg_solve_ex linalg_solve_triangular triangular_solve linalg_tensorsolve lu_solve "
         "orgqr ormqr", ""),
        ("in", False, "logdet linalg_matrix_exp linalg_matrix_sqrth matrix_exp", ""),
        ("", False, "geqrf linalg_cond linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve "
         "linalg_matrix_rank lu_unpack", "Det"),
        sensitivity=_ILL_CONDITIONED),
    *_rows("complex", _WIDE, "16-bit complex numbers have no kernels",
        ("", False, "complex view_as_complex fft_fft fft_fft2 fft_fftn fft_hfft fft_hfft2 "
         "fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft "
         "fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn _fft_c2c _fft_c2r _fft_r2c", ""),
        ("", False, "polar", "", _PERIODIC),
        ("in", True, "angle", "", _DISCONTINUOUS),
        ("in", False, "stft istft", "DFT STFT")),
    *_rows("coordinates", _WIDE, "11 bits are too few for a position in an image",
        ("", True, "affine_grid_generator", "AffineGrid RoiAlign MaxRoiPool", _DISCONTINUOUS)),
    *_rows("cast", _WIDE, "the program itself asks for this dtype",
        ("", True, "_cast_Half _cast_Float _cast_Double chalf _autocast_to_full_precision "
         "_autocast_to_reduced_precision", ""),
        ("", True, "to type_as _to_copy", "Cast CastLike", _DISCONTINUOUS)),

    # Either: adds no more rounding than the format it is stored in.
    *_rows("pointwise", _EITHER, "adds no more rounding than its storage",
        ("", True, "neg negative where masked_fill deg2rad rad2deg", "Neg Where"),
        ("", True, "add", "Add Sum", _ADDING),
        ("", True, "sub subtract rsub diff", "Sub", _CANCELLING),
        ("", True, "floor_divide floor ceil round special_round trunc fix frac frexp sign "
         "heaviside", "Floor Ceil Round Sign", _DISCONTINUOUS),
        ("in", True, "mul multiply div divide true_divide abs absolute clamp clip clamp_min "
         "clamp_max maximum minimum fmax fmin lerp atan arctan atan2 arctan2 asinh arcsinh erf "
         "special_erf erfc special_erfc threshold nan_to_num outer ger kron",
         "Mul Div Abs Clip Max Min Atan Asinh Erf RotaryEmbedding"),
        ("in", True, "addcmul addcdiv", "", _ADDING),
        ("in", True, "sin cos sinc special_sinc", "Sin Cos", _PERIODIC),
        ("in", True, "remainder fmod", "Mod", _DISCONTINUOUS),
        ("in", True, "cross linalg_cross gradient", "", _CANCELLING),
        ("out", True, "sqrt tanh", "Sqrt Tanh"),
        ("in out", True, "copysign hypot", ""),
        ("in out", True, "sgn", "", _DISCONTINUOUS)),
    *_rows("activation", _EITHER, "adds no more rounding than its storage",
        ("out", True, "relu sigmoid special_expit", "Relu Sigmoid"),
        ("in", True, "relu6 hardtanh leaky_relu elu celu selu gelu silu mish hardsigmoid hardswish "
         "hardshrink softshrink prelu _prelu_kernel glu",
         "LeakyRelu Elu Celu Selu Gelu HardSigmoid HardSwish Mish Shrink Softsign Swish "
         "ThresholdedRelu PRelu"),
        ("in", True, "logit special_logit", "", _STEEP),
        ("in", False, "rrelu rrelu_with_noise_functional", "")),
    *_rows("average pool", _EITHER, "its kernels sum in FP32; a mean is no larger than its inputs",
        ("in", False, "avg_pool1d avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool3d",
         "AveragePool GlobalAveragePool"),
        ("in", True, "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d",
         "")),
    *_rows("interpolation", _EITHER, "its kernels compute in FP32, results are between the inputs",
        ("", False, "upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
         "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa",
         "Resize Upsample")),
    *_rows("dropout", _EITHER, "scales by a constant",
        ("", True, "dropout native_dropout _fused_dropout feature_dropout alpha_dropout "
         "feature_alpha_dropout _masked_scale", "Dropout")),
    *_rows("embedding", _EITHER, "copies rows of the table",
        ("", False, "embedding _embedding_bag_forward_only", "Gather"),
        ("in", False, "embedding_bag _embedding_bag", "")),

    # Transparent: moves or compares values, never computes.
    *_rows("movement", _TRANSPARENT, "moves values without computing",
        ("", True, "view _unsafe_view reshape _reshape_alias reshape_as view_as flatten unflatten "
         "ravel permute transpose swapaxes swapdims movedim moveaxis t mT mH matrix_H numpy_T "
         "adjoint squeeze unsqueeze expand expand_as broadcast_to broadcast_tensors atleast_1d "
         "atleast_2d atleast_3d contiguous clone alias detach copy lift lift_fresh "
         "lift_fresh_copy pin_memory positive conj _conj resolve_conj conj_physical "
         "_conj_physical resolve_neg _neg_view real imag view_as_real slice select narrow split "
         "split_with_sizes chunk unsafe_chunk unsafe_split unsafe_split_with_sizes tensor_split "
         "hsplit vsplit dsplit unbind cat concat concatenate stack _stack hstack vstack dstack "
         "row_stack column_stack block_diag _chunk_cat constant_pad_nd flip fliplr flipud rot90 "
         "repeat tile diagonal linalg_diagonal diag diagflat diag_embed tril triu unfold meshgrid "
         "cartesian_prod pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle "
         "select_scatter slice_scatter diagonal_scatter as_strided_scatter slice_inverse "
         "flatten_dense_tensors unflatten_dense_tensors pad_sequence",
         "Reshape Transpose Flatten Squeeze Unsqueeze Expand Identity Slice Split Concat Pad Tile "
         "Trilu DepthToSpace SpaceToDepth CenterCropPad"),
        ("in", True, "pad _pad_enum", ""),
        ("", False, "combinations", "")),
    *_rows("indexing", _TRANSPARENT, "moves values, found by index, without computing",
        ("", False, "index index_select index_put index_fill scatter masked_scatter _unsafe_index "
         "_unsafe_index_put _index_put_impl _unsafe_masked_index roll fft_fftshift fft_ifftshift "
         "repeat_interleave im2col col2im as_strided _pad_circular upsample_nearest1d "
         "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
         "_upsample_nearest_exact2d _upsample_nearest_exact3d _pack_padded_sequence "
         "_pad_packed_sequence", ""),
        ("in", False, "gather take take_along_dim put index_copy masked_select reflection_pad1d "
         "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
         "GatherElements GatherND Scatter ScatterElements ScatterND TensorScatter Compress "
         "ReverseSequence")),
    *_rows("choice", _TRANSPARENT, "chooses among its inputs",
        ("in out", True, "max min amax amin aminmax _aminmax", "ReduceMax ReduceMin"),
        ("", False, "sort msort topk kthvalue mode unique_consecutive unique_dim "
         "unique_dim_consecutive _unique _unique2", "TopK Unique Hardmax", _DISCONTINUOUS),
        ("in out", False, "median nanmedian", ""),
        ("in", False, "cummax cummin", "")),
    *_rows("max pool", _TRANSPARENT, "chooses among its inputs",
        ("in", True, "max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices "
         "adaptive_max_pool1d adaptive_max_pool2d", "MaxPool GlobalMaxPool"),
        ("in", False, "max_pool3d max_pool3d_with_indices adaptive_max_pool3d "
         "fractional_max_pool2d fractional_max_pool3d", ""),
        ("", False, "max_unpool2d max_unpool3d", "MaxUnpool")),
    *_rows("comparison", _TRANSPARENT, "its result is not a floating-point tensor",
        ("", True, "isnan isinf isfinite isneginf isposinf", "IsNaN IsInf"),
        ("", True, "eq ne not_equal lt less le less_equal gt greater ge greater_equal equal "
         "allclose isclose isreal signbit is_nonzero any all _is_all_true _is_any_true logical_and "
         "logical_or logical_not logical_xor count_nonzero",
         "Equal Less LessOrEqual Greater GreaterOrEqual Not And Or Xor", _COMPARISON),
        ("", True, "argmax argmin bucketize searchsorted", "ArgMax ArgMin", _DISCONTINUOUS),
        ("", False, "_shape_as_tensor", "Shape Size"),
        ("", False, "argsort isin hash_tensor _cast_Byte _cast_Char _cast_Int _cast_Long "
         "_cast_Short", "", _DISCONTINUOUS),
        ("", False, "nonzero nonzero_numpy nonzero_static argwhere", "NonZero", _COMPARISON)),

    # Untouchable: made, drawn or integer; the plan has nothing to say.
    *_rows("constant", _UNTOUCHABLE, "made, not computed from anything",
        ("", True, "zeros ones full arange range linspace logspace empty empty_strided "
         "empty_permuted eye scalar_tensor zeros_like ones_like full_like empty_like new_zeros "
         "new_ones new_full new_empty new_empty_strided fill zero bartlett_window blackman_window "
         "hamming_window hann_window kaiser_window fft_fftfreq fft_rfftfreq",
         "Constant ConstantOfShape Range EyeLike BlackmanWindow HammingWindow HannWindow "
         "MelWeightMatrix"),
        ("", False, "from_file", "")),
    *_rows("random", _UNTOUCHABLE, "the stream of random numbers stays that of the FP32 program",
        ("", True, "rand rand_like randn randn_like randint randint_like randperm normal "
         "normal_functional uniform random exponential cauchy geometric log_normal _standard_gamma "
         "_sample_dirichlet _philox_normal _philox_randint _philox_uniform _philox_key_fold_in "
         "_philox_key_split _sobol_engine_draw",
         "RandomNormal RandomNormalLike RandomUniform RandomUniformLike"),
        ("", True, "bernoulli poisson binomial multinomial",
         "Bernoulli Multinomial", _DISCONTINUOUS)),
    *_rows("integer", _UNTOUCHABLE, "integers stay as they are",
        ("", False, "bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift "
         "bitwise_right_shift __and__ __or__ __xor__ __lshift__ __rshift__ gcd lcm bincount "
         "one_hot tril_indices triu_indices", "OneHot")),
)
# fmt: on


def rows_of(precision_class: PrecisionClass) -> frozenset[str]:
    """Return the names of the rows of a class."""
    return frozenset(rule.name for rule in TABLE if rule.precision_class is precision_class)


def _by_name(column: str) -> Mapping[str, Rule]:
    rows: dict[str, Rule] = {}
    for rule in TABLE:
        for name in getattr(rule, column).split():
            if name in rows:
                raise ValueError(f"{name} is in two rows: {rows[name].name} and {rule.name}")
            rows[name] = rule
    return MappingProxyType(rows)


TORCH_RULES: Mapping[str, Rule] = _by_name("torch")
"""ATen op name, without namespace and overload, to its row."""

ONNX_RULES: Mapping[str, Rule] = _by_name("onnx")
"""ONNX op type to its row."""

UNKNOWN = Rule(
    "unknown", "", "", _UNTOUCHABLE, "in out", False, "no row of the op table has it", "", _UNKNOWN
)
"""The rule of an op that is in no row: ``rule is UNKNOWN``."""
