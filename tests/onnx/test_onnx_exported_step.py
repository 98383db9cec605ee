"""Exported steps: a skip does not change their state, and their FP16 equals that of torch's step.

ONNX Runtime runs FP16 on a CPU in FP32 and drops casts, so the numbers are those of onnx's own
evaluator, which rounds after each op.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_max_pool import MaxPool as TheirMaxPool
from safetensors.numpy import load_file, save_file
from torch import nn

from bench.speed.variant import load
from mpcompile import LossScale, Workload
from mpcompile.lower.lower import Lowering
from mpcompile.onnx.step_export import export_step
from mpcompile.onnx.train_file import read_train_file
from mpcompile.onnx.train_step import OrtTrainStep
from mpcompile.pipeline import to_step, transform
from mpcompile.step.transformed import Transformed

ROUNDING = 2.0**-8
"""Relative to a tensor's largest number: eight successive roundings to FP16."""


class MaxPool(OpRun):
    """onnx's, except for kernels of one element: there onnx's indices ignore sample and channel."""

    op_domain = ""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        if set(attributes["kernel_shape"]) == {1}:
            return x, np.arange(x.size).reshape(x.shape)
        theirs: Any = TheirMaxPool(self.onnx_node, self.run_params)
        found: tuple[np.ndarray, ...] = theirs._run(x, **attributes)
        return found


def images() -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2), nn.GELU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    batch = torch.randn(4, 3, 16, 16), torch.randint(0, 4, (4,))

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    return Workload(model, batch, loss, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))


def words() -> Workload:
    made = load("gpt", "tiny", "cpu")
    optimizer = torch.optim.SGD(made.model.parameters(), 0.1, momentum=0.9)
    return Workload(made.model, made.batch, made.loss, optimizer)


@pytest.fixture(scope="module", params=[images, words])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Transformed, Path]:
    transformed = transform(request.param())
    path = tmp_path_factory.mktemp(request.param.__name__) / "train.onnx"
    export_step(transformed, path)
    return transformed, path


def test_a_planted_inf_leaves_the_state_bit_identical(exported: tuple[Transformed, Path]) -> None:
    transformed, path = exported
    step = OrtTrainStep(path)
    batch = [value.numpy() for value in transformed.workload.batch]
    step(*batch)
    file = path.with_name("before.safetensors")
    step.save(file)
    # Integers cannot hold an infinity: there the scale makes the gradients overflow.
    broken = [b.copy() for b in batch]
    if broken[0].dtype == np.float32:
        broken[0][0, 0, 0, 0] = np.inf
    else:
        changed_scale = {**step.state(), "loss_scale": np.array(2.0**127, np.float32)}
        save_file(changed_scale, path.with_name("huge.safetensors"))
        step.load(path.with_name("huge.safetensors"))
    before = step.state()
    step(*broken)
    after = step.state()
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed <= {"loss_scale", "growth_tracker", "steps_skipped"}
    assert changed >= {"loss_scale", "steps_skipped"}
    assert (step.taken, step.skipped) == (1, 1)
    assert step.loss_scale == min(before["loss_scale"] / 2, LossScale().ceiling)
    step.load(file)
    step(*batch)
    after = step.state()
    written = {slot.name for slot in step.file.state if slot.next and slot.role == "master"}
    assert written
    assert all(before[name].tobytes() != after[name].tobytes() for name in written)
    assert (step.taken, step.skipped) == (2, 0)


def test_fp16_of_the_exported_step_equals_that_of_torchs_step(
    exported: tuple[Transformed, Path],
) -> None:
    transformed, path = exported
    file = read_train_file(path.with_suffix(".json"))
    first = load_file(path.with_name(file.weights))
    batch = transformed.workload.batch
    inputs = {
        **first,
        **{rate.name: np.array(rate.initial) for rate in file.rates},
        **{spec.name: b.numpy() for spec, b in zip(file.batch, batch, strict=True)},
    }
    evaluator = ReferenceEvaluator(str(path), new_ops=[MaxPool])
    found: dict[str, Any] = dict(
        zip(evaluator.output_names, evaluator.run(None, inputs), strict=True)
    )
    step = to_step(transformed, Lowering(backend="interpreter"))
    loss = float(step(*batch))
    assert float(found[file.loss]) == pytest.approx(loss, rel=ROUNDING)
    compared = 0
    for slot in file.state:
        if not slot.next:
            continue
        mine, theirs = np.asarray(found[slot.next]), step._state[slot.name].numpy()
        assert mine.dtype == first[slot.name].dtype, slot.name
        assert mine.shape == slot.shape, slot.name
        if slot.role not in ("master", "optimizer", "buffer", "working"):
            assert mine == theirs, slot.name
            continue
        wide, before = theirs.astype(np.float64).reshape(mine.shape), first[slot.name]
        change = np.abs(wide - before).max()
        last_bit = np.spacing(np.abs(theirs).reshape(mine.shape)).astype(np.float64)
        assert (np.abs(mine - wide) <= ROUNDING * change + last_bit).all(), slot.name
        compared += change > 0
    assert compared >= 4
