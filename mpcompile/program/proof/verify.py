"""Proof on one batch: the captured graph does what the user's own program does.

Both run once from the same weights and random numbers, and must agree in loss, in every gradient,
in every written buffer and in the random state. On a CPU they normally agree bit for bit. Where
they do not, rounding decides. A gradient that differs by more than `TOLERANCE` of its size is not
yet wrong: it can be noise as a whole. The bias before a batch norm is such a case: the norm takes
the mean away, so the true gradient is zero and what FP32 computes is the rounding of its sum, which
changes with the order of the sum. So the graph then runs once more in FP64: the program may be as
far from that result as the graph in FP32 is, times `NOISE`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import fx

from mpcompile.errors import BadInput, CompileError, Unfaithful, Unverified, warn
from mpcompile.program.capture import (
    Forward,
    source_position,
)
from mpcompile.program.proof.effects import Effects, generators_kept
from mpcompile.program.proof.outcome import Outcome, Subject, of_graph, of_program
from mpcompile.program.proof.snapshot import Snapshot, TensorCopies, with_optimizer
from mpcompile.program.random_state import RandomState, random_state
from mpcompile.program.tracing.export import definition, first_line, user_position
from mpcompile.program.workload import Workload
from mpcompile.torch_private.tensors import is_fake

TOLERANCE = 1e-4
"""The difference that FP32 may have, as a part of a tensor's 2-norm."""
NOISE = 16.0
"""How much farther from FP64 the program may be than the graph."""

