#!/usr/bin/env bash
# All measurements that need a GPU, in one command of less than nine minutes: the tests marked gpu, the update
# alone, then a training step of each model side by side with its peers, in full size, and of a
# decoder of a billion parameters, and a step of train.onnx in ONNX Runtime, if that is installed.
#
#   bench/gpu.sh [FOLDER]
#
# Writes into FOLDER (default bench/results/DATE-DEVICE): machine.json, tests.txt, update.json and .txt,
# per model MODEL.json and MODEL.txt, and onnx.json and .txt, each as soon as it exists. Needs a Python with torch,
# numpy, networkx, scipy, pydantic and pytest, and nothing from the network; mpcompile need not be
# installed.
# Without a GPU it runs the same in tiny sizes, to show that this script works; that may take longer,
# because two cores compile slowly.
#
# The most important parts, models and, within a model, variants run first. Those for which the time is
# too short are printed; a second call with PARTS, MODELS and VARIANTS runs them alone.
#
# Environment: PYTHON (default python3), SECONDS_IN_ALL (default 530 with a GPU, 2400 without),
# PARTS (of: tests update models onnx), MODELS (a name, or NAME:SIZE), VARIANTS, SIZE, REPEATS, STEPS,
# MILLIONS (of parameters, for the update).

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}
read -ra parts <<< "${PARTS:-tests update models onnx}"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# What there is.
for module in torch numpy networkx scipy pydantic pytest; do
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
    size=${SIZE:-full} repeats=${REPEATS:-1} steps=${STEPS:-30} in_all=${SECONDS_IN_ALL:-530}
    last=gpt:billion variants=${VARIANTS:-ours compiled autocast fp32} millions=${MILLIONS:-100 1000 10}
else
    size=${SIZE:-tiny} repeats=${REPEATS:-1} steps=${STEPS:-5} in_all=${SECONDS_IN_ALL:-2400}
    last='' variants=${VARIANTS:-ours compiled autocast fp32} millions=${MILLIONS:-1}
fi
read -ra models <<< "${MODELS:-gpt resnet lstm $last bert tacotron unet dcgan}"
read -ra variants <<< "$variants"
read -ra millions <<< "$millions"
machine=$("$python" -m bench.machine "$device") || exit 1
name=$("$python" -c 'import json, re, sys
print(re.sub(r"[^a-z0-9]+", "-", json.load(sys.stdin)["device"].lower()).strip("-"))' <<< "$machine")
folder=${1:-bench/results/$(date -u +%F)-$name}
mkdir -p "$folder" || exit 1
echo "$machine" | tee "$folder/machine.json"
if [[ $device == cuda ]]; then
    nvidia-smi --query-gpu=name,driver_version,memory.used,clocks.sm,power.limit --format=csv || true
fi

failed=()

wanted() {
    [[ " ${parts[*]} " == *" $1 "* ]]
}

# Tests. Exit status 5: none collected, which is no failure; without a GPU all are skipped.
# Only files that have such tests: the others may import packages that are not here. Stopped by an
# interrupt, so that pytest still prints its results so far.
if wanted tests; then
    mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu' tests)
    # Most of the time is compilation, for which a GPU's machine has enough cores.
    several=()
    if [[ $device == cuda ]] && "$python" -c 'import xdist' 2> /dev/null; then
        several=(-n 4)
    fi
    timeout -s INT -k 15 "$((in_all / 3))" \
        "$python" -m pytest -m gpu -ra -v --tb=short -p no:cacheprovider --durations=10 \
        "${several[@]}" "${files[@]:-tests/gpu}" 2>&1 | tee "$folder/tests.txt"
    status=$?
    if [[ $status -ne 0 && $status -ne 5 ]]; then
        failed+=("tests (exit status $status)")
    fi
fi

# The update alone; its rows are written one size after another.
if wanted update; then
    echo "== update"
    timeout -k 10 "$((in_all / 6))" "$python" -m bench.speed.update --device "$device" \
        --millions "${millions[@]}" --json "$folder/update.json" 2>&1 | tee "$folder/update.txt"
    status=$?
    if [[ $status -ne 0 ]]; then
        failed+=("update (exit status $status)")
    fi
fi

# Models. Each gets half of the remaining time or its equal share, whichever is more: the first ones are
# sure to finish, and time that one does not use is for the next ones.
if wanted models; then
    left=${#models[@]}
    for model in "${models[@]}"; do
        name=${model%%:*} of_size=$size file=${model/:/-}
        if [[ $model == *:* ]]; then
            of_size=${model#*:}
        fi
        rest=$((in_all - SECONDS))
        part=$((left > 2 ? rest / 2 : rest / left))
        left=$((left - 1))
        if ((part < 25)); then
            echo "== $model: no time left" | tee "$folder/$file.txt"
            failed+=("$model (no time left)")
            continue
        fi
        echo "== $model, $of_size, at most $part s"
        timeout -k 10 "$part" "$python" -m bench.speed.step --model "$name" --size "$of_size" \
            --device "$device" --repeats "$repeats" --steps "$steps" --budget "$((part - 12))" \
            --variants "${variants[@]}" --json "$folder/$file.json" 2>&1 | tee "$folder/$file.txt"
        status=$?
        if [[ $status -ne 0 ]]; then
            failed+=("$model (exit status $status)")
        fi
    done
fi

# A step of train.onnx, state bound on the device; without ONNX Runtime for it the table says that.
if wanted onnx; then
    rest=$((in_all - SECONDS))
    echo "== onnx, at most $rest s"
    if ((rest < 25)); then
        echo "no time left" | tee "$folder/onnx.txt"
        failed+=("onnx (no time left)")
    else
        onnx_size=tiny
        if [[ $device == cuda ]]; then
            onnx_size=small
        fi
        timeout -k 10 "$rest" "$python" -m bench.onnx.step --device "$device" --sizes "$onnx_size" \
            --steps "$steps" --json "$folder/onnx.json" 2>&1 | tee "$folder/onnx.txt"
        status=$?
        if [[ $status -ne 0 ]]; then
            failed+=("onnx (exit status $status)")
        fi
    fi
fi

echo "wrote $folder in $SECONDS s"
if [[ ${#failed[@]} -ne 0 ]]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
