#!/usr/bin/env bash
# Everything that needs a GPU, in one command of under 9 minutes: correctness first, then times, then tile sizes.
#
# usage: [OUT=folder] benchmarks/run_gpu.sh [--dry-run]
#
# Every stage is a process of its own with a time limit and writes $OUT/<stage>.json after every row, so what was measured
# before a stop stays. Nothing is installed; the CUDA kernel of csrc/cuda is timed where a build with TZN_CUDA=1 left its
# library. --dry-run runs every line on the CPU in Triton's interpreter at tiny sizes.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/gpu}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
: >"$OUT/run.log"
export PYTHONUNBUFFERED=1
dry=()
if [ "${1:-}" = --dry-run ]; then
  dry=(--dry-run)
  export TRITON_INTERPRET=1 TZN_BACKEND=triton
fi
status=0

# stage NAME SECONDS LIMIT [wrapper...]: begins nothing new after SECONDS, is stopped after LIMIT.
stage() {
  local name=$1 seconds=$2 limit=$3
  shift 3
  echo "== $name" | tee -a "$OUT/run.log"
  timeout -k 5 "$limit" "$@" "$PYTHON" -W ignore -m "benchmarks.gpu.$name" --out "$OUT" --seconds "$seconds" \
    ${dry[@]+"${dry[@]}"} 2>&1 | tee -a "$OUT/run.log"
  local code=${PIPESTATUS[0]}
  echo "== $name ended with $code" | tee -a "$OUT/run.log"
  [ "$code" -eq 0 ] || status=1
}

[ ${#dry[@]} -gt 0 ] || nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv || true
stage parity 100 125
[ $status -eq 0 ] || { echo "no parity, so nothing is timed"; exit 1; }
if [ ${#dry[@]} -eq 0 ] && command -v compute-sanitizer >/dev/null; then
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage small_kernels 30 50 compute-sanitizer --tool memcheck --error-exitcode 9
else
  stage small_kernels 30 50
fi
stage op_times 105 125
stage end_to_end 110 130
stage autotune 60 80
exit $status
