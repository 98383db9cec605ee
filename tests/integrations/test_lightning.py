"""The Lightning plugin, against Lightning's own ``16-mixed``, and its refusals."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpcompile

pl: Any = pytest.importorskip("pytorch_lightning")
lightning: Any = pytest.importorskip("mpcompile.lightning")

ROWS = torch.utils.data.DataLoader[Any]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Classifier(pl.LightningModule):  # type: ignore[misc]
    """A net that learns with SGD, so that each weight shows the size of each gradient."""

    def __init__(self, size: float = 1.0, optimizer: str = "SGD") -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 16), nn.Sequential(nn.GELU(), nn.Linear(16, 4))])
        self.size, self.optimizer = size, optimizer
        self.norms: list[float] = []

    def forward(self, x: torch.Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return x

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1]) * self.size
        self.log("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        found = [p.grad.norm() for p in self.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(found).norm()))

    def predict_step(self, batch: list[torch.Tensor]) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kind = getattr(torch.optim, self.optimizer)
        made: torch.optim.Optimizer = kind(self.parameters(), lr=0.1)
        return made


def rows() -> ROWS:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(48, 8, generator=random)
    return ROWS(torch.utils.data.TensorDataset(x, x[:, :4].argmax(1)), batch_size=16)


def trainer(plugin: Any = None, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"enable_checkpointing": False, "max_epochs": 4, **options}
    return pl.Trainer(accelerator="cpu", plugins=plugin, **quiet, **options)


def test_the_plugin_trains_as_fp32_up_to_rounding_and_clips_unscaled_gradients() -> None:
    plain = Classifier()
    mine = copy.deepcopy(plain)
    trainer(gradient_clip_val=0.2).fit(plain, rows())
    plugin = lightning.MPCompilePrecision()
    trainer(plugin, gradient_clip_val=0.2).fit(mine, rows())
    assert plugin.scaler.get_scale() == 2.0**16
    assert mine.norms == pytest.approx(plain.norms, rel=1e-2)
    for one, other in zip(plain.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3)
        assert not torch.equal(other, one)


def test_at_level_fp32_nothing_is_scaled_and_it_is_bitwise_lightning() -> None:
    plain = Classifier()
    mine = copy.deepcopy(plain)
    trainer().fit(plain, rows())
    plugin = lightning.MPCompilePrecision(mpcompile.FULL_PRECISION)
    trainer(plugin).fit(mine, rows())
    assert plugin.scaler is None
    assert all(map(torch.equal, plain.parameters(), mine.parameters()))


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    model = Classifier()
    before = copy.deepcopy(model.state_dict())
    plugin = lightning.MPCompilePrecision(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**26))
    trainer(plugin, max_steps=2).fit(model, rows())
    assert plugin.scaler.get_scale() == 2.0**24
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_scale_is_in_the_checkpoint_under_a_name_that_must_not_change(tmp_path: Path) -> None:
    first = trainer(lightning.MPCompilePrecision(), max_epochs=1)
    first.fit(Classifier(), rows())
    first.precision_plugin.scaler.update(2.0**11)
    first.save_checkpoint(tmp_path / "last.ckpt")
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert held["MPCompilePrecision"]["scale"] == 2.0**11
    assert set(held["state_dict"]) == set(Classifier().state_dict())
    second = trainer(lightning.MPCompilePrecision(), max_epochs=2)
    second.fit(Classifier(), rows(), ckpt_path=tmp_path / "last.ckpt")
    assert second.precision_plugin.scaler.get_scale() == 2.0**11


def test_prediction_is_in_mixed_precision_and_the_module_is_restored() -> None:
    model = Classifier()
    found = torch.cat(trainer(lightning.MPCompilePrecision()).predict(model, rows()))
    expected = torch.cat([model(batch[0]) for batch in rows()])
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert not torch.equal(found, expected)
    assert "forward" not in vars(model)
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 8)), model(torch.ones(1, 8)))


class Built(pl.LightningModule):  # type: ignore[misc]
    """A module that calls one of torch's own modules, and counts the casts of the last step."""

    net: Any

    def __init__(self, net: nn.Module, called: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.net, self.called = net, called
        self.casts = 0

    def training_step(self, batch: list[torch.Tensor], index: int) -> Any:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            result = self.called(self.net, batch[0])
        self.casts = sum(e.count for e in seen.key_averages() if e.key == "aten::_to_copy")
        return result.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def of_torch() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def twenty() -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(8, 8) for _ in range(20))


def hooked() -> nn.Sequential:
    net = of_torch()
    net.register_forward_hook(lambda *values: values[2] + values[2])
    net[0].register_forward_pre_hook(lambda *values: (values[1][0].neg(),))
    return net


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


def whole(net: Any, x: torch.Tensor) -> Any:
    return net(x)


def layers(net: Any, x: torch.Tensor) -> Any:
    for layer in net:
        x = layer(x)
    return x


def as_sequence(net: Any, x: torch.Tensor) -> Any:
    return net(x[None])


