"""The orders in which the passes run on a program of torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx

from mpcompile.passes.forward.chunk_head import ChunkHead
from mpcompile.passes.forward.clean_casts import clean_casts
from mpcompile.passes.forward.insert_casts import InsertCasts
from mpcompile.passes.forward.join_matmuls import JoinMatmuls
from mpcompile.passes.forward.keep_cudnn_rnn import KeepCudnnRnn
from mpcompile.passes.forward.pad_vocabulary import PadVocabulary
from mpcompile.passes.gradient.recompute_casts import recompute_casts
from mpcompile.passes.gradient.save_narrow import save_narrow
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
from mpcompile.plan.plan import Plan
from mpcompile.step.arena import ArenaPosition
from mpcompile.step.graph import StepGraph
from mpcompile.step.loop import PLAIN, Loop
from mpcompile.step.loss_scale import LossScale


def forward_passes(plan: Plan) -> tuple[Pass[fx.GraphModule], ...]:
    """Return what runs on the forward graph; nothing if the plan has no cast."""
    if not plan.casts:
        return ()
    return (
        InsertCasts(plan),
        clean_casts,  # constants made in FP32 and cast are made narrow at once
    )


OPTIONAL = ("join_matmuls", "pad_vocabulary", "chunk_head")
"""Passes that can be switched off: without them a step computes the same, only more slowly."""


def matmul_passes(
    positions: Mapping[str, ArenaPosition], without: Collection[str] = ()
) -> tuple[Pass[fx.GraphModule], ...]:
    """Return what gives the Tensor Core matmuls of the shapes it likes; runs when casts stand.

    Args:
        positions: per placeholder of a trained weight in a flat arena, where it lies.
        without: the names of passes to leave out.
    """
    order = (
        JoinMatmuls(positions),
        PadVocabulary(positions),  # what was joined is left as it is
        ChunkHead(),  # takes padded heads too
    )
    return tuple(rewrite for rewrite in order if pass_name(rewrite) not in without)


BEFORE_AUTOGRAD: tuple[Pass[fx.GraphModule], ...] = (
    KeepCudnnRnn(),  # knows no precision, so it comes when the casts stand
)
"""What turns a forward graph into one that can be differentiated on fake tensors."""

GRADIENT: tuple[Pass[fx.GraphModule], ...] = (
    clean_casts,  # autograd casts again what forward has cast already
    save_narrow,  # before recompute_casts, which then widens what is stored
    recompute_casts,
    clean_casts,  # two recomputed casts of one tensor become one
)
"""What runs on the gradient graph, before state is bound to it."""


def training_passes(scale: LossScale, loop: Loop = PLAIN) -> tuple[Pass[StepGraph], ...]:
    """Return what runs on the step graph."""
    return (
        hoist_weight_casts,  # decides which weights have a working copy, so which lie first
        hoist_read_casts,
        lay_out_copies,  # moves weights within the arenas
        ReduceInBackward(loop),  # in the gradient graph, each gradient for itself
        pack_gradients,  # in the order of the arenas
        AccumulateGradients(loop, scale),  # what is packed
        ReducePacked(loop),  # once an update
        AverageBuffers(loop),
        ScaleLoss(scale),  # unscales the packed FP32 gradients
        ClipGradients(loop),  # what is unscaled
        GateUpdate(scale),  # looks at them unscaled and unclipped; gates what was written above
        ShareNorms(loop),  # what clipping and the gate look at
        AdjustScale(scale),  # its own writes are not gated
        count_steps,
        report_outcome,
        GatherSlices(loop),  # what is gated
        drop_dead,
    )
