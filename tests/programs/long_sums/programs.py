"""Programs whose gradients are sums of 6,000 terms and more, each with a batch.

Every program has a layer in front, so that its op has a gradient, and returns a tensor; the loss is
the mean of it. The terms of a sum have one sign, so the sum grows and the error is no cancellation.
`PROGRAMS` holds them by name. `FAST` names those that a test runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Made = tuple[nn.Module, Tensor]

ROWS = 6000
"""Contributions to one element of a gradient, at the least."""


class Between(nn.Module):
    """An op or a module between two layers."""

    def __init__(self, enter: nn.Module, op: Callable[..., Tensor], leave: nn.Module) -> None:
        super().__init__()
        self.enter, self.op, self.leave = enter, op, leave

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.leave(self.op(self.enter(x)))
        return result


class Table(nn.Module):
    """A table of two rows that a matmul makes, read by an op in 6,000 places and more."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.leave, self.op = nn.Linear(8, 2, bias=False), nn.Linear(8, 1), op

    def forward(self, places: Tensor) -> Tensor:
        made = torch.eye(2, dtype=self.table.weight.dtype) @ self.table.weight
        result: Tensor = self.leave(self.op(made, places))
        return result


class UsedOften(nn.Module):
    """A layer used many times in one step."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.uses, self.layer = uses, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        uses: Tensor = torch.stack([self.layer(x) for _ in range(self.uses)]).sum(0)
        return uses


class UsedInALoop(UsedOften):
    """The same, added in a loop."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        for _ in range(self.uses - 1):
            out = out + self.layer(x)
        return out


class Residuals(UsedOften):
    """A residual stream to which one layer writes many times."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        for _ in range(self.uses - 1):
            out = out + 0.1 * self.layer(out).tanh()
        return out


class Cell(nn.Module):
    """A recurrent cell over steps in Python, its states added up."""

    def __init__(self, kind: type[nn.RNNCellBase], steps: int) -> None:
        super().__init__()
        self.steps, self.cell = steps, kind(4, 8)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 8)
        cell = state
        out = state
        for _ in range(self.steps):
            if isinstance(self.cell, nn.LSTMCell):
                state, cell = self.cell(x, (state, cell))
            else:
                state = self.cell(x, state)
            out = out + state
        return out


class Layer(nn.Module):
    """A recurrent or attention layer: the first of its results."""

    def __init__(self, layer: nn.Module, reads: int = 1) -> None:
        super().__init__()
        self.layer, self.reads = layer, reads

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(*[x] * self.reads)[0]
        return result


class Tied(nn.Module):
    """An embedding that is the head's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 8))

    def forward(self, places: Tensor) -> Tensor:
        return F.linear(F.embedding(places, self.weight), self.weight)


class Squared(nn.Module):
    """A bilinear layer that reads one tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(8, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x, x)
        return result


class Vocabulary(nn.Module):
    """A log-softmax over 128,256 equal logits."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 128256)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(x).log_softmax(-1)[:, :10]
        return result


PROGRAMS: dict[str, Callable[[], Made]] = {}


def _add(name: str, make: Callable[[], nn.Module], *shape: int, shift: float = 0.5) -> None:
    def made() -> Made:
        torch.manual_seed(0)
        return make(), torch.rand(*shape) + shift

    PROGRAMS[name] = made


def _add_table(name: str, op: Callable[[Tensor, Tensor], Tensor], places: int = ROWS) -> None:
    def made() -> Made:
        torch.manual_seed(0)
        return Table(op), torch.zeros(places, dtype=torch.long)

    PROGRAMS[name] = made


def _rows(name: str, op: Callable[[], Callable[..., Tensor]], shift: float = 0.5) -> None:
    """Add an op on 6,000 rows of 8 features."""

    def make() -> nn.Module:
        return Between(nn.Linear(8, 8), op(), nn.Linear(8, 1))

    _add(name, make, ROWS, 8, shift=shift)


_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _image(
    name: str, op: Callable[[], Callable[..., Tensor]], *size: int, trained: bool = True
) -> None:
    """Add an op on an image of 4 channels between two convolutions.

    In front of a norm the first is not `trained`, because its gradient is a difference of like
    numbers. It has no bias, and the image has the mean 0, because a norm takes a mean away.
    """

    def make() -> nn.Module:
        kind = _CONV[len(size) - 1]
        enter = kind(1, 4, 1, bias=trained).requires_grad_(trained)
        return Between(enter, op(), kind(4, 1, 1))

    _add(name, make, 1, 1, *size, shift=0.5 if trained else -0.5)


