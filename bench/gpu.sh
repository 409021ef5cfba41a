#!/usr/bin/env bash
# What a machine with an NVIDIA GPU tells in TOTAL seconds (400), the most valuable first, without a network or pip.
#   bash bench/gpu.sh [stage ...]   all stages in order, or those named; rows and logs.tgz go to $OUT (bench/results)
#   bash bench/gpu.sh --rehearse    the same commands on the CPU and in small, which shows what is missing or misspelt
# Bring .gpu/, which `make gpu-kit` fills: the built library, and kernels that Triton need not compile again. Without it
# the library is built here. A failing stage stops no other; the exit code is theirs.
set -u
cd "$(dirname "$0")/.."
rehearsal=
[[ ${1:-} == --rehearse ]] && rehearsal=yes && shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
OUT=${OUT:-${rehearsal:+$work}}
OUT=${OUT:-bench/results}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
end=$((SECONDS + ${TOTAL:-400}))
[[ $rehearsal ]] && end=$((SECONDS + 3600))
export ATTRDROP_COMMIT=${ATTRDROP_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
export COLUMNS=110 PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$work/triton}
wanted=" ${*:-env load smoke keep_mask tests attention bert resnet eager sanitizer ops steps sweep} "
failed=()

stage() { # name, seconds, command...: its output goes to a log; shown are its last lines, and of a failure the first
  local name=$1 seconds=$2 left=$((end - SECONDS)) begin=$SECONDS status=0 log=$OUT/$1.log
  shift 2
  [[ $wanted == *" $name "* ]] || return 0
  if ((left < 15)); then echo "== $name: no time left"; return 0; fi
  [[ $rehearsal ]] && seconds=900
  timeout -k 5 $((seconds < left ? seconds : left - 5)) "$@" >"$log" 2>&1 || status=$?
  echo "== $name: exit $status, $((SECONDS - begin)) s, at $SECONDS s"
  if ((status)); then
    failed+=("$name ($status)")
    grep -aE '^(FAILED|ERROR|E  )|Error: ' "$log" | cut -c1-200 | awk '!seen[$0]++' | head -15
  fi
  tail -n "${TAIL:-3}" "$log"
}

