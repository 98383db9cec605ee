#!/usr/bin/env bash
# Whether a vision tower that transformers makes from its default configuration sees its picture under FP16 autocast.
#
# bash findings/blip_sees_no_picture_in_half.sh
#
# It installs pinned versions of torch and transformers into a temporary folder (about 4 GB) and makes small towers with
# random weights; nothing is downloaded but the packages. It ends with 1 if they no longer do what is written at the end.
#
# Why it matters: a BLIP trained from its configuration in FP16 learns nothing from pictures, and no number is infinite.
#
# Guess: every family begins with weights of about 0.02, which FP16 holds.
# Found: BlipVisionConfig has initializer_range=1e-10. All these weights are zero in FP16, so the tower gives the same
# result for every picture. In FP32, and for ViT and CLIP in both, two pictures differ.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/try.py" <<'END'
import torch
import transformers
from transformers import BlipVisionConfig, BlipVisionModel, CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
small |= {"image_size": 32, "patch_size": 8}
kinds = {
    "ViT": (ViTModel, ViTConfig),
    "CLIP": (CLIPVisionModel, CLIPVisionConfig),
    "BLIP": (BlipVisionModel, BlipVisionConfig),
}
for name, (model, config) in kinds.items():
    torch.manual_seed(0)
    chosen = config(**small)
    net = model(chosen).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        one, other = net(pixel_values=pictures).last_hidden_state
        with torch.autocast("cpu", torch.float16):
            narrow_one, narrow_other = net(pixel_values=pictures).last_hidden_state
    differ = [bool((a != b).any()) for a, b in ((one, other), (narrow_one, narrow_other))]
    print(transformers.__version__, name, chosen.initializer_range, *differ)
END

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.2.6
"$folder/env/bin/python" "$folder/try.py" 2>"$folder/stderr" | tee "$folder/found" || {
  cat "$folder/stderr" >&2
  exit 1
}

# The last two words: whether two pictures give different results in FP32, and under FP16 autocast.
diff - "$folder/found" <<'END'
5.24.0 ViT 0.02 True True
5.24.0 CLIP 0.02 True True
5.24.0 BLIP 1e-10 True False
END
echo "as written"
