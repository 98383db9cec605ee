"""Transformers: encoder-decoder, BERT, and a layer of experts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mpcompile import Workload

F = nn.functional
VOCABULARY, WIDTH, HEADS, LENGTH, BATCH = 64, 48, 4, 16, 4


class EncoderDecoder(nn.Module):
    """arXiv 1706.03762 in PyTorch's own modules: post-norm layers, sine positions, dropout."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.transformer = nn.Transformer(WIDTH, HEADS, 2, 2, 4 * WIDTH, batch_first=True)
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0  # with it a CPU has no fused kernel, and all is FP32
        self.head = nn.Linear(WIDTH, VOCABULARY)
        angle = torch.arange(LENGTH)[:, None] / 10_000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
        self.register_buffer("positions", torch.cat([angle.sin(), angle.cos()], dim=1))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def _embed(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.embedding(tokens) * math.sqrt(WIDTH) + self.positions
        return result

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        # With is_causal, PyTorch does not read the mask to find out whether it is causal.
        out = self.transformer(
            self._embed(source), self._embed(target), tgt_mask=self.mask, tgt_is_causal=True
        )
        logits: Tensor = self.head(out)
        return logits


def translate(model: nn.Module, source: Tensor, target: Tensor, following: Tensor) -> Tensor:
    """Return the cross entropy of the next target token, smoothed."""
    logits = model(source, target).flatten(0, 1)
    return F.cross_entropy(logits, following.flatten(), label_smoothing=0.1)


class SelfAttention(nn.Module):
    """Attention of BERT, with scores, mask, softmax and dropout written out."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)
        return heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (self._split(f(x)) for f in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + mask
        weights = self.dropout(scores.softmax(-1))
        out: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return out


class BertLayer(nn.Module):
    """Attention and a GELU MLP, each with dropout, skip and layer norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SelfAttention()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        result: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return result


class Bert(nn.Module):
    """arXiv 1810.04805: three embeddings, encoder, masked tokens by the tied table."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(0.1)
        self.layers = nn.ModuleList(BertLayer() for _ in range(2))
        self.transform = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))
        for table in (self.tokens, self.places, self.segments):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, tokens: Tensor, segments: Tensor, real: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.places(places) + self.segments(segments)
        x = self.dropout(self.norm(x))
        mask = (1.0 - real[:, None, None, :]) * -10_000.0
        for layer in self.layers:
            x = layer(x, mask)
        return F.linear(self.transform(x), self.tokens.weight, self.bias)


def masked_tokens(
    model: nn.Module, tokens: Tensor, segments: Tensor, real: Tensor, targets: Tensor
) -> Tensor:
    """Return the cross entropy of the targets that are not -100."""
    return F.cross_entropy(model(tokens, segments, real).flatten(0, 1), targets.flatten())


class Experts(nn.Module):
    """Top 2 of 4 MLPs per token, weighted by a softmax gate, arXiv 1701.06538.

    Every expert sees every token, as in a dense dispatch; those not chosen have the weight 0.
    """

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, experts, bias=False)
        self.enter = nn.Parameter(torch.randn(experts, WIDTH, 2 * WIDTH) / math.sqrt(WIDTH))
        self.leave = nn.Parameter(torch.randn(experts, 2 * WIDTH, WIDTH) / math.sqrt(2 * WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixture ``[N, T, width]`` and the 0-d loss that balances the experts."""
        likely = self.gate(x).softmax(-1)
        best, chosen = likely.topk(2, dim=-1)
        best = best / best.sum(-1, keepdim=True)
        weights = torch.zeros_like(likely).scatter(-1, chosen, best)
        hidden = F.silu(torch.einsum("ntw,ewh->enth", x, self.enter))
        out = torch.einsum("enth,ehw->entw", hidden, self.leave)
        mixed = torch.einsum("nte,entw->ntw", weights, out)
        used = (weights > 0).to(likely.dtype).mean((0, 1))
        return mixed, (used * likely.mean((0, 1))).sum() * likely.shape[-1]


class ExpertsNet(nn.Module):
    """Two pre-norm blocks of causal attention and experts."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(5))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.experts = nn.ModuleList(Experts() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def _attend(self, x: Tensor, block: int) -> Tensor:
        parts = self.qkv[block](x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind()
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tokens(tokens)
        balance = torch.zeros((), device=x.device)
        for block in range(2):
            x = x + self._attend(self.norms[2 * block](x), block)
            mixed, extra = self.experts[block](self.norms[2 * block + 1](x))
            x, balance = x + mixed, balance + extra
        return self.head(self.norms[4](x)), balance


def balanced(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy plus a hundredth of the balance."""
    logits, balance = model(tokens)
    result: Tensor = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + 0.01 * balance
    return result


def _tokens(count: int) -> tuple[Tensor, ...]:
    return tuple(torch.randint(VOCABULARY, (BATCH, LENGTH)) for _ in range(count))


def encoder_decoder() -> Workload:
    """Translate 4 sequences of 16 tokens."""
    torch.manual_seed(0)
    model = EncoderDecoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98))
    return Workload(model, _tokens(3), translate, optimizer)


def bert() -> Workload:
    """Fill in masked tokens of 4 padded sequences."""
    torch.manual_seed(0)
    model = Bert()
    tokens, targets = _tokens(2)
    segments = (torch.arange(LENGTH) >= LENGTH // 2).long().expand(BATCH, -1).contiguous()
    real = (torch.arange(LENGTH) < torch.tensor([[16], [12], [14], [9]])).float()
    targets = torch.where(torch.rand(BATCH, LENGTH) < 0.5, targets, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return Workload(model, (tokens, segments, real, targets), masked_tokens, optimizer)


def mixture_of_experts() -> Workload:
    """Predict the next token with experts in place of MLPs."""
    torch.manual_seed(0)
    model = ExpertsNet()
    return Workload(model, _tokens(2), balanced, torch.optim.AdamW(model.parameters(), lr=1e-3))
