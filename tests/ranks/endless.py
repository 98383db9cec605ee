"""Train until somebody is lost; then say so and leave."""

from __future__ import annotations

import os
import sys

from joint_net import batch, compiled, made, mine
from torch import distributed

from mpcompile import LostProcess

distributed.init_process_group("gloo")
model, optimizer = made()
step = compiled(model, optimizer, {"shard": sys.argv[1] == "shard"})
sys.stdout.write("ready\n")
sys.stdout.flush()
try:
    for seed in range(10**9):
        step(*mine(batch(seed % 100)))
except LostProcess as error:
    sys.stdout.write(str(error))
    sys.stdout.flush()
    os._exit(error.exit_code)  # as mpcompile run does
