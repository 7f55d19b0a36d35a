#!/usr/bin/env bash
# deepspeed==0.19.8 (torch==2.15.0): get_fp32_state_dict_from_zero_checkpoint, which is what zero_to_fp32.py calls, leaves
# frozen parameters out at ZeRO stage 1, without a word, and gives them at stages 2 and 3. Its argument
# exclude_frozen_parameters is False in all three calls.
# Seen: "stage 1: frozen False; stage 2: frozen True; stage 3: frozen True".
# Why it matters: a diffusion transformer has a fixed table of positions (pos_embed) that is a frozen parameter. Its fp32
# weights taken from a stage 1 checkpoint lack the table; a loader that is not strict then keeps whatever the model began
# with, and one that is strict refuses a checkpoint that is whole. Take the table from the model's own code.
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
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it takes minutes to compile, and is not needed here
folder = sys.argv[1]
deepspeed.init_distributed(dist_backend="gloo", verbose=False)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.trained = torch.nn.Linear(8, 8)
        self.frozen = torch.nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, x):
        return self.trained(x) + self.frozen


said = []
for stage in (1, 2, 3):
    model = Model()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
    engine.backward(engine(torch.ones(1, 8)).square().mean())
    engine.step()
    engine.save_checkpoint(f"{folder}/{stage}")
    weights = get_fp32_state_dict_from_zero_checkpoint(f"{folder}/{stage}")
    said.append(f"stage {stage}: frozen {'frozen' in weights}")
open(f"{folder}/said", "w").write("; ".join(said))
PY
RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + RANDOM % 20000)) \
    "$work/venv/bin/python" "$work/try.py" "$work" > "$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; exit 1; }
cat "$work/said"
echo
[ "$(cat "$work/said")" = "stage 1: frozen False; stage 2: frozen True; stage 3: frozen True" ] || {
    echo "This has changed: stage 1 no longer differs from stages 2 and 3." >&2
    exit 1
}
