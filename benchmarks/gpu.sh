#!/usr/bin/env bash
# Every figure of one GPU that docs/performance.md asks for, in about ten minutes:
#
#   benchmarks/gpu.sh OUT [CHECKOUT_OF_FACEBOOKRESEARCH_DIT]
#
# writes a JSON and a text for each benchmark to OUT and goes on where one fails. MODEL, BATCH (which fills the GPU: 256 is
# for 140 GB) and ROUNDS change what is run; a quarter of the batch is what the official code has room for.
set -uo pipefail
out=$1 peer=${2:-$(dirname "$0")/plain}
model=${MODEL:-DiT-XL/2} batch=${BATCH:-256} rounds=${ROUNDS:-3}
mkdir -p "$out"
cd "$(dirname "$0")/.."

bench() { # NAME BENCHMARK OPTIONS…: one benchmark
    local name=$1
    shift
    echo "== $name: dit-scale bench $*"
    python -m dit_scale bench "$@" --json "$out/$name.json" 2>"$out/$name.err" | tee "$out/$name.txt" ||
        echo "$name failed: see $out/$name.err"
}

quarter=$(((batch + 3) / 4))
common=(--model "$model" --precision bf16)
compiled=("${common[@]}" --compile --rounds "$rounds")
python -m pytest -q -m gpu tests/models tests/distributed/test_gate.py 2>&1 | tee "$out/tests.txt" | tail -n 3
bench attention-256 attention "${common[@]}" --batch-size $(((batch + 1) / 2))
bench attention-512 attention "${common[@]}" --image-size 512 --batch-size "$quarter"
for size in 256 512; do # heads of 64 instead of 72
    bench attention-64-$size attention --model DiT-L/2 --precision bf16 --image-size $size --batch-size "$quarter"
done
bench step-256 step "${compiled[@]}" --batch-size "$batch"
bench step-256-small step "${compiled[@]}" --batch-size $(((batch + 7) / 8))
bench step-256-peer step "${compiled[@]}" --batch-size "$quarter" --peer-path "$peer"
bench step-256-bf16-peer step "${compiled[@]}" --batch-size "$quarter" --peer-path "$peer" --peer-precision bf16
bench step-512 step "${compiled[@]}" --image-size 512 --batch-size "$quarter"
bench step-256-checkpointed step "${compiled[@]}" --batch-size "$batch" --checkpoint-every-blocks 1
bench step-256-budget step "${compiled[@]}" --batch-size "$batch" --activation-budget 0.5
bench step-256-fp8 step "${compiled[@]}" --batch-size "$batch" --fp8
bench feed feed "${compiled[@]}" --batch-size "$batch"
bench sample sample "${compiled[@]}" --batch-size "$quarter" --peer-path "$peer"
bench checkpoint checkpoint --rounds "$rounds"