_FIX = (
    "write this part in PyTorch's own operations, without hooks or writes that a graph cannot hold,"
    " or train the graph as it is with verify=False"
)


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What the first batch gives in FP32, proved.

    Attributes:
        full: the results of the captured graph in FP32, which agree with the program's.
        random: the random numbers that both have drawn.
    """

    full: Outcome
    random: RandomState


def verify(
    workload: Workload, forward: Forward, effects: Effects, *, measured: bool = False
) -> Proof | None:
    """Compare a captured graph with the program on the workload's batch.

    The user's own objects run, so that their hooks do; all of them are as before afterwards, also
    after an error. Warns with `Unverified` if memory is too small for it, or if torch cannot run
    the graph on its own.

    Args:
        workload: the program, with a loss and an optimizer.
        forward: its captured graph, in FP32.
        effects: what is changed beside tensors is noted there.
        measured: note the largest magnitude of each gradient.

    Returns:
        The proof; None if the graph could not be compared.

    Raises:
        Unfaithful: they differ.
        CannotCapture: the program draws numbers from a generator that is not torch's.
        BadInput: the program itself fails in its forward or backward pass.
    """
    subject = Subject.of(workload, forward, effects.found)
    tensors = [*subject.state.values(), *workload.batch]
    if any(is_fake(tensor) or tensor.device.type == "meta" for tensor in tensors):
        return None
    state = random_state(subject.device)
    try:
        captured, eager = _both(subject, state, effects, measured)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        warn(
            "the step was not compared with the program, because memory is too small for it",
            Unverified,
        )
        return None
    if captured is None:
        return None
    over = [found for found in _differences(subject, captured, eager) if found.part > TOLERANCE]
    if not over:
        return Proof(captured, state)
    exact = _exact(subject, state, effects)
    for found in over:
        if exact is None or not found.is_noise(exact):
            raise _unfaithful(found, subject)
    return Proof(captured, state)


def _both(
    subject: Subject, state: RandomState, effects: Effects, measured: bool
) -> tuple[Outcome | None, Outcome]:
    """Run the graph and the program; None: the graph could not run on its own."""
    workload = subject.workload
    assert workload.optimizer is not None
    # Only a hook can step the optimizer, or change anything while the graph runs.
    found = effects.found
    if subject.hooked:
        found = with_optimizer(found, workload.optimizer)
    known = {id(tensor) for _, tensor in found.tensors}
    more = [(name, value) for name, value in subject.state.items() if id(value) not in known]
    copies, note = TensorCopies([*found.tensors, *more]), Snapshot(found)

    def put_back() -> None:
        note.restore()
        copies.restore()

    captured, obstacle = None, None
    with generators_kept():
        try:
            with effects.prints.dropped():
                captured = of_graph(subject, state, measured=measured)
        except CompileError:
            raise
        except Exception as error:
            if _out_of_memory(error):
                raise
            obstacle = f"torch cannot run the captured graph alone ({first_line(error)})"
        finally:
            if not subject.hooked:
                copies.changed_by_ops()
            put_back()
        try:
            with effects.undone(), effects.prints.through():
                eager = of_program(subject, copies, state)
            own = {id(tensor) for tensor in subject.state.values()}
            own |= {id(tensor) for _, tensor in found.tensors[len(effects.found.tensors) :]}
            effects.note_written([path for path, tensor in copies.written if id(tensor) not in own])
            effects.note_written([f"batch.{index}" for index in eager.batch])
        except CompileError:
            raise
        except Exception as error:
            if _out_of_memory(error):
                raise
            raise BadInput(
                f"the program raises {type(error).__name__} in a forward and backward pass on the "
                f"example batch: {first_line(error)}",
                user_position(error) or workload.origin,
                "make loss(model, *batch).backward() work",
            ) from error
        finally:
            put_back()
    if obstacle:
        warn(f"the step was not compared with the program: {obstacle}", Unverified)
    return captured, eager


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _exact(subject: Subject, state: RandomState, effects: Effects) -> Outcome | None:
    """Run the graph in FP64; None if some op has no such form, and then nothing is noise."""
    note = Snapshot(effects.found)
    try:
        with effects.prints.dropped():
            return of_graph(subject, state, exact=True)
    except Exception:
        return None
    finally:
        note.restore()


@dataclass(frozen=True, slots=True, eq=False)
class _Difference:
    """A result in which graph and program differ.

    Attributes:
        what: its name in a sentence.
        key: where it is in an `Outcome`: the field and the name in it.
        captured: the graph's.
        eager: the program's.
        node: where it is used first in the graph, or None.
        part: the 2-norm of the difference as a part of the program's; infinite if one is missing.
    """

    what: str
    key: tuple[str, str | int]
    captured: torch.Tensor | None
    eager: torch.Tensor | None
    node: fx.Node | None
    part: float

    def is_noise(self, exact: Outcome) -> bool:
        """Whether rounding explains the difference."""
        field, name = self.key
        group = getattr(exact, field, None)
        if field == "loss":
            true = group
        elif isinstance(group, dict):
            true = group.get(name)
        else:
            true = group[name] if isinstance(group, tuple) and isinstance(name, int) else None
        if self.captured is None or self.eager is None or true is None:
            return False
        wrong = [(value.double() - true.double()).norm() for value in (self.eager, self.captured)]
        return bool(wrong[0] <= NOISE * wrong[1])


def _differences(subject: Subject, captured: Outcome, eager: Outcome) -> Iterator[_Difference]:
    """Yield loss, gradients in forward order, buffers, results beside the loss, random state."""
    nodes = {node.name: node for node in subject.forward.module.graph.nodes}
    order = {node: position for position, node in enumerate(nodes.values())}
    first = {
        item.name: min(nodes[item.node].users, key=order.__getitem__, default=None)
        for item in subject.forward.inputs
    }
    end = len(order)

    def place(name: str) -> int:
        node = first.get(name)
        return end if node is None else order[node]

    yield _compared("the loss", ("loss", ""), (captured.loss, eager.loss))
    for name in sorted(subject.trained, key=place):
        pair = captured.gradients[name], eager.gradients[name]
        yield _compared(f"the gradient of {name}", ("gradients", name), pair, first[name])
    for name in sorted({*captured.written, *eager.written}, key=place):
        before = subject.state.get(name)
        before = None if before is None else before.detach()
        pair = captured.written.get(name, before), eager.written.get(name, before)
        yield _compared(f"the next value of {name}", ("written", name), pair, first.get(name))
    left = subject.forward.left.names if subject.forward.left else ()
    if len(captured.beside) == len(eager.beside):
        first_left = len(eager.beside) - len(left)
        for index, both in enumerate(zip(captured.beside, eager.beside, strict=True)):
            what = f"tensor {index} beside the loss"
            if index >= first_left:
                what = f"the tensor that is left in {left[index - first_left]}"
            yield _compared(what, ("beside", index), both)
    elif left:
        yield _Difference(f"what is left in {left[0]}", ("beside", 0), None, None, None, inf)
    for name in ("cpu", "cuda"):
        one, other = getattr(captured.random, name), getattr(eager.random, name)
        if one is not None and not torch.equal(one, other):
            what = "the random state after the forward pass"
            yield _Difference(what, ("random", name), None, None, None, inf)


def _compared(
    what: str,
    key: tuple[str, str | int],
    pair: tuple[torch.Tensor | None, torch.Tensor | None],
    node: fx.Node | None = None,
) -> _Difference:
    captured, eager = pair
    return _Difference(what, key, captured, eager, node, _part(captured, eager))


def _part(captured: torch.Tensor | None, eager: torch.Tensor | None) -> float:
    """Return the 2-norm of a difference as a part of the program's; infinite if they cannot be."""
    if captured is None or eager is None:
        return 0.0 if captured is eager else inf
    if captured.shape != eager.shape or captured.dtype is not eager.dtype:
        return inf
    if torch.equal(captured, eager):
        return 0.0
    if not (eager.is_floating_point() or eager.is_complex()):
        return inf
    finite = eager.isfinite()
    odd = ~finite
    same = torch.equal(captured[odd].nan_to_num(nan=0.5), eager[odd].nan_to_num(nan=0.5))
    if not torch.equal(finite, captured.isfinite()) or not same:
        return inf
    wide = torch.complex128 if eager.is_complex() else torch.float64
    one, other = captured[finite].to(wide), eager[finite].to(wide)
    wrong, size = float((one - other).norm()), float(other.norm())
    return wrong / size if size else (inf if wrong else 0.0)


def _unfaithful(found: _Difference, subject: Subject) -> Unfaithful:
    workload = subject.workload
    where = definition(workload.loss) or workload.origin
    if found.node is not None:
        where = source_position(found.node).at or where
    return Unfaithful(
        f"the captured graph does not do what the program does: {found.what} {_said(found)}",
        where,
        _FIX,
    )


def _said(found: _Difference) -> str:
    one, other = found.captured, found.eager
    if one is None and other is None:
        return "is another one than in eager PyTorch"
    if one is None or other is None:
        return f"exists in {'the graph' if other is None else 'eager PyTorch'} only"
    if one.shape != other.shape or one.dtype is not other.dtype:
        kinds = [f"{value.dtype}{list(value.shape)}" for value in (one, other)]
        return f"is {kinds[0]}, and {kinds[1]} in eager PyTorch"
    sizes = [float(value.double().norm()) for value in (one, other)]
    if one.dim() == 0:
        return f"is {float(one):.6g}, and {float(other):.6g} in eager PyTorch"
    part = f"{100 * found.part:.3g} %" if found.part < inf else "more than its size"
    return (
        f"differs by {part} from eager PyTorch (its 2-norm is {sizes[0]:.4g}, and {sizes[1]:.4g} "
        "there)"
    )
