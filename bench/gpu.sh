#!/usr/bin/env bash
# Build, test and time on a machine with an NVIDIA GPU, without a network, in less than nine minutes.
# Rows go to $OUT (default bench/results). A failing stage does not stop the others; the exit code is theirs.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD ATTRDROP_COMMIT=${ATTRDROP_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
mkdir -p "$OUT"
failed=()

stage() { # name, seconds, command...
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  echo "== $name"
  timeout --kill-after=5 "$seconds" "$@" || failed+=("$name (exit $?)")
  echo "== $name took $((SECONDS - start)) s"
}

stage build 110 "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps -e .
stage load 15 "$PYTHON" -c 'import torch, attrdrop; print(torch.cuda.get_device_name(), torch.ops.attrdrop.build_info())'
stage "tests on the GPU" 90 env -u PYTHONPATH PYTHONSAFEPATH=1 "$PYTHON" -m pytest -m gpu --maxfail=10 tests
stage "tests of the ops" 50 env -u PYTHONPATH PYTHONSAFEPATH=1 "$PYTHON" -m pytest --maxfail=10 \
  tests/test_pack_mask.py tests/test_keep_mask.py tests/test_masked_attention.py tests/test_attention_attribution.py
csv=$OUT/$("$PYTHON" -c 'from bench.rows import default_output; from bench.run import current_device
print(default_output(current_device()).name)')
stage ops 150 "$PYTHON" -m bench.run --seconds 1 --output "$csv"
stage "steps, MiniLM" 45 "$PYTHON" bench/step.py --seconds 10 --no-memory --output "$csv"
stage "steps, BERT" 60 "$PYTHON" bench/step.py --model bert-base --n 512 --dtype bfloat16 --seconds 15 --no-memory \
  --output "$csv"

if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
