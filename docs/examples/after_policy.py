"""Proximal policy optimization on a small game, in plain PyTorch."""

import torch
from torch import nn
from torch.distributions import Categorical

import mpcompile


class Player(nn.Module):
    """A policy and a value for each state."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.Tanh())
        self.policy, self.value = nn.Linear(64, 4), nn.Linear(64, 1)

    def forward(self, state):
        """Return the distribution of the moves, and the value of the states."""
        hidden = self.body(state)
        return Categorical(logits=self.policy(hidden)), self.value(hidden).squeeze(-1)


def loss(player, state, move, before, reward):
    """Return the clipped loss of the policy, with the error of the value and the entropy."""
    moves, value = player(state)
    advantage = (reward - value).detach()
    ratio = (moves.log_prob(move) - before).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    return 0.5 * (reward - value).square().mean() - gain - 0.01 * moves.entropy().mean()


def play(player, random):
    """Return states, moves, their log-probabilities, and rewards: 1 for the largest entry."""
    state = torch.randn(256, 4, generator=random)
    with torch.no_grad():
        moves, _ = player(state)
        move = torch.multinomial(moves.probs, 1, generator=random).squeeze(1)
    reward = (move == state.argmax(1)).float()
    return state, move, moves.log_prob(move), reward


def main():
    """Play and train for twenty rounds; return the share of wrong best moves."""
    torch.manual_seed(0)
    random, player = torch.Generator().manual_seed(1), Player()
    optimizer = torch.optim.Adam(player.parameters(), lr=0.01)
    example = play(player, torch.Generator().manual_seed(2))
    step = mpcompile.compile(player, loss, optimizer, example, max_grad_norm=0.5)
    for _ in range(20):
        batch = play(player, random)
        for _ in range(4):
            step(*batch)
    state = torch.randn(4096, 4, generator=random)
    with torch.no_grad():
        return float((player(state)[0].probs.argmax(1) != state.argmax(1)).float().mean())


if __name__ == "__main__":
    print(f"wrong {main():.3f}")
