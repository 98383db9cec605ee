"""Train the zoo: ``python -m bench.zoo.models FILE.jsonl [--names A B] [--seconds N] [--table]``.

Each model is compiled and trained for ten steps beside eager FP32 and eager autocast in FP16, from
the same weights, without dropout. One JSON line a model; models that the file already has are left
out, so a run can be continued. ``--table`` prints the file as Markdown instead.

Hugging Face's families need transformers; torchvision's and timm's nets run where these import.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.machine import describe
from bench.zoo.trial import Loss, gradients, trial

TIMM = (
    *("beit_base_patch16_224", "botnet26t_256", "cait_xxs24_224", "coat_lite_tiny", "convit_tiny"),
    *("convmixer_768_32", "convnext_atto", "crossvit_tiny_240", "cspresnet50", "darknet17"),
    *("deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientformerv2_s0", "efficientnet_b0", "efficientvit_b0"),
    *(
        "efficientvit_m0",
        "eva02_tiny_patch14_224",
        "fasternet_t0",
        "fastvit_t8",
        "focalnet_tiny_srf",
    ),
    *("gcvit_xxtiny", "ghostnet_050", "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small"),
    *("inception_next_atto", "inception_v3", "lcnet_050", "levit_128s", "mambaout_femto"),
    *("maxvit_pico_rw_256", "mixer_s32_224", "mnasnet_small", "mobilenetv3_small_050"),
    *(
        "mobileone_s0",
        "mobilevit_xxs",
        "mobilevitv2_050",
        "mvitv2_tiny",
        "nest_tiny",
        "nf_regnet_b0",
    ),
    *("pit_ti_224", "poolformer_s12", "pvt_v2_b0", "regnetx_002", "regnety_002", "repghostnet_050"),
    *("repvgg_a0", "repvit_m0_9", "res2net50_14w_8s", "resnest14d", "resnet18", "resnetv2_18"),
    *("rexnet_100", "selecsls42", "seresnext26d_32x4d", "shvit_s1", "skresnet18", "starnet_s1"),
    *(
        "swiftformer_xs",
        "swin_tiny_patch4_window7_224",
        "swinv2_cr_tiny_224",
        "tf_efficientnet_lite0",
    ),
    *("tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "vgg11"),
    *("visformer_tiny", "vit_tiny_patch16_224", "vit_relpos_small_patch16_224", "volo_d1_224"),
    *("vovnet39a", "xception41", "xcit_nano_12_p16_224"),
)
TORCHVISION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
)
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t")


class TooLate(BaseException):
    """A model took longer than it may; no Exception, so that no library catches it."""


def models() -> Iterator[tuple[str, Any]]:
    """Yield the name of each model and a function that makes model, loss and batch."""
    if importlib.util.find_spec("transformers"):
        import transformers

        from bench.zoo import huggingface, pictures, sequences

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]

        def loss(model: torch.nn.Module, **batch: Any) -> torch.Tensor:
            value: torch.Tensor = model(**batch).loss
            return value

        special = pictures.FAMILIES | sequences.FAMILIES
        for family, special_make in special.items():
            yield f"hf:{family}", lambda make=special_make: _with(loss, make())
        for family, task, kind in huggingface.families():
            if family in special:
                continue
            yield (
                f"hf:{family}",
                lambda task=task, kind=kind: _with(loss, huggingface.make(task, kind)),
            )
    if importlib.util.find_spec("torchvision"):
        from bench.zoo import torchvision_models as vision

        for name in vision.DETECTORS:
            yield f"detection:{name}", lambda name=name: vision.detector(name)
        for name in vision.SEGMENTERS:
            yield f"segmentation:{name}", lambda name=name: vision.segmenter(name)
        for name in TORCHVISION:
            yield f"torchvision:{name}", lambda name=name: vision.classifier(f"torchvision:{name}")
        for name in VIDEO:
            yield f"video:{name}", lambda name=name: vision.video(name)
        yield "optical flow:raft_small", vision.optical_flow
    if importlib.util.find_spec("timm"):
        from bench.zoo import torchvision_models as vision

        for name in TIMM:
            yield f"timm:{name}", lambda name=name: vision.classifier(name)


def _with(loss: Loss, made: tuple[Any, Any]) -> tuple[Any, Loss, Any]:
    return made[0], loss, made[1]


def row_of(make: Any) -> dict[str, Any]:
    """Return the row of one model."""
    try:
        model, loss, batch = make()
        without_dropout(model)
        gradients(model, loss, batch)
    except Exception as error:
        return {"state": "not eager", "error": f"{type(error).__name__}: {error}"[:200]}
    try:
        return trial(model, loss, batch)
    except TooLate:
        return {"state": "late"}


def without_dropout(model: torch.nn.Module) -> None:
    """Set every probability of a dropout, and of a layer that is left out, to zero."""
    for module in model.modules():
        for name in ("p", "drop_prob", "drop_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the summary and the rows as Markdown."""
    ran = [row for row in rows if row["state"] != "not eager"]
    states = Counter(row["state"] for row in ran)
    measured = [row for row in ran if row.get("scales")]
    ratios = [
        row["before_lowering"] / row["export"]
        for row in ran
        if row.get("export") and row["state"] == "whole"
    ]
    lines = [
        f"{len(ran)} models that eager PyTorch trains: "
        + ", ".join(f"{count} {state}" for state, count in states.most_common())
        + "; everything before lowering over `torch.export` alone "
        f"{statistics.median(ratios or [0]):.2f} in the median; "
        f"{sum(not row.get('near', True) for row in ran)} farther than allowed; "
        f"{len(measured)} began with a measured loss scale and skipped "
        f"{sum(row.get('skipped') or 0 for row in measured)} of their first ten steps in all.",
        "",
        "| model | state | seconds | first scale | skipped | ours | autocast "
        "| loss after ten steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ran:
        cells = [row["name"], row["state"], _number(row.get("seconds"), ".1f")]
        cells += [_number((row.get("scales") or [None])[-1], ".3g")]
        cells += [str(row.get("skipped", "")), _number(row.get("ours"), ".1e")]
        peer = row.get("autocast")
        cells += ["fails" if isinstance(peer, str) else _number(peer, ".1e")]
        first, *_, last = row.get("losses") or [None, None]
        cells += [
            f"{first:.3f} → {last:.3f}"
            if first is not None
            else row.get("error", "").replace("|", "/")[:120]
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--names", nargs="*", default=(), help="only these, such as hf:bert")
    parser.add_argument("--seconds", type=int, default=300, help="the most that a model may take")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    text = options.file.read_text() if options.file.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    if options.table:
        print(table(rows))
        return

    def late(*_: Any) -> None:
        raise TooLate

    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("ignore")
    done = {row["name"] for row in rows}
    facts = describe("cpu")
    made = dict(models())
    for name in options.names or made:
        if name in done:
            continue
        make = made[name]
        signal.alarm(options.seconds)
        row = {"name": name, **row_of(make)}
        signal.alarm(0)
        row["torch"], row["commit"] = facts["torch"], facts["commit"]
        with options.file.open("a") as file:
            print(json.dumps(row), file=file)
        print(f"{name:40} {row['state']:10} {row.get('error', '')[:100]}", flush=True)


if __name__ == "__main__":
    main()
