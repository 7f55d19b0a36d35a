#!/usr/bin/env bash
# Images -> latents -> a trained DiT -> new images: run.sh VENV_BIN OUT [IMAGES [key.sub=value …, for training]]
set -euo pipefail
bin=$1 out=$2 images=${3:-}
settings=("${@:4}")
started=$SECONDS
say() { printf '\n== %s (%d min %02d s)\n' "$*" $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)); }
mkdir -p "$out"

if [ -z "$images" ]; then
    say "1/5 images: Debian's colour emoji, in classes merged from Unicode's own"
    images=$out/images
    "$bin/python" quickstart/images.py --out "$images"
elif [ ! -d "$images" ]; then
    echo "IMAGES='$images' is not a folder; give one with a folder of images for each class" >&2
    exit 2
fi

say "2/5 encode: images to latents, in webdataset tars"
"$bin/dit-scale" encode quickstart-encode "source.path=$images" "output=$out/latents"

# Without bf16 in hardware a CPU emulates it, tens of times slower than fp32.
precision=bf16
grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo || [ -e /dev/nvidia0 ] || precision=fp32

say "3/5 train: a DiT on two ranks under DeepSpeed ZeRO-2, in $precision"
OMP_NUM_THREADS=1 "$bin/torchrun" --standalone --local-addr 127.0.0.1 --nproc-per-node 2 -m dit_scale \
    train quickstart "data.path=$out/latents" "run_dir=$out/run" "engine.precision=$precision" "${settings[@]}"

say "4/5 sample: new images from the EMA, with guidance"
"$bin/dit-scale" sample "$out/run" --num-samples 72 --cfg-scale 2 --num-sampling-steps 20 --overwrite --out "$out/samples"

say "5/5 pictures"
"$bin/python" quickstart/show.py --real "$images" --samples "$out/samples" \
    --metrics "$out/run/metrics.jsonl" --out "$out"
"$bin/dit-scale" report "$out/run"

say "done"
cat <<END
Look at      $out/real-and-samples.png   real images beside the model's, class by class
             $out/run/report.html        the run's own page: losses, speed, previews with a slider
             $out/loss.png               the loss
             $out/run/samples/           how the samples came to be while training went on
What next    $bin/dit-scale evaluate $out/samples $images
             $bin/dit-scale sample $out/run --classes hearts,flags --num-samples 32 --cfg-scale 4 --seed 1 --out $out/more
             make quickstart IMAGES=path OUT=path          a folder of your own: one folder of images a class
             README.md, "To a cluster"                     the same commands train DiT-XL/2 on ImageNet
END
