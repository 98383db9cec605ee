"""A recurrent net that writes down letters from sounds of several lengths, in plain PyTorch."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import mpcompile

FRAMES = 24


class Writer(nn.Module):
    """Logarithms of the probabilities of letters at each time."""

    def __init__(self):
        super().__init__()
        self.hear = nn.LSTM(8, 32, batch_first=True, bidirectional=True)
        self.spell = nn.Linear(64, 6)

    def forward(self, sound, lengths):
        """Return the result by time, padded."""
        packed = pack_padded_sequence(sound, lengths, batch_first=True, enforce_sorted=False)
        heard, _ = pad_packed_sequence(self.hear(packed)[0], batch_first=True, total_length=FRAMES)
        return self.spell(heard).log_softmax(-1).transpose(0, 1)


def loss(writer, sound, lengths, letters, counts):
    """Return the mean loss of connectionist temporal classification of a letter."""
    return nn.functional.ctc_loss(writer(sound, lengths), letters, lengths, counts)


def batches(count, seed=1):
    """Yield sounds, their lengths, letters and their numbers: each letter is six frames long."""
    random = torch.Generator().manual_seed(seed)
    tones = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(count):
        letters = torch.randint(1, 6, (16, 4), generator=random)
        counts = torch.randint(2, 5, (16,), generator=random)
        sound = tones[letters].repeat_interleave(6, 1)
        noise = 0.3 * torch.randn(sound.shape, generator=random)
        yield sound + noise, 6 * counts, letters, counts


def main():
    """Train for seventy steps; return the loss on sounds that were not seen."""
    torch.manual_seed(0)
    writer = Writer()
    optimizer = torch.optim.Adam(writer.parameters(), lr=0.01)
    step = mpcompile.compile(writer, loss, optimizer, next(batches(1)))
    for batch in batches(70):
        step(*batch)
    with torch.no_grad():
        return float(loss(writer, *next(batches(1, seed=2))))


if __name__ == "__main__":
    print(f"loss {main():.3f}")
