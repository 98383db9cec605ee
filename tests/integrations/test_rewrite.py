"""`mpcompile.rewrite`: the forward graph inside another tool's export pipeline."""

from __future__ import annotations

import copy

import torch
from torch import nn

import mpcompile
from mpcompile.program.graph_text import graph_text


def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32), nn.Softmax(-1)
    )
    return torch.export.export(model, (torch.randn(4, 16),), strict=False)


def test_signature_and_dtypes_stay() -> None:
    before = program()
    after = mpcompile.rewrite(before)
    assert after.graph_signature == before.graph_signature
    x = torch.randn(4, 16)
    assert after.module()(x).dtype is torch.float32
    assert all(value.dtype is torch.float32 for value in after.state_dict.values())


def test_an_output_that_a_tensor_core_makes_leaves_in_fp32() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = self.first(x)
            return {"hidden": hidden, "again": hidden, "out": self.second(hidden)}

    before = torch.export.export(Two(), (torch.randn(2, 4),), strict=False)
    after = mpcompile.rewrite(before)
    assert after.graph_signature.input_specs == before.graph_signature.input_specs
    found, expected = after.module()(x := torch.randn(2, 4)), before.module()(x)
    assert {key: value.dtype for key, value in found.items()} == dict.fromkeys(
        ("hidden", "again", "out"), torch.float32
    )
    for key, value in expected.items():
        assert torch.allclose(found[key], value, atol=2.0**-8)
    twice = mpcompile.rewrite(after)
    assert graph_text(twice.graph) == graph_text(after.graph)


def test_the_result_is_close_and_rounded_to_fp16() -> None:
    before = program()
    after = mpcompile.rewrite(before)
    x = torch.randn(4, 16)
    expected = copy.deepcopy(before.module()).double()(x.double())
    found = after.module()(x)
    assert not torch.equal(found, before.module()(x))
    assert (found - expected).abs().max() < 2.0**-9


def test_the_given_program_is_not_changed() -> None:
    before = program()
    text = graph_text(before.graph)
    mpcompile.rewrite(before)
    assert graph_text(before.graph) == text


def test_the_fp32_policy_changes_nothing() -> None:
    before = program()
    after = mpcompile.rewrite(before, policy=mpcompile.FULL_PRECISION)
    assert graph_text(after.graph) == graph_text(before.graph)


def test_a_rewritten_program_survives_run_decompositions_and_save(tmp_path: object) -> None:
    after = mpcompile.rewrite(program())
    lowered = after.run_decompositions()
    x = torch.randn(4, 16)
    torch.testing.assert_close(lowered.module()(x), after.module()(x), rtol=2e-3, atol=2e-3)
    torch.export.save(after, f"{tmp_path}/program.pt2")


def test_a_graph_without_tensor_core_ops_comes_back_unchanged() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.ReLU(), nn.Softmax(-1))
    before = torch.export.export(model, (torch.randn(2, 8),), strict=False)
    assert graph_text(mpcompile.rewrite(before).graph) == graph_text(before.graph)


class TwoHeads(nn.Module):
    """A net that works in place, and whose two results are cast last."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 5)])
        self.statistics = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.statistics(nn.functional.relu(self.body(x), inplace=True))
        return self.heads[0](h), self.heads[1](h)


def test_a_program_that_ends_in_a_matmul_and_works_in_place() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    before = torch.export.export(TwoHeads(), (x,), strict=False)
    after = mpcompile.rewrite(before)
    expected, found = copy.deepcopy(before).module(), after.module()
    for one, other in zip(expected(x), found(x), strict=True):
        assert other.dtype is torch.float32
        assert 0 < (one - other).abs().max() < 2.0**-8
    # The buffers that the program updates are still updated, by the mean of what was rounded.
    for (name, one), (_, other) in zip(
        expected.named_buffers(), found.named_buffers(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, msg=name)
