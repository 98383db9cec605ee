"""GPT: a decoder-only transformer language model over bytes.

The architecture is GPT-2's (Radford et al., "Language Models are Unsupervised Multitask Learners",
2019): layer norm before each sublayer and after the last, learned positions, a GELU MLP four times
as wide, weights from N(0, 0.02) with the projections into the residual stream scaled down, and one
matrix for input embedding and output. AdamW's settings are GPT-3's (arXiv 2005.14165).

``SIZE=full`` has the shape of GPT-2 small (124 M parameters), ``SIZE=billion`` has 1.0 B;
``SIZE=small`` (default) is the same code, small enough for two CPU cores. All read the Python
manual in the standard library's `pydoc_data.topics` as bytes (so losses differ between Python
versions); only the first 256 ids of a large vocabulary occur.

Environment: ``SIZE`` (small, full or billion), ``DEVICE`` (default cpu), ``SEED`` (default 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from batches import Batches
from environment import chosen
from torch import Tensor, nn

from mpcompile import Workload


@dataclass(frozen=True, slots=True)
class Config:
    """A size of the network, and how it is trained.

    Attributes:
        vocabulary: token ids.
        context: tokens per sequence.
        layers: transformer blocks.
        heads: attention heads per block; divides `width`.
        width: features of a token.
        batch: sequences per step.
        rate: learning rate.
        dropout: probability in the embedding, the attention weights and after each sublayer.
    """

    vocabulary: int
    context: int
    layers: int
    heads: int
    width: int
    batch: int
    rate: float = 6e-4
    dropout: float = 0.0


SMALL = Config(vocabulary=256, context=64, layers=4, heads=4, width=128, batch=16)
# GPT-2 has 50,257 tokens. Rounded up to a multiple of 64, the output matrix divides into whole
# tiles of a tensor core matmul, and in 16 bits every row of logits starts 16-byte aligned.
FULL = Config(vocabulary=50_304, context=1024, layers=12, heads=12, width=768, batch=8)
# 1.01 B parameters. With 16-bit activations the batch fits into 80 GB.
BILLION = Config(
    vocabulary=50_304, context=2048, layers=18, heads=16, width=2048, batch=4, rate=2e-4
)
SIZES = {"small": SMALL, "full": FULL, "billion": BILLION}


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.project = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map FP32 ``[N, T, width]`` to the same shape; token t sees tokens up to t."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # each [N, heads, T, width / heads]
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """Attention, then an MLP; each is added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(approximate="tanh"),  # as in GPT-2
            nn.Linear(4 * config.width, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map FP32 ``[N, T, width]`` to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class GPT(nn.Module):
    """Embedding, blocks, layer norm, and the embedding again as output matrix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # Each block adds twice to the residual stream; with this scale the sum of all
                # blocks has the same variance at any depth.
                into_stream = name.endswith(("attention.project.weight", "mlp.2.weight"))
                depth = 2 * config.layers if into_stream else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64 tokens ``[N, T]`` to FP32 logits ``[N, T, vocabulary]``."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(positions))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy; both int64 ``[N, T]``, the targets one token ahead."""
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def decayed(model: nn.Module) -> list[dict[str, object]]:
    """Return parameter groups that decay matrices only.

    Decay of biases and layer norm gains would not make the function simpler.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]


def windows(context: int) -> tuple[Tensor, Tensor]:
    """Return the text as int64 tokens and targets, both ``[windows, context]``."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    stream = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    end = (len(stream) - 1) // context * context
    return stream[:end].view(-1, context), stream[1 : end + 1].view(-1, context)


def workload(*, config: Config | None = None, seed: int | None = None) -> Workload:
    """Return the training program; arguments that are not given come from the environment.

    Raises:
        ValueError: there is no such ``SIZE``.
    """
    size, seed, device = chosen(SIZES, config, seed)
    torch.manual_seed(seed)
    model = GPT(size).to(device)
    tokens, targets = windows(size.context)
    examples = (tokens.to(device), targets.to(device))
    return Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.AdamW(decayed(model), lr=size.rate, betas=(0.9, 0.95)),
        batch=next(iter(Batches(examples, size.batch, seed))),
        data=Batches(examples, size.batch, seed),
    )
