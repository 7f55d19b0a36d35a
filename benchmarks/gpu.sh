#!/usr/bin/env bash
# Every figure of one GPU that docs/performance.md asks for, in about ten minutes:
#
#   benchmarks/gpu.sh OUT [CHECKOUT_OF_FACEBOOKRESEARCH_DIT]
#
# writes a JSON and a text for each benchmark to OUT and goes on where one fails. MODEL, BATCH and ROUNDS change what is run.
set -uo pipefail
out=$1 peer=${2:-$(dirname "$0")/plain}
model=${MODEL:-DiT-XL/2} batch=${BATCH:-128} rounds=${ROUNDS:-5}
mkdir -p "$out"
cd "$(dirname "$0")/.."

bench() { # NAME BENCHMARK OPTIONS…: one benchmark
    local name=$1
    shift
    echo "== $name: dit-scale bench $*"
    python -m dit_scale bench "$@" --json "$out/$name.json" 2>"$out/$name.err" | tee "$out/$name.txt" ||
        echo "$name failed: see $out/$name.err"
}

common=(--model "$model" --precision bf16)
python -m pytest -q -m gpu tests/models 2>&1 | tee "$out/tests.txt" | tail -n 3
bench attention-256 attention "${common[@]}" --batch-size "$batch"
bench attention-512 attention "${common[@]}" --image-size 512 --batch-size $((batch / 4 + 1))
bench step-256 step "${common[@]}" --batch-size "$batch" --compile --rounds "$rounds" --peer-path "$peer"
bench step-256-bf16-peer step "${common[@]}" --batch-size "$batch" --compile --rounds "$rounds" --peer-path "$peer" \
    --peer-precision bf16
bench step-512 step "${common[@]}" --image-size 512 --batch-size $((batch / 4 + 1)) --compile --rounds "$rounds"
bench step-256-checkpointed step "${common[@]}" --batch-size "$batch" --compile --rounds "$rounds" \
    --checkpoint-every-blocks 1
bench feed feed "${common[@]}" --batch-size "$batch" --compile --rounds "$rounds"
bench sample sample "${common[@]}" --batch-size $((batch / 4 + 1)) --compile --rounds "$rounds" --peer-path "$peer"
bench checkpoint checkpoint --rounds 3
