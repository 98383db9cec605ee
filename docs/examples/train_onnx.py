"""Train a ``train.onnx`` with ONNX Runtime alone: ``train_onnx.py train.onnx batches.npz [STEPS]``.

``mpcompile export`` writes the step; ``batches.npz`` has an array ``[batches, ...]`` per input.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from safetensors.numpy import load_file, save_file

path, steps, device = Path(sys.argv[1]), int([*sys.argv, 100][3]), "cpu"  # or "cuda"
file = json.loads(path.with_suffix(".json").read_text())
session = ort.InferenceSession(path, providers=[f"{device.upper()}ExecutionProvider"])
first, data = load_file(path.with_name(file["weights"])), dict(np.load(sys.argv[2]))
put = lambda array: ort.OrtValue.ortvalue_from_numpy(np.array(array), device)  # noqa: E731
# In the runtime no memory is both input and output, so each written tensor has two buffers.
state = {slot["name"]: [put(first[slot["name"]]) for _ in range(2)] for slot in file["state"]}
batch = {spec["name"]: put(data[spec["name"]][0]) for spec in file["batch"]}
rates = {rate["name"]: put(rate["initial"]) for rate in file["rates"]}
loss, bindings = put(np.float32(0)), [session.io_binding() for _ in range(2)]
for turn, binding in enumerate(bindings):
    for name, value in (batch | rates | {name: two[turn] for name, two in state.items()}).items():
        binding.bind_ortvalue_input(name, value)
    for slot in filter(lambda slot: slot["next"], file["state"]):
        binding.bind_ortvalue_output(slot["next"], state[slot["name"]][1 - turn])
    binding.bind_ortvalue_output(file["loss"], loss)
for index in range(steps):
    for name, value in batch.items():
        value.update_inplace(data[name][index % len(data[name])])
    session.run_with_iobinding(bindings[index % 2])
    print(float(loss.numpy()))
save_file({n: two[steps % 2].numpy() for n, two in state.items()}, path.with_suffix(".trained"))
