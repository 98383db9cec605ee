#!/usr/bin/env bash
# Everything that needs a GPU, in one command of less than nine minutes: the tests marked gpu, then a
# training step of each model side by side with its peers, in full size.
#
#   bench/gpu.sh [FOLDER]
#
# Writes into FOLDER (default bench/results/DATE-DEVICE): machine.json, tests.txt and, per model,
# MODEL.json and MODEL.txt, each as soon as it exists. Needs a Python with torch, numpy, networkx,
# scipy and pytest, and nothing from the network; mpcompile need not be installed.
# Without a GPU it runs the same in tiny sizes, to show that this script works; that may take longer,
# since two cores compile slowly.
#
# Environment: PYTHON (default python3), SECONDS_IN_ALL (default 530 with a GPU, 2400 without),
# MODELS, SIZE, REPEATS, STEPS.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}
read -ra models <<< "${MODELS:-gpt lstm resnet}"
export PYTHONPATH=. PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# What there is.
for module in torch numpy networkx scipy pytest; do
    "$python" -c "import $module" 2> /dev/null || missing+=" $module"
done
if [[ -n ${missing:-} ]]; then
    echo "$python lacks:$missing" >&2
    exit 1
fi
if ! device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")'); then
    exit 1
fi
if [[ $device == cuda ]]; then
    size=${SIZE:-full} repeats=${REPEATS:-2} steps=${STEPS:-30} in_all=${SECONDS_IN_ALL:-530}
else
    size=${SIZE:-tiny} repeats=${REPEATS:-1} steps=${STEPS:-5} in_all=${SECONDS_IN_ALL:-2400}
fi
machine=$("$python" bench/machine.py "$device") || exit 1
name=$("$python" -c 'import json, re, sys
print(re.sub(r"[^a-z0-9]+", "-", json.load(sys.stdin)["device"].lower()).strip("-"))' <<< "$machine")
folder=${1:-bench/results/$(date -u +%F)-$name}
mkdir -p "$folder" || exit 1
echo "$machine" | tee "$folder/machine.json"
if [[ $device == cuda ]]; then
    nvidia-smi --query-gpu=name,driver_version,memory.used,clocks.sm,power.limit --format=csv || true
fi

failed=()

# Tests. Exit status 5: none collected, which is no failure; without a GPU all are skipped.
# Only files that have such tests: the others may import packages that are not here. Stopped by an
# interrupt, so that pytest still says what it has seen.
mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu' tests)
timeout -s INT -k 15 "$((in_all / 3))" \
    "$python" -m pytest -m gpu -ra -v --tb=short -p no:cacheprovider --durations=10 \
    "${files[@]:-tests/gpu}" 2>&1 | tee "$folder/tests.txt"
status=$?
if [[ $status -ne 0 && $status -ne 5 ]]; then
    failed+=("tests (exit status $status)")
fi

# Models. Each gets an equal part of the time that is left, so what one does not use the next ones do;
# the slowest to compile comes last.
left=${#models[@]}
for model in "${models[@]}"; do
    part=$(((in_all - SECONDS) / left))
    left=$((left - 1))
    echo "== $model, $size, at most $part s"
    timeout -k 10 "$part" "$python" bench/step.py --model "$model" --size "$size" \
        --device "$device" --repeats "$repeats" --steps "$steps" --budget "$((part - 12))" \
        --json "$folder/$model.json" 2>&1 | tee "$folder/$model.txt"
    status=$?
    if [[ $status -ne 0 ]]; then
        failed+=("$model (exit status $status)")
    fi
done

echo "wrote $folder in $SECONDS s"
if [[ ${#failed[@]} -ne 0 ]]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
