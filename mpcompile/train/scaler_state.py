"""A step's loss scale under the names of ``torch.amp.GradScaler``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mpcompile.errors import BadInput
from mpcompile.passes.step.adjust_scale import TRACKER
from mpcompile.passes.step.scale_loss import SCALE
from mpcompile.step.loss_scale import LossScale


def scaler_state(rule: LossScale, state: Mapping[str, torch.Tensor]) -> dict[str, float | int]:
    """Return the loss scale's state under the keys of ``GradScaler.state_dict``."""
    if not rule.active:
        return {}
    return {
        "scale": float(state[SCALE]),
        "growth_factor": rule.growth,
        "backoff_factor": rule.backoff,
        "growth_interval": rule.interval,
        "_growth_tracker": int(state[TRACKER]) if TRACKER in state else 0,
    }


def load_scaler_state(
    rule: LossScale, state: Mapping[str, torch.Tensor], given: Mapping[str, Any]
) -> None:
    """Take over scale and tracker; see `mpcompile.TrainStep.load_scaler_state`."""
    mine = scaler_state(rule, state)
    if set(given) != set(mine):
        raise BadInput(
            f"the scaler state has the keys {sorted(given)}", fix=f"give the keys {sorted(mine)}"
        )
    for key in ("growth_factor", "backoff_factor", "growth_interval"):
        if key in mine and given[key] != mine[key]:
            raise BadInput(
                f"{key} is {given[key]} in the state, but {mine[key]} in this step",
                fix="compile with a LossScale that has the same factors",
            )
    if mine:
        state[SCALE].fill_(given["scale"])
    if TRACKER in state:
        state[TRACKER].fill_(given["_growth_tracker"])