shopt -s nullglob
bash bench/links.sh "$work/site" .gpu/*.so
if [[ -e .gpu/triton.tar.xz ]]; then mkdir -p "$TRITON_CACHE_DIR" && tar xf .gpu/triton.tar.xz -C "$TRITON_CACHE_DIR"; fi
ours=(env PYTHONPATH="$work/site" PYTHONSAFEPATH=1 "$PYTHON")

what=$([[ $rehearsal ]] && echo cpp || echo cuda)
check="import torch, attrdrop, attrdrop.triton_kernels.launch
x = torch.randn(2, 4, 512, 64, device='${what/cpp/cpu}', dtype=torch.bfloat16)
keep = attrdrop.keep_mask(x, x, p=.3, q=.3, seed=1, backend='$what')
print(torch.cuda.is_available() and torch.cuda.get_device_name(), torch.ops.attrdrop.build_info(), keep.counts.tolist())"
stage env 20 bash -c 'nvidia-smi; nvcc --version | tail -2; nproc; ldd --version | head -1; python3 -m pip list 2>/dev/null; true'
stage load 90 "${ours[@]}" -c "$check"
if [[ " ${failed[*]-} " == *" load "* && ! $rehearsal ]]; then # the library that came along does not fit
  wanted+="build reload "
  stage build 180 env ATTRDROP_REQUIRE_C=1 ATTRDROP_CUDA=ON ATTRDROP_CUDA_ARCHS=90-real "$PYTHON" setup.py build_ext --inplace
  bash bench/links.sh "$work/site"
  stage reload 60 "${ours[@]}" -c "$check"
fi

csv=$OUT/$("${ours[@]}" -c 'from bench.rows import default_output; from bench.run import current_device
print(default_output(current_device()).name)' || echo rows.csv)
run=("${ours[@]}" -m bench.run --output "$csv")
text=("${ours[@]}" -m bench.steps.text --no-memory --output "$csv")
images=("${ours[@]}" -m bench.steps.images --no-memory --output "$csv")
mapfile -t gpu_tests < <(grep -rlE 'mark\.gpu|\bGPU\b|COMPILED' tests --include='test_*.py')
if [[ $rehearsal ]]; then
  small=(--quick --seconds 0.05)
  two=("${small[@]}") one=("${small[@]}") many=("${small[@]}")
  bert=(--model tiny --n 16 --batch 2 --seconds 0.1)
  resnet=(--model resnet18 --batch 4 --size 32 --seconds 0.1) lean=("${bert[@]}") smoke=() tests=(--collect-only)
else
  two=(--shapes "S1,S2" --seconds 0.3) one=(--shapes S1 --seconds 0.3)
  many=(--shapes "S1,I2,F1,P1,P3" --seconds 0.3 --limit 45)
  bert=(--model bert-base --n 512 --dtype bfloat16 --seconds 4)
  resnet=(--model resnet50 --batch 64 --size 224 --dtype bfloat16 --channels-last --seconds 4)
  lean=(--seconds 3) smoke=(cuda triton) tests=(-n 14 --dist worksteal)
fi

TAIL=6 stage smoke 80 "${ours[@]}" -m bench.smoke "${smoke[@]}" --output "$OUT/smoke.jsonl"
TAIL=14 stage keep_mask 40 "${run[@]}" keep_mask "${two[@]}" --peers attrdrop
TAIL=25 stage tests 170 "${ours[@]}" -m pytest -m gpu --tb=short -q -p no:cacheprovider "${tests[@]}" "${gpu_tests[@]}"
TAIL=40 stage attention 80 "${run[@]}" masked_attention "${two[@]}" --modes forward,backward --peers SDPA,attrdrop --limit 60
TAIL=10 stage bert 60 "${text[@]}" "${bert[@]}" --arms ADDrop "ADDrop, first layer" "lean eager"
TAIL=10 stage resnet 60 "${images[@]}" "${resnet[@]}" \
  --arms RelDrop "epsilon, p=.5" "z+, p=.5" "z+, p=.5, to stage 2" "random erasing"
TAIL=12 stage eager 60 "${run[@]}" keep_mask random_keep_mask "${one[@]}"
if command -v compute-sanitizer >/dev/null || [[ $rehearsal ]]; then
  sanitizer=(compute-sanitizer --tool memcheck --error-exitcode 1)
  [[ $rehearsal ]] && sanitizer=(env)
  TAIL=4 stage sanitizer 80 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH="$work/site" PYTHONSAFEPATH=1 \
    "${sanitizer[@]}" "$PYTHON" -m bench.smoke "$what"
fi
TAIL=30 stage ops 60 "${run[@]}" occlude_blocks occlude_points relevance_gate_relu farthest_point_sample ball_query \
  group_points attention_attribution "${many[@]}"
TAIL=12 stage steps 60 "${text[@]}" "${lean[@]}" \
  --arms "plain, CUDA graph" ADDrop "ADDrop, CUDA graph" "ADDrop, first layer" "ADDrop, RD" "lean eager" "per-layer loop"
TAIL=4 stage sweep 200 "${run[@]}" masked_attention --modes forward,backward --peers SDPA,attrdrop "${small[@]:---seconds=0.3}" --limit 180
TAIL=4 stage flex 380 "${run[@]}" masked_attention --modes forward,backward --peers FlexAttention --seconds 0.5 --limit 360

(cd "$OUT" && tar czf logs.tgz ./*.log smoke.jsonl 2>/dev/null && rm -f ./*.log smoke.jsonl) # few files come back
if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
echo "all stages passed"
