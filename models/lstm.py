"""LSTM language model with projected states, over words.

The shape is the "big LSTM" of Jozefowicz et al., "Exploring the Limits of Language Modeling" (arXiv
1602.02410): embedding, two LSTM layers with wide cells and outputs that are projected down before
they recur, dropout before and after each layer, forget gates that start open, Adagrad.
Unlike the paper, which keeps state between steps and samples its softmax over 793,471 words, each
batch here starts from zero state, and the vocabulary is small enough for the whole softmax.

``SIZE=full`` has the paper's two layers of 8192 cells with projection 1024; ``SIZE=small``
(default) is the same code, small enough for two CPU cores. Both read the Python manual in the
standard library's `pydoc_data.topics` (so losses differ between Python versions). It has little
more than 4,000 different words, so most ids of the full vocabulary never occur.

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
        vocabulary: word ids; id 0 is ``<unk>``. A multiple of 64, so that the output matrix
            divides into whole tiles of a tensor core's matmul.
        embedding: features of a word.
        state: cells of an LSTM layer.
        projection: features that a layer passes to the next layer and the next word.
        unroll: words per sequence.
        batch: sequences per step.
        rate: learning rate.
        layers: LSTM layers.
        dropout: probability before and after each layer.
    """

    vocabulary: int
    embedding: int
    state: int
    projection: int
    unroll: int
    batch: int
    rate: float
    layers: int = 2
    dropout: float = 0.1


SMALL = Config(4096, embedding=96, state=192, projection=96, unroll=20, batch=32, rate=0.02)
# Adagrad's first step moves every weight by the whole rate, even if its gradient is small, and the
# moves of the 8192 weights of one output add up. The paper's 0.2 is for other gradient scales.
FULL = Config(32_000, embedding=1024, state=8192, projection=1024, unroll=20, batch=128, rate=2e-4)
SIZES = {"small": SMALL, "full": FULL}


class LanguageModel(nn.Module):
    """Embedding, LSTM layers with projection, linear head over the words."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        self.lstm = nn.LSTM(
            config.embedding,
            config.state,
            config.layers,
            proj_size=config.projection,
            dropout=config.dropout,
            batch_first=True,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.projection, config.vocabulary)
        nn.init.zeros_(self.head.bias)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias"):
                # PyTorch adds two biases, each with the gates i, f, g, o; one of them gives the
                # forget gates the paper's 1, so that early gradients do not vanish through time.
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih"):
                    nn.init.ones_(parameter.chunk(4)[1])

    def forward(self, words: Tensor) -> Tensor:
        """Map int64 words ``[N, T]`` to FP32 logits ``[N, T, vocabulary]``."""
        x = self.dropout(self.embedding(words))
        x, _ = self.lstm(x)
        logits: Tensor = self.head(self.dropout(x))
        return logits


def loss(model: nn.Module, words: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy; both int64 ``[N, T]``, the targets one word ahead."""
    return nn.functional.cross_entropy(model(words).flatten(0, 1), targets.flatten())


def windows(vocabulary: int, unroll: int) -> tuple[Tensor, Tensor]:
    """Return the text as int64 words and targets, both ``[windows, unroll]``.

    A word is a lower-cased identifier or a run of punctuation. Ids are in order of frequency; words
    too rare for the vocabulary have id 0, ``<unk>``.
    """
    text = "\n\n".join(topics[name] for name in sorted(topics))
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    known = [word for word, _ in Counter(words).most_common(vocabulary - 1)]
    ids = {word: number for number, word in enumerate(known, start=1)}
    stream = torch.tensor([ids.get(word, 0) for word in words])
    end = (len(stream) - 1) // unroll * unroll
    return stream[:end].view(-1, unroll), stream[1 : end + 1].view(-1, unroll)


def workload(*, config: Config | None = None, seed: int | None = None) -> Workload:
    """Return the training program; arguments that are not given come from the environment.

    Raises:
        ValueError: there is no such ``SIZE``.
    """
    size, seed, device = chosen(SIZES, config, seed)
    torch.manual_seed(seed)
    model = LanguageModel(size).to(device)
    words, targets = windows(size.vocabulary, size.unroll)
    examples = (words.to(device), targets.to(device))
    return Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.Adagrad(model.parameters(), lr=size.rate),
        batch=next(iter(Batches(examples, size.batch, seed))),
        data=Batches(examples, size.batch, seed),
    )
