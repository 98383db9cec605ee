"""A speech net: strided convolutions on a spectrogram, bidirectional GRU, one label per frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpcompile import Workload

LETTERS = 29


class Speech(nn.Module):
    """Spectrograms ``[N, T, F]`` to ``[N, T/2, letters]``, after arXiv 1512.02595."""

    def __init__(self, bins: int = 32, width: int = 48) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, 16, (5, 5), (2, 2), 2, bias=False),
            nn.BatchNorm2d(16), nn.Hardtanh(0, 20),
            nn.Conv2d(16, 16, (5, 5), (2, 1), 2, bias=False),
            nn.BatchNorm2d(16), nn.Hardtanh(0, 20),
        )  # fmt: skip
        self.gru = nn.GRU(16 * bins // 4, width, 2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, LETTERS)

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = self.front(spectrogram.transpose(1, 2).unsqueeze(1))
        x, _ = self.gru(x.flatten(1, 2).transpose(1, 2))
        scores: Tensor = self.head(self.norm(x)).log_softmax(-1)
        return scores


def aligned(model: nn.Module, spectrogram: Tensor, letters: Tensor) -> Tensor:
    """Return the loss of labels ``[N, T/2]`` that are aligned with the frames.

    CTC would need no alignment, but torch has no fake kernel for it, so it cannot be captured.
    """
    return nn.functional.nll_loss(model(spectrogram).flatten(0, 1), letters.flatten())


def gru_speech() -> Workload:
    """Spectrograms of 24 frames, a letter for every second of them."""
    torch.manual_seed(0)
    model = Speech()
    batch = (torch.randn(4, 24, 32), torch.randint(LETTERS, (4, 12)))
    return Workload(
        model, batch, aligned, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    )
