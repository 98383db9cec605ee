"""Mixed precision as a pass of ``onnx_ir``, for pipelines of such passes."""

from __future__ import annotations

import onnx_ir as ir

from mpcompile.onnx.rewrite import rewrite
from mpcompile.onnx_graph.kernels import Target
from mpcompile.plan.policy import Policy


class MixedPrecision(ir.passes.FunctionalPass):
    """Rewrite a model into mixed precision; see `mpcompile.onnx.rewrite.rewrite`.

    A second run changes nothing.

    Attributes:
        policy: default: FP16 by the op table.
        target: the device on which the model must run.
        keep_io: whether inputs and outputs keep their dtypes.
    """

    def __init__(
        self, policy: Policy | None = None, target: Target = Target.ANY, keep_io: bool = True
    ) -> None:
        super().__init__()
        self.policy, self.target, self.keep_io = policy, target, keep_io

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Return a new model; it is a copy of the given one if 16 bits gain nothing."""
        done = rewrite(model, self.policy, target=self.target, keep_io=self.keep_io)
        return ir.passes.PassResult(done.model if done.changed else model.clone(), done.changed)