def weight(net: Any, x: torch.Tensor) -> Any:
    return nn.functional.linear(x, net.weight)


# At least the operands and the result of each linear are rounded.
BUILT: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, torch.Tensor], Any], int]] = {
    "sequential": (of_torch, whole, 6),
    "layers of a sequential": (of_torch, layers, 6),
    "linear": (lambda: nn.Linear(8, 8), whole, 3),
    "more than Dynamo's limit": (twenty, layers, 60),
    "with hooks": (hooked, whole, 6),
    "encoder": (encoder, as_sequence, 12),
}


@pytest.mark.parametrize("name", BUILT)
def test_modules_of_torch_run_in_16_bits(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, called, least = BUILT[name]
    net = make()
    plain, mine = Built(copy.deepcopy(net), called), Built(net, called)
    trainer(max_epochs=1).fit(plain, rows())
    trainer(lightning.MPCompilePrecision(), max_epochs=1).fit(mine, rows())
    assert plain.casts == 0
    assert mine.casts >= least
    for one, other in zip(plain.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=2e-3)
    assert "16 bits" not in caplog.text


def test_an_override_names_a_module_as_the_model_does() -> None:
    casts = {}
    for full in ((), ("net.0",), ("net",)):
        for called in (whole, layers):
            torch.compiler.reset()
            mine = Built(of_torch(), called)
            plugin = lightning.MPCompilePrecision(mpcompile.Policy(full=full))
            trainer(plugin, max_epochs=1).fit(mine, rows())
            casts[full, called] = mine.casts
    for called in (whole, layers):
        assert casts[(), called] > casts[("net.0",), called] > casts[("net",), called] == 0


class HooksLater(Built):
    """It gets a hook of a layer after its first step."""

    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == 1:
            self.net[2].register_forward_hook(lambda *values: values[2].neg())
            self.net.register_forward_pre_hook(lambda *values: (values[1][0] + values[1][0],))


@pytest.mark.parametrize("called", [whole, layers])
def test_a_hook_that_is_registered_later_is_seen(called: Any) -> None:
    plain = HooksLater(of_torch(), called)
    mine = copy.deepcopy(plain)
    trainer(max_epochs=1).fit(plain, rows())
    trainer(lightning.MPCompilePrecision(mpcompile.FULL_PRECISION), max_epochs=1).fit(mine, rows())
    assert all(map(torch.equal, plain.parameters(), mine.parameters()))


def test_a_copy_that_is_made_in_training_has_its_own_weights() -> None:
    class Copies(Classifier):
        def on_train_batch_end(self, *_: Any) -> None:
            twin = copy.deepcopy(self)
            last = twin.get_submodule("blocks.1.1")
            for value in last.parameters():
                torch.nn.init.zeros_(value)
            assert not twin(torch.ones(1, 8)).any()
            assert not twin.forward(torch.ones(1, 8)).any()
            assert self(torch.ones(1, 8)).any()

    trainer(lightning.MPCompilePrecision(), max_epochs=1).fit(Copies(), rows())


class Negates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.neg()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.neg()


class WithNegates(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = Negates.apply(super().forward(x))  # type: ignore[no-untyped-call]
        return result


WIDE: list[tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = [
    (lambda: nn.Linear(8, 8), weight, {}, "the step calls no module that has parameters"),
    (lambda: WithNegates(8, 8), whole, {}, "it calls autograd_function_apply, which has its own"),
    (of_torch, whole, {"full": ("*",)}, "the plan leaves all 3 ops in FP32, most often because: "),
]


@pytest.mark.parametrize(("make", "called", "options", "reason"), WIDE)
def test_a_model_of_which_nothing_is_in_16_bits_is_told_once(
    make: Callable[[], nn.Module],
    called: Any,
    options: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mine = Built(make(), called)
    trainer(lightning.MPCompilePrecision(mpcompile.Policy(**options))).fit(mine, rows())
    said = [text for text in caplog.messages if "nothing in the first step" in text]
    assert len(said) == 1
    assert reason in said[0]
    assert mine.casts == 0
    caplog.clear()
    plugin = lightning.MPCompilePrecision(mpcompile.FULL_PRECISION)
    trainer(plugin).fit(Built(make(), called), rows())
    assert "16 bits" not in caplog.text


def test_an_optimizer_that_one_scale_cannot_fit_is_refused() -> None:
    with pytest.raises(
        mpcompile.BadInput, match="L-BFGS evaluates the loss several times per step"
    ):
        trainer(lightning.MPCompilePrecision()).fit(Classifier(optimizer="LBFGS"), rows())
    with pytest.raises(mpcompile.BadInput, match="only FP16 needs one"):
        policy = mpcompile.Policy(precision=mpcompile.Precision.BF16)
        lightning.MPCompilePrecision(policy, scaler=torch.amp.GradScaler("cpu"))


def test_lightning_is_imported_only_on_request() -> None:
    script = (
        "import sys, mpcompile, mpcompile.integrations.dynamo_backend, mpcompile.pipeline\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not names & {'pytorch_lightning', 'lightning_fabric', 'transformers'}, names\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
