#!/usr/bin/env bash
# xformers==0.0.35 with torch==2.15.0 (and with the 2.10 that it is built for): what `memory_efficient_attention` runs, for
# tensors without a mask, is PyTorch's own flash kernel. Its operators fa2F and fa2B call aten._flash_attention_forward and
# _backward, cutlassF and cutlassB call aten._efficient_attention_forward and _backward; the binary of xformers holds
# sparse products alone. It still decides: where it does not load (CUDA 12's runtime is missing), every operator is refused on
# every GPU, although the kernel itself is in PyTorch.
# Seen: "fa2F: PyTorch's; fa2B: PyTorch's; cutlassF: PyTorch's; cutlassB: PyTorch's; the flag that refuses: _built_with_cuda".
# Why it matters: xformers against flash in PyTorch is one kernel under two names (a difference in time is in the layout of
# tensors, not in the kernel), newer kernels of PyTorch arrive without a new xformers, and a run that falls back from one to
# the other computes the same attention.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 xformers==0.0.35 numpy
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import inspect

from xformers.ops import fmha
from xformers.ops.fmha import common, flash

operators = {"cutlassF": fmha.cutlass.FwOp, "cutlassB": fmha.cutlass.BwOp, "fa2F": fmha.flash.FwOp, "fa2B": fmha.flash.BwOp}
seen = {}
for name in ("fa2F", "fa2B", "cutlassF", "cutlassB"):
    operator = operators[name]
    if name.startswith("cutlass"):
        is_pytorchs = str(operator.OPERATOR).startswith("aten._efficient_attention")
    else:
        is_pytorchs = flash._USE_PT_FLASH_ATTN and operator.NAME.endswith("-pt")
    seen[name] = "PyTorch's" if is_pytorchs else "its own"
flag = "_built_with_cuda" if "_built_with_cuda" in inspect.getsource(common.AttentionOpBase) else "another"
print("; ".join(f"{name}: {whose}" for name, whose in seen.items()) + f"; the flag that refuses: {flag}")
changed = set(seen.values()) != {"PyTorch's"} or flag == "another"
raise SystemExit("This has changed: xformers runs kernels of its own, or refuses for another reason." if changed else 0)
PY
