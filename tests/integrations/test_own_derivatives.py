"""Programs with their own backward and with hooks, under the backend and in Lightning.

They may stay in FP32 there, but they train as in eager PyTorch. BF16 needs no loss scale, which a
backward that is not linear would see.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from oracles.eager_training import Batch, batches
from programs.functions import FUNCTIONS
from programs.hooks import (
    BEFORE,
    ON_TENSORS,
    Net,
    a_method,
    before_a_region_without_gradients,
    on_a_parameter,
    reads_another_tensor,
    removed,
    squared,
    two_in_order,
)
from torch import nn

from mpcompile import Policy, Precision
from mpcompile.integrations.dynamo_backend import mpcompile
from mpcompile.torch_private.versions import release

BATCHES = batches(6, (6, 8), (6, 8))
RATE = 0.05
Loss = Callable[..., Any]
Program = tuple[nn.Module, Loss]

# Functions that round or choose amplify an error of 16 bits without limit.
STEEP = ("straight_through_round", "learned_step_quantizer", "vector_quantizer")


def _hooked(prepare: Callable[[Net], object]) -> Callable[[], Program]:
    def program() -> Program:
        net = Net()
        prepare(net)
        return net, squared

    return program


def _with_middle(middle: Callable[[Any, torch.Tensor], torch.Tensor]) -> Callable[[], Program]:
    return lambda: (Net(middle), squared)


# Dynamo itself, with each backend, fails on a hook that is removed in the same graph.
WRONG_IN_DYNAMO = {removed}
if release(torch.__version__) < (2, 13):
    # It runs two hooks of one tensor in the wrong order, fails on hooks that read other tensors,
    # and rounds otherwise.
    WRONG_IN_DYNAMO |= {
        two_in_order,
        reads_another_tensor,
        a_method,
        before_a_region_without_gradients,
    }
PROGRAMS: dict[str, Callable[[], Program]] = {
    **FUNCTIONS,
    **{
        f"hook {middle.__name__}": _with_middle(middle)
        for middle in (*ON_TENSORS, on_a_parameter)
        if middle not in WRONG_IN_DYNAMO
    },
    **{f"hook {prepare.__name__}": _hooked(prepare) for prepare in BEFORE},
}
each = pytest.mark.parametrize("name", PROGRAMS)
each_smooth = pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in STEEP])
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def trained(model: nn.Module, called: Any, loss: Loss) -> dict[str, torch.Tensor]:
    """Train a model by calls of `called`; return its weights and buffers."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for batch in BATCHES:
        loss(called, *batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


def in_eager(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the weights before and after training in eager PyTorch."""
    torch.manual_seed(1)
    model, loss = PROGRAMS[name]()
    start = copy.deepcopy(dict(model.state_dict()))
    return start, trained(model, model, loss)


def made(name: str) -> Program:
    torch.manual_seed(1)
    return PROGRAMS[name]()


def distance(
    found: dict[str, torch.Tensor], true: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> float:
    """Return the largest distance of a weight from the true one over that one's movement."""
    return max(
        float((found[name] - value).norm() / (value - start[name]).norm())
        for name, value in true.items()
        if value.is_floating_point() and not torch.equal(value, start[name])
    )


@each
def test_in_fp32_the_backend_is_bitwise_eager(name: str) -> None:
    _, true = in_eager(name)
    model, loss = made(name)
    quick = torch.compile(model, backend=mpcompile, options={"level": "fp32"})
    found = trained(model, quick, loss)
    assert [key for key, value in true.items() if not torch.equal(value, found[key])] == []


@each_smooth
def test_in_bf16_the_backend_is_close(name: str) -> None:
    start, true = in_eager(name)
    model, loss = made(name)
    quick = torch.compile(model, backend=mpcompile, options={"precision": "bf16"})
    assert distance(trained(model, quick, loss), true, start) < 0.1


@each_smooth
def test_in_bf16_lightning_is_close(name: str) -> None:
    pl: Any = pytest.importorskip("pytorch_lightning")
    lightning: Any = pytest.importorskip("mpcompile.lightning")

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self, model: nn.Module, loss: Loss) -> None:
            super().__init__()
            self.model, self.loss = model, loss

        def on_train_start(self) -> None:
            torch.manual_seed(0)  # Lightning has drawn numbers

        def training_step(self, batch: Batch, index: int) -> Any:
            return self.loss(self.model, *batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    start, true = in_eager(name)
    model, loss = made(name)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    plugin = lightning.MPCompilePrecision(Policy(precision=Precision.BF16))
    trainer = pl.Trainer(
        accelerator="cpu", plugins=plugin, enable_checkpointing=False, max_epochs=1, **quiet
    )
    rows: Any = torch.utils.data.DataLoader(BATCHES, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(Module(model, loss), rows)
    assert distance(dict(model.state_dict()), true, start) < 0.1
