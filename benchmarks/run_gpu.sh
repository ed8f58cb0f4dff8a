#!/usr/bin/env bash
# Everything that needs a GPU, in one command of under 9 minutes: compilation, correctness, then times, then tile sizes.
#
# usage: [OUT=folder] [PYTHON=python3] benchmarks/run_gpu.sh [--dry-run] [--seconds N] [--only STAGE]...
#
# Needs torch, triton and numpy, and what `make carry` laid beside the sources: the compiled libraries of x86-64 Linux
# (tzn/_native*.abi3.so; timed where they are, named in the results where not) and pure data packages (build/carry). Nothing is
# installed and no network is used.
# Every stage is a process of its own with a time limit and writes $OUT/<stage>.json after every row, so what was measured
# before a stop stays. Where a stage loses the device (an illegal access, a crash), a new process goes on with its next
# group of cases. Rows for which the time did not suffice are listed as skipped.
# Exit code: 0 all rows are there and good; 1 something failed; 2 rows were skipped for want of time, or the call was wrong.
# --dry-run runs every line on the CPU in Triton's interpreter at tiny sizes. --seconds N: of every stage, in place of its own.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
OUT=${OUT:-benchmarks/results/gpu}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-535} # seconds for all stages together
export PYTHONUNBUFFERED=1
dry=() only=() override=
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=(--dry-run); export TRITON_INTERPRET=1 TZN_BACKEND=triton; LIMIT=100000 ;;
    --seconds)
      [[ ${2:-} =~ ^[0-9]+$ ]] || { echo "run_gpu.sh: --seconds: got '${2:-}', expected whole seconds" >&2; exit 2; }
      override=$2
      shift
      ;;
    --only)
      only+=("${2:-}")
      [ -f "benchmarks/gpu/${2:-}.py" ] || { echo "run_gpu.sh: --only: got '${2:-}', expected a stage of benchmarks/gpu" >&2; exit 2; }
      shift
      ;;
    *) echo "run_gpu.sh: got '$1', expected --dry-run, --seconds N or --only STAGE" >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$OUT" || exit 2
: >"$OUT/run.log"
# What was carried is of one version of Python: it is used only where the environment's own packages do not suffice.
imports() { "$PYTHON" -c 'import numpy, pydantic, torch, tqdm, triton, yaml' 2>>"$OUT/run.log"; }
imports || {
  export PYTHONPATH="$PWD/build/carry${PYTHONPATH:+:$PYTHONPATH}"
  [ -d build/carry ] && imports
} || {
  tail -n 1 "$OUT/run.log" >&2
  echo "run_gpu.sh: $PYTHON lacks a package; where there is a network, 'make carry' lays what torch does not bring beside the sources" >&2
  exit 2
}
status=0

# fails CODE: 1 wins over 2, which wins over 0.
fails() {
  if [ "$1" -eq 1 ] || [ "$status" -eq 1 ]; then status=1; else status=2; fi
}

# stage NAME SECONDS LIMIT [wrapper...]: begins nothing new after SECONDS, is stopped after LIMIT, or when all time is over.
stage() {
  local name=$1 seconds=${override:-$2} limit=$3 resume=() began=$SECONDS code left rest
  shift 3
  if [ ${#dry[@]} -gt 0 ]; then
    limit=$((20 * limit))
    seconds=${override:-$((20 * seconds))}
  fi
  [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $name "* ]] || return 0
  echo "== $name" | tee -a "$OUT/run.log"
  while :; do
    left=$((limit - (SECONDS - began)))
    [ $left -le $((LIMIT - SECONDS)) ] || left=$((LIMIT - SECONDS))
    if [ $left -le 0 ]; then code=124; break; fi
    # A row takes a few seconds: nothing begins in the last eight of what is left.
    rest=$((seconds - (SECONDS - began)))
    [ $rest -le $((left - 8)) ] || rest=$((left - 8))
    [ $rest -ge 0 ] || rest=0
    timeout -k 5 "$left" "$@" "$PYTHON" -W ignore -m "benchmarks.gpu.$name" --out "$OUT" --seconds $rest ${dry[@]+"${dry[@]}"} \
      ${resume[@]+"${resume[@]}"} 2>&1 | tee -a "$OUT/run.log"
    code=${PIPESTATUS[0]}
    # 75: the device takes no more work; 128 and more: a signal ended the process. 124 and 137: the time is over.
    if [ "$code" -ne 75 ] && { [ "$code" -lt 128 ] || [ "$code" -eq 137 ]; }; then break; fi
    [ "$name" != precompile ] && [ -s "$OUT/$name.json" ] || { code=1; break; }
    fails 1
    resume=(--resume)
    echo "== $name lost the device ($code), goes on in a new process" | tee -a "$OUT/run.log"
  done
  echo "== $name ended with $code after $((SECONDS - began)) s" | tee -a "$OUT/run.log"
  case $code in
    0) ;;
    2 | 124 | 137) fails 2 ;;
    *) fails 1 ;;
  esac
}

[ ${#dry[@]} -gt 0 ] || nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv | tee -a "$OUT/run.log" || true
stage precompile 70 85 env -u TRITON_INTERPRET
stage parity 115 135
if [ ${#dry[@]} -eq 0 ] && command -v compute-sanitizer >/dev/null; then
  stage small_kernels 35 55 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9
else
  stage small_kernels 35 55
fi
stage end_to_end 90 110
stage op_times 90 110
stage autotune 40 60
echo "run_gpu.sh: $((SECONDS)) s, exit code $status" | tee -a "$OUT/run.log"
exit $status
