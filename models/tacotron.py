"""A recurrent attention decoder over a text, in the shape of Tacotron 2.

Shen et al., "Natural TTS Synthesis by Conditioning WaveNet on Mel Spectrogram Predictions" (arXiv
1712.05884): characters through convolutions and a bidirectional layer, here a GRU as in the first
Tacotron; a decoder of two LSTM cells that attends to them with location-sensitive attention and
makes one frame of a spectrogram per step, each from the frame before. It has no post-net and no
stop token. The decoder is a Python loop of fixed length, so a training step has very many very
small kernels.

There is no speech here. The text is the Python manual in the standard library's `pydoc_data.topics`
(so losses differ between Python versions), and the frames to predict are made from it: each letter
has its own chord for a fixed number of frames.

``SIZE=full`` has the paper's widths and a short utterance; ``SIZE=small`` (default) is the same
code, small enough for two CPU cores.

Environment: ``SIZE`` (small or full), ``DEVICE`` (default cpu), ``SEED`` (default 0).
"""

from __future__ import annotations

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
        width: features of a character; even.
        state: cells of a decoder layer.
        attention: features in which attention compares characters with the state.
        prenet: features of the frame before.
        bands: numbers of a frame.
        letters: characters per text.
        frames: frames per text, and so steps of the decoder; a multiple of `letters`, or less.
        convolutions: layers of the encoder.
        filters: features of the earlier attention weights.
        batch: texts per step.
        rate: learning rate.
    """

    width: int
    state: int
    attention: int
    prenet: int
    bands: int
    letters: int
    frames: int
    convolutions: int
    filters: int
    batch: int
    rate: float = 1e-3


SMALL = Config(
    width=32, state=64, attention=32, prenet=32, bands=20, letters=12, frames=12,
    convolutions=2, filters=8, batch=16, rate=3e-3,
)  # fmt: skip
FULL = Config(
    width=512, state=1024, attention=128, prenet=256, bands=80, letters=24, frames=24,
    convolutions=3, filters=32, batch=8,
)  # fmt: skip
SIZES = {"small": SMALL, "full": FULL}

CHARACTERS = 128
"""ASCII; every other character counts as 0."""

TEXTS = 2048


class Encoder(nn.Module):
    """Embedding, convolutions over the text, bidirectional GRU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.embedding = nn.Embedding(CHARACTERS, width)
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(width, width, 5, padding=2, bias=False),
                    nn.BatchNorm1d(width),
                    nn.ReLU(),
                )
                for _ in range(config.convolutions)
            )
        )
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, text: Tensor) -> Tensor:
        """Map int64 ``[N, L]`` to FP32 ``[N, L, width]``."""
        x = self.convolutions(self.embedding(text).transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.gru(x)[0]
        return out


class Attention(nn.Module):
    """Location-sensitive attention (Chorowski et al., arXiv 1506.07503)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.query = nn.Linear(config.state, config.attention, bias=False)
        self.places = nn.Conv1d(2, config.filters, 31, padding=15, bias=False)
        self.place = nn.Linear(config.filters, config.attention, bias=False)
        self.energy = nn.Linear(config.attention, 1, bias=False)

    def forward(self, state: Tensor, keys: Tensor, before: Tensor) -> Tensor:
        """Return the attention weights ``[N, L]`` of a text's characters.

        Args:
            state: the decoder's state, ``[N, state]``.
            keys: the text's keys, ``[N, L, attention]``.
            before: the last weights and the sum of all weights, ``[N, 2, L]``.
        """
        where = self.place(self.places(before).transpose(1, 2))
        mixed = torch.tanh(self.query(state).unsqueeze(1) + keys + where)
        out: Tensor = self.energy(mixed).squeeze(2).softmax(1)
        return out


class Tacotron(nn.Module):
    """Encoder and decoder; every frame is made from the true frame before it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.keys = nn.Linear(config.width, config.attention, bias=False)
        self.prenet = nn.Sequential(
            nn.Linear(config.bands, config.prenet),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(config.prenet, config.prenet),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.attention = Attention(config)
        self.first = nn.LSTMCell(config.prenet + config.width, config.state)
        self.second = nn.LSTMCell(config.state + config.width, config.state)
        self.frame = nn.Linear(config.state + config.width, config.bands)

    def forward(self, text: Tensor, frames: Tensor) -> Tensor:
        """Map int64 ``[N, L]`` and FP32 frames ``[N, T, bands]`` to predicted frames."""
        memory = self.encoder(text)
        keys = self.keys(memory)
        count, letters, width = memory.shape
        # The frame before the first is silence.
        heard = self.prenet(nn.functional.pad(frames[:, :-1], (0, 0, 1, 0)))
        first = second = (memory.new_zeros(count, self.config.state),) * 2
        context = memory.new_zeros(count, width)
        weights = total = memory.new_zeros(count, letters)
        made = []
        for step in range(self.config.frames):
            first = self.first(torch.cat([heard[:, step], context], 1), first)
            weights = self.attention(first[0], keys, torch.stack([weights, total], 1))
            total = total + weights
            context = (weights.unsqueeze(1) @ memory).squeeze(1)
            second = self.second(torch.cat([first[0], context], 1), second)
            made.append(self.frame(torch.cat([second[0], context], 1)))
        return torch.stack(made, 1)


def loss(model: nn.Module, text: Tensor, frames: Tensor) -> Tensor:
    """Return the mean squared error of the frames, FP32 ``[N, T, bands]``."""
    return nn.functional.mse_loss(model(text, frames), frames)


def utterances(config: Config, seed: int) -> tuple[Tensor, Tensor]:
    """Return texts, int64 ``[2048, letters]``, and their frames, FP32 ``[2048, frames, bands]``."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    codes = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    stream = torch.where(codes < CHARACTERS, codes, 0)[: TEXTS * config.letters]
    texts = stream.view(TEXTS, config.letters)
    generator = torch.Generator().manual_seed(seed)
    chords = torch.randn(CHARACTERS, config.bands, generator=generator)
    each = max(1, config.frames // config.letters)
    return texts, chords[texts].repeat_interleave(each, dim=1)[:, : config.frames]


def workload(*, config: Config | None = None, seed: int | None = None) -> Workload:
    """Return the training program; arguments that are not given come from the environment.

    Raises:
        ValueError: there is no such ``SIZE``.
    """
    size, seed, device = chosen(SIZES, config, seed)
    torch.manual_seed(seed)
    model = Tacotron(size).to(device)
    texts, frames = utterances(size, seed)
    examples = (texts.to(device), frames.to(device))
    return Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=size.rate, eps=1e-6),
        batch=next(iter(Batches(examples, size.batch, seed))),
        data=Batches(examples, size.batch, seed),
    )
