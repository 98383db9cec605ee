"""ONNX models whose integers are large: converted right, and compared on integers as large."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from programs.onnx_models import parsed
from programs.values import PROGRAMS, Program, rotary

from mpcompile import Policy
from mpcompile.onnx.comparison import compare
from mpcompile.onnx.made_up.far_inputs import LARGEST, LONG, far_inputs
from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx.sessions import run, session_of
from mpcompile.search.onnx_tune import OnnxSearch, keep_few, tune_onnx


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


def made_up(text: str) -> list[dict[str, np.ndarray]]:
    return list(far_inputs(ir.from_proto(parsed(text))))


def test_a_mask_stays_zeros_and_ones() -> None:
    text = """g (int64[2,64] attention, int64[2,64] position, float[8] w) => (float[2,64,8] y)
     <float one = {1}, float most = {-3.4e38}, int64[1] last = {2}> {
       a = Cast <to = 1> (attention)
       wide = Unsqueeze (a, last)
       off = Sub (one, wide)
       mask = Mul (off, most)
       p = Cast <to = 1> (position)
       column = Unsqueeze (p, last)
       angles = Mul (column, w)
       waves = Sin (angles)
       y = Add (waves, mask)
    }"""
    (made,) = made_up(text)
    assert set(made["attention"].flatten().tolist()) == {0, 1}
    assert made["position"].max() > LARGEST / 2


@pytest.mark.parametrize(
    ("line", "most"),
    [
        ("u = Clip (t, zero, last)", 1000),
        ("u = Min (t, last)", 1000),
        ("less = Less (t, last) u = Where (less, t, last)", 1998),
        ("u = Identity (t)", LARGEST),
        ("u = Reshape (t, shape)", LARGEST),
    ],
)
def test_times_go_up_to_the_constants_they_meet(line: str, most: int) -> None:
    text = f"""g (int64[400] t, float[400] x) => (float[400] y)
     <int64 zero = {{0}}, int64 last = {{999}}, int64[1] shape = {{400}}> {{
       {line}
       f = Cast <to = 1> (u)
       y = Mul (f, x)
    }}"""
    (made,) = made_up(text)
    assert 0.9 * most < made["t"].max() < most


def test_ids_of_every_kind_of_table_stay_in_it() -> None:
    text = """g (
       int64[2,400] position, float[2,3,400,16] x, float[50,8] c, float[50,8] s, int64[9] k
     ) => (float[2,3,400,16] y, float[9,30] z) <int64 depth = {30}, float[2] ends = {0, 1}> {
       y = RotaryEmbedding (x, c, s, position)
       z = OneHot (k, depth, ends)
    }"""
    (made,) = made_up(text.replace("\n", " "))
    assert 40 < made["position"].max() < 50
    assert 15 < made["k"].max() < 30


LENGTH = """g (int64[B,N] ids, float[8] w) => (float[N,8] y)
 <int64 zero = {0}, int64 one = {1}, int64[1] last = {1}> {
   sizes = Shape (ids)
   n = Gather (sizes, one)
   p = Range (zero, n, one)
   f = Cast <to = 1> (p)
   column = Unsqueeze (f, last)
   angles = Mul (column, w)
   y = Sin (angles)
}"""


def test_a_length_of_which_positions_are_made_is_long() -> None:
    (made,) = made_up(LENGTH)
    assert made["ids"].shape == (2, LONG)
    positions = LENGTH.replace("(int64[B,N] ids,", "(int64[B,N] ids, int64[B,N] times,")
    positions = positions.replace("y = Sin (angles)", "y = Sin (angles) t = Cast <to = 1> (times)")
    long, short = made_up(positions.replace("=> (", "=> (float[B,N] t, "))
    assert long["times"].shape == (2, LONG)
    assert short["times"].shape == (2, 2)


def test_a_length_that_only_counts_rows_of_a_table_stays_short() -> None:
    text = """g (int64[B,N] ids, float[600,8] table) => (float[N,8] y)
     <int64 zero = {0}, int64 one = {1}> {
       sizes = Shape (ids)
       n = Gather (sizes, one)
       p = Range (zero, n, one)
       y = Gather (table, p)
    }"""
    assert made_up(text) == []


def test_a_wrong_override_gets_one_that_mends_it() -> None:
    whole, _ = exported(lambda: rotary(500))
    model, policy = ir.from_proto(whole), Policy(half=("op:Sin", "op:Cos", "op:Mul", "op:Concat"))
    policy = replace(policy, half=(*policy.half, "op:Einsum"))
    done = rewrite(whole, policy)
    found = compare(model, done)
    assert not found.passed

    tuned = keep_few(OnnxSearch(model, policy), done)
    assert tuned is not None
    assert tuned.kept
    full = tuple(f"node:{op}" for op in tuned.kept)
    policy = replace(policy, full=full)
    assert compare(model, rewrite(whole, policy)).passed
    assert tune_onnx(whole, policy=policy).kept == ()
