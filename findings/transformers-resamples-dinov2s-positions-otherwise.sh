#!/usr/bin/env bash
# transformers==4.57.6 (torch==2.15.0): Dinov2Model given images of 224 pixels resamples its position table, 37 x 37 as
# published, to 16 x 16 by bicubic interpolation WITHOUT antialiasing. timm's resample_abs_pos_embed, by which REPA and what
# follows it prepare DINOv2, has antialiasing on by default; so has Dinov2WithRegistersModel in the same transformers.
# Seen, relative distance of transformers' 16 x 16 places from the antialiased ones, for a smoothed random table / a random one:
# "dinov2: 36% / 194%; dinov2_with_registers: 0% / 0%".
# Why it matters: features of facebook/dinov2-base taken through transformers are not those that REPA's results were reached
# with, and nothing says so: shapes and names are the same. Resample the table first, with antialias=True, and put it into a
# model whose image_size is 224; it then takes the table as it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 transformers==4.57.6 numpy
cat > "$work/try.py" <<'PY'
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

SIZES = {"image_size": 518, "patch_size": 14, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def distance(model, table):
    """How far the model's own 16 x 16 places are from the antialiased ones, relative."""
    embeddings = model.embeddings
    embeddings.position_embeddings.data[:, 1:] = table
    own = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 16 * 16, 32), 224, 224)[:, 1:]
    grid = table.reshape(1, 37, 37, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (16, 16), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    return round(100 * ((own - expected).norm() / expected.norm()).item())


torch.manual_seed(0)
rough = torch.randn(1, 37 * 37, 32)
smooth = F.avg_pool2d(rough.reshape(1, 37, 37, 32).permute(0, 3, 1, 2), 5, 1, 2).flatten(2).transpose(1, 2)
said = []
with torch.no_grad():
    for name, config, kind in (
        ("dinov2", Dinov2Config, Dinov2Model),
        ("dinov2_with_registers", Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    ):
        model = kind(config(**SIZES))
        found = [distance(model, table) for table in (smooth, rough)]
        said.append((name, found))
print("; ".join(f"{name}: {found[0]}% / {found[1]}%" for name, found in said))
changed = min(said[0][1]) == 0 or max(said[1][1]) > 0
raise SystemExit("This has changed: transformers resamples the tables in another way." if changed else 0)
PY
"$work/venv/bin/python" "$work/try.py"
