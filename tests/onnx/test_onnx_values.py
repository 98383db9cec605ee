"""ONNX models whose integers are large: converted right, and compared on integers as large."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from programs.values import PROGRAMS, Program, rotary

from mpcompile import Policy
from mpcompile.onnx.comparison import compare
from mpcompile.onnx.far_inputs import LARGEST, far_inputs
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx.sessions import run, session_of


def exported(make: Program) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    model, batch = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model.eval(), batch, dynamo=True, verbose=False)
    assert program is not None
    whole = program.model_proto
    names = [given.name for given in whole.graph.input]
    return whole, {name: value.numpy() for name, value in zip(names, batch, strict=True)}


def result(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with session_of(model) as session:
        found = run(session, feeds)
    return np.asarray(next(iter(found.values())), dtype=np.float64)


FAR = {
    "positions": lambda: rotary(8000),
    "far positions": lambda: rotary(1_000_000),
    "times": PROGRAMS["diffusion_times"],
    "seconds": PROGRAMS["seconds_since_1970"],
    "a matmul": PROGRAMS["angles_by_a_matmul"],
}


@pytest.mark.parametrize("name", FAR)
def test_a_converted_model_is_right_far_out(name: str) -> None:
    whole, feeds = exported(FAR[name])
    exact = result(ir.from_proto(whole), feeds)
    ours = result(rewrite(whole, Policy()).model, feeds)
    assert np.abs(ours - exact).max() <= 2.0**-9 * np.abs(exact).max()


def test_the_comparison_makes_up_integers_that_show_the_fault() -> None:
    whole, _ = exported(lambda: rotary(500))
    model = ir.from_proto(whole)
    right = compare(model, rewrite(whole, Policy()))
    assert right.batches == 2
    assert right.passed
    narrowed = Policy(half=("op:Sin", "op:Cos", "op:Mul", "op:Concat", "op:Einsum"))
    assert not compare(model, rewrite(whole, narrowed)).passed


class Table(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = torch.nn.Embedding(300, 8), torch.nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.table(ids) * times[:, None].float())
        return found


def test_ids_stay_in_the_table_and_times_go_far() -> None:
    ids, times = torch.randint(0, 300, (40,)), torch.randint(0, 1000, (40,))
    whole, _ = exported(lambda: (Table(), (ids, times)))
    (made,) = far_inputs(ir.from_proto(whole))
    assert 200 < made["ids"].max() < 300
    assert LARGEST / 2 < made["times"].max() < LARGEST


def test_without_integers_there_is_nothing_to_make_up() -> None:
    whole, _ = exported(PROGRAMS["distances_far_from_the_origin"])
    assert not list(far_inputs(ir.from_proto(whole)))
