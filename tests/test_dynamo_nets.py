"""Many nets through ``torch.compile(backend="mpcompile")``: as near FP64 as eager autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import NETS
from oracle import SCALE, autocast, compare, gradients_of, reference, without_dropout

from mpcompile.dynamo_backend import mpcompile


@pytest.mark.parametrize("name", NETS)
def test_a_net_is_as_near_fp64_as_autocast(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.compiler.reset()
    workload = NETS[name]()
    loss, batch = workload.loss, workload.batch
    assert loss is not None
    model = without_dropout(workload.model)
    truth, peer = reference(model, loss, batch), autocast(model, loss, batch)
    mine = copy.deepcopy(model)
    rnn = torch._dynamo.config.patch(allow_rnn=True)
    with rnn, caplog.at_level("INFO", "mpcompile"):
        value = loss(torch.compile(mine, backend=mpcompile), *batch)
    assert any("compute in 16 bits" in message for message in caplog.messages)
    torch.autograd.backward(value * SCALE)
    ours = float(value.detach()), gradients_of(mine, SCALE)
    found, allowed = compare([ours], [truth]), compare([peer], [truth])
    assert 0 < found.gradient <= 3 * allowed.gradient
    assert found.loss <= 3 * allowed.loss + 2.0**-14
