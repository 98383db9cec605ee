"""Every dense optimizer of `torch.optim` with each of its options."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.1}),
    ("SGD", {"momentum": 0.5, "dampening": 0.9, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"weight_decay": 0.1, "maximize": True}),
    ("Adam", {"weight_decay": 0.01}),
    ("Adam", {"amsgrad": True, "betas": (0.5, 0.9)}),
    ("Adam", {"weight_decay": 0.01, "decoupled_weight_decay": True, "eps": 1e-3}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "maximize": True}),
    ("AdamW", {"betas": (0.0, 0.99), "weight_decay": 0}),
    ("NAdam", {}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "maximize": True}),
    ("RAdam", {}),
    ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"weight_decay": 0.1, "maximize": True, "betas": (0.8, 0.9)}),
    ("RAdam", {"betas": (0.8, 0.6)}),  # never rectifies: rho stays at 4, a division by zero
    ("Adamax", {}),
    ("Adamax", {"weight_decay": 0.1, "maximize": True}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    ("Adagrad", {"weight_decay": 0.1, "maximize": True}),
    ("Adadelta", {}),
    ("Adadelta", {"weight_decay": 0.1, "maximize": True, "rho": 0.5}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("RMSprop", {"weight_decay": 0.1, "maximize": True, "centered": True}),
    ("ASGD", {}),
    ("ASGD", {"t0": 3.0, "lambd": 0.1, "alpha": 0.5, "weight_decay": 0.1}),
    ("ASGD", {"t0": 20, "maximize": True}),
    ("Rprop", {}),
    ("Rprop", {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.05), "maximize": True}),
    ("Adafactor", {}),
    ("Adafactor", {"weight_decay": 0.1, "d": 1.5, "eps": (1e-8, 0.1)}),
    ("Adafactor", {"beta2_decay": -0.5, "maximize": True}),
    ("Muon", {}),
    ("Muon", {"nesterov": False, "weight_decay": 0.0, "ns_steps": 3}),
    ("Muon", {"adjust_lr_fn": "match_rms_adamw", "momentum": 0.5}),
]
"""Each optimizer, and each of its options."""


WITH_TENSOR = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop",
               "ASGD", "Rprop", "Adafactor", "Muon"]  # fmt: skip


def optimizer_of(
    model: nn.Module, name: str, options: dict[str, Any], lr: Any = 0.01
) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if name != "Muon" or p.dim() == 2]
    made: torch.optim.Optimizer = getattr(torch.optim, name)(trained, lr=lr, **options)
    return made
