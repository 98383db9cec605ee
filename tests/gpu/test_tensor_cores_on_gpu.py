"""Matmuls, convolutions and attention of a mixed step really run on Tensor Cores."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from nets.small_models import GPU, compiled, workload
from torch import fx
from torch.profiler import ProfilerActivity, profile

from mpcompile.torch_private.ops import op_name

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

MATRIX = {"mm": 1, "addmm": 1, "bmm": 1, "baddbmm": 1, "convolution": 1, "convolution_backward": 2}
"""Ops of a gradient graph that Tensor Cores run, and the products in each."""

KERNEL = re.compile(r"gemm|nvjet|cutlass|fprop|dgrad|wgrad|conv|sdpa|flash|fmha", re.IGNORECASE)
"""What cuBLAS, cuDNN and inductor call kernels that multiply matrices."""

ON_CUDA_CORES = re.compile(r"simt|sgemm|ffma|f32f32_f32f32|scudnn", re.IGNORECASE)
"""Of those, the ones that multiply in FP32."""

HELPERS = re.compile(r"splitk|reduce|nchw|nhwc|triton|vectorized|im2col", re.IGNORECASE)
"""Layout changes and sums around them."""


def narrow_products(graph: fx.Graph) -> int:
    """Count matrix products of 16-bit tensors."""
    return sum(
        MATRIX.get(op_name(node), 0)
        for node in graph.nodes
        if node.op == "call_function"
        and any(
            isinstance(item.meta["val"], torch.Tensor) and item.meta["val"].dtype is torch.float16
            for item in node.all_input_nodes
        )
    )


@pytest.mark.parametrize("name", ["gpt", "resnet"])
def test_matrix_products_run_on_tensor_cores(name: str) -> None:
    made = workload(name, GPU)
    step = compiled(made, "inductor")
    for _ in range(6):  # three plain steps, the capture, and two replays
        step(*made.batch)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step(*made.batch)
        torch.cuda.synchronize()
    launched = Counter(event.name for event in seen.events() if event.device_type.name == "CUDA")
    products = {
        kernel: count
        for kernel, count in launched.items()
        if KERNEL.search(kernel) and not HELPERS.search(kernel)
    }
    slow = [kernel for kernel in products if ON_CUDA_CORES.search(kernel)]
    assert not slow, slow
    expected = narrow_products(step.step.gradient.graph)
    # Inductor turns thin products into its own kernels, and cuDNN may do one in two parts.
    assert sum(products.values()) >= 0.8 * expected, (expected, launched)
