"""Many nets through ``torch.compile(backend="mpcompile")``: as close to FP64 as eager autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import NETS
from oracles.error import SCALE, autocast, compare, gradients_of, reference, without_dropout

from mpcompile.integrations.dynamo_backend import mpcompile


@pytest.mark.parametrize("name", NETS)
def test_a_net_is_as_close_to_fp64_as_autocast(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.compiler.reset()
    workload = NETS[name]()
    loss = workload.loss
    assert loss is not None
    # The rounding of one loss is a matter of luck, that of several is not.
    batches = [tuple(v.roll(k, -1) for v in workload.batch) for k in range(4)]
    model = without_dropout(workload.model)
    truth = [reference(model, loss, batch) for batch in batches]
    peer = [autocast(model, loss, batch) for batch in batches]
    mine = copy.deepcopy(model)
    rnn = torch._dynamo.config.patch(allow_rnn=True)
    with rnn, caplog.at_level("INFO", "mpcompile"):
        compiled = torch.compile(mine, backend=mpcompile)
        ours = []
        start = copy.deepcopy(mine.state_dict())
        for batch in batches:
            mine.load_state_dict(start)  # its batch norms too begin where the others do
            mine.zero_grad()
            value = loss(compiled, *batch)
            torch.autograd.backward(value * SCALE)
            ours.append((float(value.detach()), gradients_of(mine, SCALE)))
    assert any("compute in 16 bits" in message for message in caplog.messages)
    found, allowed = compare(ours, truth), compare(peer, truth)
    assert 0 < found.gradient <= 3 * allowed.gradient
    assert found.loss <= 3 * allowed.loss + 2.0**-14
