#!/usr/bin/env bash
# What needs an accelerator, one step after the other, each with its own limit of time: tests of the package on the
# device, the sweep of matrix sensing at 4096 lanes, the workloads beside plain diffrax, and the `gpu` presets of the
# experiments with networks.
#
#   benchmarks/gpu.sh [--dry-run] [FOLDER] [STEP...]
#
# Records go to FOLDER (default: runs/gpu). A step that fails or runs out of time does not stop the others; the
# exit status is 1 then. STEP: tests, sweep, workloads, or an experiment of `mirrorjax list`; all of them by default.
# `--dry-run` prints the command of each step and runs nothing.
set -uo pipefail
cd "$(dirname "$0")/.."

dry=
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
folder=${1:-runs/gpu}
shift || true
steps=("$@")
[ ${#steps[@]} -eq 0 ] && steps=(tests sweep workloads vit vit-scratch lr-schedule pilot lora)

# What differs between devices: products, loops with conditions, scatters of finished lanes, random numbers, training.
tests=(
    tests/geometry/test_inversion.py
    tests/geometry/test_spectral.py
    tests/dynamics/test_flows.py
    tests/dynamics/test_rkc_lanes.py
    tests/sweeps/test_scheduler.py
    tests/nn/test_train.py
)
# Workers share the device's memory, so none may take it all at its start.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
export BENCH_LANES=${BENCH_LANES:-64,256,1024,4096}

failed=()
step() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    echo "== $name, at most $seconds s: $*"
    [ -n "$dry" ] && return
    local start=$SECONDS
    timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$folder/$name.log" 2>&1
    local status=$?
    tail -n 8 "$folder/$name.log"
    echo "== $name ended with status $status after $((SECONDS - start)) s"
    [ "$status" -eq 0 ] || failed+=("$name")
}

[ -n "$dry" ] || mkdir -p "$folder"
[ -n "$dry" ] || python3 -c "import jax; print(jax.__version__, jax.devices())" | tee "$folder/device.txt"
for name in "${steps[@]}"; do
    case $name in
    tests)
        step tests 240 python3 -m pytest -n6 -q -p no:cacheprovider -o filterwarnings=default "${tests[@]}"
        ;;
    sweep)
        step sweep 180 python3 -m pytest benchmarks/bench_sweep.py -n0 -q -p no:cacheprovider --benchmark-only \
            -k "test_sweep or test_lanes or vmap" "--benchmark-json=$folder/sweep-gpu.json"
        ;;
    workloads)
        # As ours do, the products of plain diffrax keep the digits of float32: by TF32 it takes ten times the steps.
        JAX_DEFAULT_MATMUL_PRECISION=highest step workloads 300 python3 -m pytest benchmarks/bench_workloads.py -n0 -q -p no:cacheprovider --benchmark-only \
            -o filterwarnings=default -k "plain or sweep or solve" "--benchmark-json=$folder/workloads-gpu.json"
        ;;
    *)
        step "$name" 300 python3 -m mirrorjax reproduce "$name" --preset gpu --float32 --out "$folder/$name"
        ;;
    esac
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
