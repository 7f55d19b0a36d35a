#!/usr/bin/env bash
# deepspeed==0.19.8 (torch==2.15.0): deepspeed.initialize with the optimizer "Muon" sets param.use_muon of every parameter of
# the model by itself (two or more dimensions, and neither "embed" nor "lm_head" in the name), and so overwrites, without a
# word, what the user has set. Its own error about untagged parameters advises to set param.use_muon = True / False.
# Seen: "stage 1: embedder.weight True -> False, final_layer.weight False -> True", and the same at stage 2.
# Why it matters: Muon is meant for hidden matrices. A diffusion transformer's last layer, which is no hidden matrix, is
# updated by Muon whatever the user says, and any matrix whose name holds "embed" by Adam. Which parameter goes where must
# be read from the optimizer's groups afterwards, or parameters renamed before.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy setuptools wheel py-cpuinfo ninja
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation deepspeed==0.19.8
cat > "$work/try.py" <<'PY'
import sys

import deepspeed
import torch
from deepspeed import ops

ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it takes minutes to compile, and is not needed here
deepspeed.init_distributed(dist_backend="gloo", verbose=False)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedder = torch.nn.Linear(8, 8)
        self.final_layer = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.final_layer(self.embedder(x))


said = []
for stage in (1, 2):
    model = Model()
    for name, parameter in model.named_parameters():
        parameter.use_muon = name == "embedder.weight"
    asked = {name: parameter.use_muon for name, parameter in model.named_parameters()}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {"type": "Muon", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    changed = [
        f"{name} {asked[name]} -> {parameter.use_muon}"
        for name, parameter in model.named_parameters()
        if parameter.use_muon != asked[name]
    ]
    said.append(f"stage {stage}: " + ", ".join(changed))
open(sys.argv[1], "w").write("; ".join(said))
PY
RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + RANDOM % 20000)) \
    "$work/venv/bin/python" "$work/try.py" "$work/said" > "$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; exit 1; }
cat "$work/said"
echo
changes="embedder.weight True -> False, final_layer.weight False -> True"
[ "$(cat "$work/said")" = "stage 1: $changes; stage 2: $changes" ] || {
    echo "This has changed: the user's use_muon is kept, or other parameters are tagged." >&2
    exit 1
}
