"""Shared test settings."""

from __future__ import annotations

import logging
import os

import torch

# Two processes share two cores; a small net gains nothing from a second thread.
torch.set_num_threads(1)
os.environ.setdefault("SIZE", "small")
# torch's trace logger writes a line a tensor into each failure report.
logging.getLogger("torch.__trace").setLevel(logging.ERROR)
