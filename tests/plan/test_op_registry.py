"""The op table against torch's registry: what a forward graph can hold stands in a row."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import torch

from mpcompile.plan.op_table import TORCH_RULES
from mpcompile.torch_private.versions import release

# The ops of the table that not every version of torch has: the first of the versions tried that has
# it, and the first that no longer has it.
SINCE: dict[str, tuple[int, int]] = {
    "_upsample_lanczos2d_aa": (2, 13),
    "_philox_normal": (2, 13),
    "_philox_uniform": (2, 13),
    "_philox_key_fold_in": (2, 13),
    "_philox_key_split": (2, 13),
    "linalg_matrix_sqrth": (2, 14),
    "linalg_polar": (2, 14),
    "_philox_randint": (2, 15),
}
GONE: dict[str, tuple[int, int]] = {"cholesky": (2, 14), "qr": (2, 14)}
HERE = release(torch.__version__)

# Ops that no functional forward graph of dense FP32 tensors holds, by what their schema says.
Schema = torch.FunctionSchema
BY_SCHEMA: dict[str, Callable[[Schema], bool]] = {
    "writes to an argument": lambda schema: any(
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in schema.arguments
    ),
    "returns no tensor": lambda schema: (
        not any("Tensor" in str(result.type) for result in schema.returns)
    ),
}

# The same, by name.
BY_NAME: dict[str, str] = {
    "is a derivative": r"backward|_grad$|_jvp$|gradients$",
    "belongs to an optimizer or a loss scale": r"^_(foreach|fused_(adam|adagrad|sgd)|amp)",
    "is quantized": r"quantiz|_quant_|int4|int8|_int_mm|fbgemm|q_per_channel|choose_qparams"
    r"|int_repr|rowwise_prune|_weight_to_fp16|wrapped_linear|mixed_dtypes|fused_moving_avg"
    r"|_affine_quantized",
    "is for FP8": r"^_scaled_(grouped_|add)?mm",
    "is sparse": r"sparse|coalesce|_(csr|csc|bsr|bsc|coo)|(crow|ccol|row|col)_indices"
    r"|^_?(indices|values)(_copy)?$|to_dense|cslt|spdiags|spsolve|^(hspmm|smm|sspaddmm)$"
    r"|^native_norm$",
    "is of another layout": r"nested|jagged|to_padded_tensor|mkldnn",
    "is a backend's own": r"^_?(cudnn|miopen|mps|nnpack|xnnpack)|_mps$|_for_mps$|overrideable"
    r"|slow_conv|^_lstm_mps|^_mps",
    "is a view made a copy after capture": r"_copy$",
    "is about sizes, checks or order": r"sym_|_assert_|^_make_dep_token$",
    "is a test of torch's own": r"^_test|^_foobar$|^_dim_arange$",
    "is for named tensors": r"^(align_(as|tensors|to)|refine_names|rename)$",
}

# What remains without a row.
LEFT_OUT: dict[str, str] = {
    "_add_batch_dim": "inside vmap",
    "_remove_batch_dim": "inside vmap",
    "_fw_primal": "forward-mode derivatives",
    "_make_dual": "forward-mode derivatives",
    "_unpack_dual": "forward-mode derivatives",
    "_new_zeros_with_same_feature_meta": "forward-mode derivatives",
    "_efficientzerotensor": "autograd's zero gradient",
    "_copy_from": "a lazy backend's copy",
    "_copy_from_and_resize": "a lazy backend's copy",
    "_to_cpu": "a lazy backend's copy",
    "_pin_memory": "kernel of pin_memory",
    "_lazy_clone": "shares storage",
    "_reshape_from_tensor": "shares storage",
    "_resize_output": "changes storage",
    "resize": "changes storage",
    "resize_as": "changes storage",
    "set": "changes storage",
    "data": "shares storage",
    "_add_relu": "inference only: it has no derivative",
    "_transform_bias_rescale_qkv": "inference only: it has no derivative",
    "_transformer_encoder_layer_fwd": "inference only: it has no derivative",
    "_triton_multi_head_attention": "inference only: it has no derivative",
    "_triton_scaled_dot_attention": "inference only: it has no derivative",
}


@cache
def registry() -> dict[str, list[Schema]]:
    """Return the schemas of all overloads by the name of the op."""
    found: dict[str, list[Schema]] = {}
    for full in torch._C._dispatch_get_all_op_names():
        space, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        if space == "aten":
            schema = torch._C._get_schema(full.split(".")[0], overload)
            found.setdefault(name, []).append(schema)
    return found


def excluded_by(name: str, schema: Schema) -> list[str]:
    """Return the reasons why an overload cannot stand in a forward graph."""
    reasons = [reason for reason, holds in BY_SCHEMA.items() if holds(schema)]
    return reasons + [reason for reason, pattern in BY_NAME.items() if re.search(pattern, name)]


def test_every_op_of_a_forward_graph_stands_in_a_row() -> None:
    possible = {
        name
        for name, schemas in registry().items()
        if not all(excluded_by(name, schema) for schema in schemas)
    }
    assert len(possible) > 700
    assert possible - set(TORCH_RULES) - set(LEFT_OUT) == set()


def test_an_exclusion_that_excludes_nothing_is_removed() -> None:
    needed = {
        reason
        for name, schemas in registry().items()
        for schema in schemas
        if name not in TORCH_RULES
        for reason in excluded_by(name, schema)
    }
    named = {"is for named tensors"}  # gone in torch 2.13
    assert needed | named == set(BY_SCHEMA) | set(BY_NAME)
    assert not set(LEFT_OUT) & set(TORCH_RULES)
    assert set(LEFT_OUT) <= set(registry())


def test_every_torch_name_is_an_aten_op_of_the_versions_that_have_it() -> None:
    missing = {name for name, first in SINCE.items() if first > HERE}
    missing |= {name for name, first in GONE.items() if first <= HERE}
    assert set(TORCH_RULES) - set(registry()) == missing


def test_every_argument_that_stays_full_is_one_of_its_ops_arguments() -> None:
    full: dict[str, set[str]] = {}
    named: dict[str, set[str]] = {}
    for name, rule in TORCH_RULES.items():
        full.setdefault(rule.name, set()).update(rule.full_arguments.split())
        for schema in registry().get(name, ()):
            named.setdefault(rule.name, set()).update(a.name for a in schema.arguments)
    assert [family for family, names in full.items() if names - named[family]] == []


def test_norms_keep_every_tensor_but_their_input_in_full() -> None:
    for rule in set(TORCH_RULES.values()):
        if rule.name != "norm layer":
            continue
        for name in rule.torch.split():
            for schema in registry().get(name, ()):
                tensors = [a.name for a in schema.arguments if "Tensor" in str(a.type)]
                if not excluded_by("", schema):
                    assert set(tensors[1:]) <= set(rule.full_arguments.split()), schema
