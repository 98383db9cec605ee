"""BERT: a bidirectional transformer encoder that fills in masked words.

Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding" (arXiv 1810.04805): three embeddings, layer norm after each sublayer, query,
key and value as linears of their own, a GELU MLP four times as wide, and masked words predicted by
the table of word embeddings, at the masked positions only. The paper's second task, to tell whether
two sentences follow each other, is left out; each window counts as two segments.

``SIZE=full`` has the shape of BERT-base (110 M parameters, 30,522 words) and, as most of the
paper's pre-training, 128 words per sequence; ``SIZE=small`` (default) is the same code, small
enough for two CPU cores. Both read the Python manual in the standard library's `pydoc_data.topics`
as words (so losses differ between Python versions); most ids of the full vocabulary never occur.

Environment: ``SIZE`` (small or full), ``DEVICE`` (default cpu), ``SEED`` (default 0).
"""

from __future__ import annotations

import re
from collections import Counter
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
        vocabulary: word ids; 0 is unknown, 1 the mask.
        length: words per sequence.
        layers: encoder layers.
        heads: attention heads per layer; divides `width`.
        width: features of a word.
        batch: sequences per step.
        rate: learning rate.
        dropout: probability in the embedding, the attention weights and after each sublayer.
        masked: share of the words that is masked; the paper's 15 %.
    """

    vocabulary: int
    length: int
    layers: int
    heads: int
    width: int
    batch: int
    rate: float
    dropout: float
    masked: float = 0.15


SMALL = Config(2048, length=64, layers=3, heads=4, width=128, batch=16, rate=1e-3, dropout=0.0)
FULL = Config(30_522, length=128, layers=12, heads=12, width=768, batch=64, rate=1e-4, dropout=0.1)
SIZES = {"small": SMALL, "full": FULL}

UNKNOWN, MASK, FIRST_WORD = 0, 1, 2


class Attention(nn.Module):
    """Multi-head self-attention in both directions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.project = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map FP32 ``[N, T, width]`` to the same shape; each word sees every word."""
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )  # each [N, heads, T, width / heads]
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0
        )
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """Attention, then an MLP; each is added to its input, and the sum is normalised."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-12)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
        )
        self.norm2 = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map FP32 ``[N, T, width]`` to the same shape."""
        x = self.norm1(x + self.dropout(self.attention(x)))
        out: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return out


class Bert(nn.Module):
    """Embeddings, encoder layers, and the word embeddings again as output matrix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Embedding(config.length, config.width)
        self.segments = nn.Embedding(2, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.Sequential(*(Layer(config) for _ in range(config.layers)))
        self.transform = nn.Sequential(
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.LayerNorm(config.width, eps=1e-12),
        )
        self.head = nn.Linear(config.width, config.vocabulary)
        self.head.weight = self.words.weight
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, words: Tensor, asked: Tensor) -> Tensor:
        """Map int64 words ``[N, T]`` to FP32 logits ``[N, M, vocabulary]``.

        Args:
            words: the words, some of them masked.
            asked: int64 ``[N, M]``, the positions of the words to predict.
        """
        length = words.shape[1]
        places = torch.arange(length, device=words.device)
        segments = (places >= length // 2).long()
        x = self.words(words) + self.places(places) + self.segments(segments)
        x = self.layers(self.dropout(self.norm(x)))
        x = x.gather(1, asked[:, :, None].expand(-1, -1, x.shape[2]))
        logits: Tensor = self.head(self.transform(x))
        return logits


def loss(model: nn.Module, words: Tensor, asked: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of the masked words; targets int64 ``[N, M]``."""
    return nn.functional.cross_entropy(model(words, asked).flatten(0, 1), targets.flatten())


def windows(config: Config, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return masked words ``[windows, T]``, masked positions and their words ``[windows, M]``.

    A word is a lower-cased identifier or a run of punctuation. Ids are in order of frequency; words
    too rare for the vocabulary are unknown. Each masked word is replaced by the mask; the paper
    leaves a tenth of them unchanged and replaces another tenth by random words.
    """
    text = "\n\n".join(topics[name] for name in sorted(topics))
    found = re.findall(r"\w+|[^\w\s]+", text.lower())
    known = [word for word, _ in Counter(found).most_common(config.vocabulary - FIRST_WORD)]
    ids = {word: number for number, word in enumerate(known, start=FIRST_WORD)}
    stream = torch.tensor([ids.get(word, UNKNOWN) for word in found])
    whole = stream[: len(stream) // config.length * config.length].view(-1, config.length)
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(config.masked * config.length))
    asked = torch.rand(whole.shape, generator=generator).argsort(1)[:, :count].sort(1).values
    return whole.scatter(1, asked, MASK), asked, whole.gather(1, asked)


def workload(*, config: Config | None = None, seed: int | None = None) -> Workload:
    """Return the training program; arguments that are not given come from the environment.

    Raises:
        ValueError: there is no such ``SIZE``.
    """
    size, seed, device = chosen(SIZES, config, seed)
    torch.manual_seed(seed)
    model = Bert(size).to(device)
    examples = tuple(example.to(device) for example in windows(size, seed))
    return Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.AdamW(model.parameters(), lr=size.rate, weight_decay=0.01),
        batch=next(iter(Batches(examples, size.batch, seed))),
        data=Batches(examples, size.batch, seed),
    )