def _layers() -> None:
    """Add the modules with parameters."""
    _rows("Linear", lambda: _keep)
    _add("Linear, 3 axes", lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1)), 6, 1000, 8)
    for n, size in enumerate(((ROWS,), (80, 80), (19, 19, 19))):
        axes = f"{n + 1}d"
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n]
        batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n]
        instance_norm = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[n]
        _image(f"Conv{axes}", partial(_CONV[n], 4, 4, 3), *size)
        _image(f"ConvTranspose{axes}", partial(transposed, 4, 4, 3), *size)
        for word, norm in (("Batch", batch_norm), ("Instance", instance_norm)):
            op = partial(_then_gelu, partial(norm, 4, affine=True))
            _image(f"{word}Norm{axes}", op, *size, trained=False)
    _image("GroupNorm", partial(_then_gelu, partial(nn.GroupNorm, 2, 4)), 80, 80, trained=False)
    _rows("LayerNorm", lambda: nn.LayerNorm(8))
    _rows("RMSNorm", lambda: nn.RMSNorm(8))
    _rows("PReLU", lambda: nn.PReLU(8), shift=4.5)
    _rows("Bilinear", Squared)
    _rows("spectral_norm", lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)))
    _rows("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        _add(kind.__name__, partial(_layer, kind, 8, 8), 16, 400, 8)
    for cell in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
        _add(cell.__name__, partial(Cell, cell, 48), 128, 4)
    _add("MultiheadAttention", partial(_attention), 64, 100, 8)
    _add("TransformerEncoderLayer", partial(_encoder), 64, 100, 8)
    _add_table("Embedding", functional_embedding)
    _add_table("EmbeddingBag", lambda w, p: F.embedding_bag(p.view(-1, 3000), w))


def functional_embedding(weight: Tensor, places: Tensor) -> Tensor:
    return F.embedding(places, weight)


def _then_gelu(make: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(make(), nn.GELU())


def _layer(kind: Callable[..., nn.Module], *sizes: int) -> nn.Module:
    return Layer(kind(*sizes))


def _attention() -> nn.Module:
    return Layer(nn.MultiheadAttention(8, 2, batch_first=True), reads=3)


def _encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


def _shared() -> None:
    """Add what is used many times: layers, tables, tensors."""
    _add("a layer 100 times", partial(UsedOften, 100), 64, 4)
    _add("a layer 100 times in a loop", partial(UsedInALoop, 100), 64, 4)
    _add("100 residuals", partial(Residuals, 100), 64, 4)
    PROGRAMS["tied embedding"] = lambda: (_seeded(Tied), torch.zeros(ROWS, dtype=torch.long))
    tables: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "index": lambda w, p: w[p],
        "index_select": lambda w, p: w.index_select(0, p),
        "gather": lambda w, p: w.gather(0, p[:, None].expand(-1, 8)),
        "take_along_dim": lambda w, p: torch.take_along_dim(w, p[:, None].expand(-1, 8), 0),
        "take": lambda w, p: w.take(p[:, None] + torch.arange(8)),
        "expand": lambda w, p: w.expand(p.shape[0], 2, 8),
        "broadcast in a sum": lambda w, p: w + p[:, None, None],
        "broadcast in a product": lambda w, p: w * (p[:, None, None] + 1.5),
        "broadcast in a matmul": lambda w, p: (w.new_ones(2, 8) + p[:, None, None]) @ w.mT @ w,
        "repeat": lambda w, p: w.repeat(p.shape[0], 1),
        "tile": lambda w, p: w.tile(p.shape[0], 1),
        "repeat_interleave": lambda w, p: w.repeat_interleave(p.shape[0], 0),
        "stack": lambda w, p: torch.stack([w] * 100) + p[:100, None, None],
        "cat": lambda w, p: torch.cat([w] * 100)[None] + p[:60, None, None],
        "index_add": lambda w, p: w.new_zeros(p.shape[0], 8).index_add(
            0, torch.arange(p.shape[0]), w.repeat(p.shape[0] // 2, 1)
        ),
        "scatter_add": lambda w, p: w.new_zeros(2, 8).scatter_add(
            0, p[:, None].expand(-1, 8), w.repeat(p.shape[0] // 2, 1) / ROWS
        ),
        "index_add to one row": lambda w, p: w.new_zeros(2, 8).index_add(
            0, p, w.repeat(p.shape[0] // 2, 1) / ROWS
        ),
    }
    for name, op in tables.items():
        _add_table(name, op)


def _scans() -> None:
    """Add scans, reductions and what reads rows in another order."""
    ops: dict[str, Callable[[Tensor], Tensor]] = {
        "cumsum": lambda h: h.cumsum(0) / ROWS,
        "cumprod": lambda h: (1 + h / ROWS).cumprod(0),
        "logcumsumexp": lambda h: h.logcumsumexp(0),
        "cummax": lambda h: h.cummax(0).values,
        "sum": lambda h: h.sum(0, keepdim=True) / ROWS,
        "mean": lambda h: h.mean(0, keepdim=True),
        "var": lambda h: h.var(0, keepdim=True),
        "norm": lambda h: h.norm(dim=0, keepdim=True) / 64,
        "logsumexp": lambda h: h.logsumexp(0, keepdim=True),
        "softmax over rows": lambda h: h.softmax(0)[:10] * ROWS,
        "log_softmax over rows": lambda h: h.log_softmax(0)[:10],
        "sort": lambda h: h.sort(0).values,
        "roll and flip": lambda h: h.roll(7, 0).flip(0),
        "windows (unfold)": lambda h: F.pad(h[:, 1:2].unfold(0, 3000, 1).mean(-1), (0, 7)),
        "windows (as_strided)": lambda h: (
            h.contiguous().as_strided((3001, 3000, 8), (8, 8, 1)).mean(1)
        ),
    }
    for name, op in ops.items():
        _rows(name, partial(_same, op), shift=-0.5 if "softmax" in name else 0.5)
    _add("log_softmax over 128,256", Vocabulary, 4, 8, shift=-0.5)


def _same(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return op


def _keep(x: Tensor) -> Tensor:
    return x


def _windows() -> None:
    """Add pooling, padding, resizing: the ops of images."""
    one = ((ROWS,), (80, 80), (19, 19, 19))
    twice = ((2 * ROWS + 1,), (157, 157), (37, 37, 37))
    width = (ROWS + 1, 79, 19)
    single = ((1,), (1, 1), (1, 1, 1))
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
    largest = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
    kinds = (f"adaptive_{word}_pool{n}d" for word in ("avg", "max") for n in (1, 2, 3))
    adapt: dict[str, Callable[..., Tensor]] = {kind: getattr(F, kind) for kind in kinds}
    for n, size in enumerate(one):
        axes = f"{n + 1}d"
        both = (3, 2) * (n + 1)
        for pools, word in ((average, "avg_pool"), (largest, "max_pool")):
            op = partial(pools[n], kernel_size=width[n], stride=1)
            _image(f"{word}{axes}", partial(_same, op), *twice[n])
        for word in ("avg", "max"):
            name = f"adaptive_{word}_pool{axes}"
            _image(name, partial(_same, partial(adapt[name], output_size=size)), *single[n])
        for mode in ("constant", "reflect", "replicate", "circular"):
            _image(
                f"pad {axes}, {mode}", partial(_same, partial(F.pad, pad=both, mode=mode)), *size
            )
        far = tuple(side for length in size for side in (length - 1, 0))
        op = partial(F.pad, pad=far, mode="replicate")
        _image(f"pad {axes}, replicate one element", partial(_same, op), *single[n])
    modes = {"nearest": 0, "linear": 0, "bilinear": 1, "bicubic": 1, "trilinear": 2, "area": 1}
    for mode, n in modes.items():
        op = partial(F.interpolate, size=one[n], mode=mode)
        _image(f"interpolate {mode}", partial(_same, op), *single[n])
    op = partial(F.lp_pool2d, norm_type=2, kernel_size=79, stride=1)
    _image("lp_pool2d", partial(_same, op), 157, 157)
    _image("im2col", partial(_same, _unfolded), 157, 157)
    _image("col2im", partial(_same, _folded), 80, 80)
    _image("grid_sample", partial(_same, _sampled), 2, 2)


def _unfolded(x: Tensor) -> Tensor:
    columns = F.unfold(x[:, :1], 79, stride=1)
    return columns.view(1, 1, 79 * 79, 79, 79).mean(2).expand(1, 4, 79, 79)


def _folded(x: Tensor) -> Tensor:
    columns = x.view(1, 4, -1)[..., :1].expand(1, 4, 6400)
    return F.fold(columns, 80, 1) + F.fold(x.view(1, 4, -1).repeat(1, 4, 1)[..., :6241], 80, 2)


def _sampled(x: Tensor) -> Tensor:
    where = torch.full((1, 80, 80, 2), 0.1, dtype=torch.float32)
    return F.grid_sample(x, where.to(x.dtype), align_corners=False)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


for _family in (_layers, _shared, _scans, _windows):
    _family()

FAST = (
    "LayerNorm", "PReLU", "spectral_norm", "Embedding", "EmbeddingBag", "tied embedding", "index",
    "index_select", "gather", "take", "expand", "repeat_interleave", "stack", "cat",
    "index_add to one row", "cumsum", "cumprod", "logcumsumexp", "var", "norm", "logsumexp",
    "log_softmax over 128,256", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d",
    "adaptive_avg_pool3d", "pad 1d, replicate one element", "interpolate linear",
    "interpolate area", "grid_sample",
)  # fmt: skip
"""The programs that a test runs: under a second each."""
LOST_IN_16_BITS = (
    "LayerNorm", "Embedding", "index", "take", "stack", "avg_pool1d", "adaptive_avg_pool1d",
    "adaptive_max_pool1d", "interpolate area", "cumprod", "logsumexp",
)  # fmt: skip
"""Those of `FAST` that eager autocast on a CPU gets wrong in BF16, by more than the limit."""
