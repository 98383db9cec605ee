"""The orders in which the passes run on a program of torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from mpcompile.passes.forward.chunk_head import ChunkHead
from mpcompile.passes.forward.clean_casts import clean_casts
from mpcompile.passes.forward.insert_casts import InsertCasts
from mpcompile.passes.forward.join_matmuls import JoinMatmuls
from mpcompile.passes.forward.keep_cudnn_rnn import KeepCudnnRnn
from mpcompile.passes.forward.narrow_backward import narrow_backward
from mpcompile.passes.forward.pad_vocabulary import PadVocabulary
from mpcompile.passes.gradient.accumulate_in_full import accumulate_in_full
from mpcompile.passes.gradient.join_weight_gradients import join_weight_gradients
from mpcompile.passes.gradient.recompute_casts import recompute_casts
from mpcompile.passes.gradient.save_narrow import save_narrow
from mpcompile.passes.gradient.sum_in_full import sum_in_full
from mpcompile.passes.processes.average_buffers import AverageBuffers
from mpcompile.passes.processes.gather_slices import GatherSlices
from mpcompile.passes.processes.reduce_in_backward import ReduceInBackward
from mpcompile.passes.processes.reduce_packed import ReducePacked
from mpcompile.passes.processes.share_norms import ShareNorms
from mpcompile.passes.runner import Pass, pass_name
from mpcompile.passes.step.accumulate_gradients import AccumulateGradients
from mpcompile.passes.step.adjust_scale import AdjustScale
from mpcompile.passes.step.clip_gradients import ClipGradients
from mpcompile.passes.step.count_steps import count_steps
from mpcompile.passes.step.drop_dead import drop_dead
from mpcompile.passes.step.gate_update import GateUpdate
from mpcompile.passes.step.hoist_read_casts import hoist_read_casts
from mpcompile.passes.step.hoist_weight_casts import hoist_weight_casts
from mpcompile.passes.step.lay_out_copies import lay_out_copies
from mpcompile.passes.step.pack_gradients import pack_gradients
from mpcompile.passes.step.report_outcome import report_outcome
from mpcompile.passes.step.scale_loss import ScaleLoss
from mpcompile.passes.step.store_written import store_written
from mpcompile.plan.plan import Plan
from mpcompile.step.arena import ArenaPosition
from mpcompile.step.graph import StepGraph
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.loss_scale import LossScale


def forward_passes(plan: Plan) -> tuple[Pass[fx.GraphModule], ...]:
    """Return the passes of the forward graph; none if the plan has no cast."""
    if not plan.casts:
        return ()
    return (
        InsertCasts(plan),
        clean_casts,  # constants made in FP32 and cast are made narrow at once
        narrow_backward,  # reads the dtypes that the casts have set
    )


OPTIONAL = ("join_matmuls", "pad_vocabulary", "chunk_head")
"""Passes that can be switched off: without them a step computes the same, only more slowly."""


def matmul_passes(
    positions: Mapping[str, ArenaPosition], without: Collection[str] = ()
) -> tuple[Pass[fx.GraphModule], ...]:
    """Return the passes that give matmuls the shapes a Tensor Core is fast for; casts come first.

    Args:
        positions: per placeholder of a trained weight in a flat arena, its position.
        without: the names of passes to leave out.
    """
    order = (
        JoinMatmuls(positions),
        PadVocabulary(positions),  # leaves joined weights as they are
        ChunkHead(),  # takes padded heads too
    )
    return tuple(rewrite for rewrite in order if pass_name(rewrite) not in without)


BEFORE_AUTOGRAD: tuple[Pass[fx.GraphModule], ...] = (
    KeepCudnnRnn(),  # knows no precision, so it runs after the casts are inserted
)
"""The passes that make a forward graph differentiable on fake tensors."""

GRADIENT: tuple[Pass[fx.GraphModule], ...] = (
    clean_casts,  # autograd casts again what forward has cast already
    join_weight_gradients,  # before sum_in_full: what is one matmul is no sum
    sum_in_full,  # before save_narrow: it removes casts of sums
    accumulate_in_full,
    save_narrow,  # before recompute_casts, which then widens the stored copies
    recompute_casts,
    clean_casts,  # two recomputed casts of one tensor become one
)
"""The passes of the gradient graph; they run before state is bound to it."""


def training_passes(scale: LossScale, loop: Loop = PLAIN) -> tuple[Pass[StepGraph], ...]:
    """Return the passes of the step graph."""
    return (
        hoist_weight_casts,  # decides which weights have a working copy and come first in an arena
        hoist_read_casts,
        lay_out_copies,  # moves weights within the arenas
        store_written,  # at the final offsets, before anything reads the masters' next values
        ReduceInBackward(loop),  # in the gradient graph, before gradients are packed
        pack_gradients,  # in the order of the arenas
        AccumulateGradients(loop, scale),  # adds packed gradients
        ReducePacked(loop),  # once per update
        AverageBuffers(loop),
        ScaleLoss(scale),  # unscales the packed FP32 gradients
        ClipGradients(loop),  # clips unscaled gradients
        GateUpdate(scale),  # checks unscaled, unclipped gradients; gates the writes above
        ShareNorms(loop),  # the norms that clipping and the gate read
        AdjustScale(scale),  # its own writes are not gated
        count_steps,
        report_outcome,
        GatherSlices(loop),  # gathers gated masters and copies
        drop_dead,
    )
