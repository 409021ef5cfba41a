#!/usr/bin/env bash
# Build, test and time on a machine with an NVIDIA GPU, without a network, in less than nine minutes.
#   bash bench/gpu.sh              all stages but flex
#   bash bench/gpu.sh flex         the sweep against FlexAttention, which compiles long; where the build exists
# Rows go to $OUT (default bench/results). A failing stage does not stop the others; the exit code is theirs.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD ATTRDROP_COMMIT=${ATTRDROP_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
export COLUMNS=${COLUMNS:-180} # of the tables printed
wanted=" ${*:-build load tests sanitizer attention sweep ranking ops steps bert images photos points} "
mkdir -p "$OUT"
failed=()

stage() { # name, seconds, command...
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  [[ $wanted == *" $name "* ]] || return
  echo "== $name"
  timeout --kill-after=5 "$seconds" "$@" || failed+=("$name (exit $?)")
  echo "== $name took $((SECONDS - start)) s"
}

tested=(env -u PYTHONPATH PYTHONSAFEPATH=1)
stage build 120 "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps -e .
stage load 15 "$PYTHON" -c 'import torch, attrdrop; print(torch.cuda.get_device_name(), torch.ops.attrdrop.build_info())'
stage tests 70 "${tested[@]}" "$PYTHON" -m pytest -m gpu --maxfail=10 tests
if command -v compute-sanitizer >/dev/null; then
  stage sanitizer 40 "${tested[@]}" PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 \
    "$PYTHON" -m pytest -m gpu -k sanitizer tests
fi

csv=$OUT/$("$PYTHON" -c 'from bench.rows import default_output; from bench.run import current_device
print(default_output(current_device()).name)')
bench=("$PYTHON" -m bench.run --output "$csv")
masked=("${bench[@]}" masked_attention)
stage attention 75 "${masked[@]}" --shapes S1,S2 --seconds 1 --limit 60
stage sweep 40 "${masked[@]}" --modes forward,backward --peers SDPA,eager,attrdrop --seconds 0.5 --limit 31
stage flex 520 "${masked[@]}" --modes forward,backward --peers FlexAttention --seconds 0.5 --limit 490
stage ranking 35 "${bench[@]}" keep_mask --seconds 0.5 --limit 27
stage ops 24 "${bench[@]}" pack_mask unpack_mask transpose_mask random_keep_mask attention_attribution \
  occlude_blocks fill_blocks occlude_points relevance_gate_relu farthest_point_sample ball_query group_points \
  --shapes S1,I1,I2,F1,P1,P2,P3,P4 --seconds 0.5 --limit 18
step=("$PYTHON" bench/steps/text.py --no-memory --output "$csv")
stage steps 20 "${step[@]}" --seconds 4
stage bert 22 "${step[@]}" --model bert-base --n 512 --dtype bfloat16 --seconds 6
images=("$PYTHON" bench/steps/images.py --output "$csv" --seconds 6)
stage images 24 "${images[@]}" --model resnet18 --batch 128 --size 32
stage photos 25 "${images[@]}" --model resnet50 --batch 64 --size 224 --dtype bfloat16 --channels-last
stage points 20 "$PYTHON" bench/steps/points.py --output "$csv" --no-memory --seconds 4 --batch 32

if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
