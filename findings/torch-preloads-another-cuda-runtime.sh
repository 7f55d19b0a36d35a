#!/usr/bin/env bash
# torch==2.15.0 (built for CUDA 13.2) with nvidia-cuda-runtime-cu12==12.9.79 installed beside it: `import torch` loads
# libcudart.so.12, the runtime of another CUDA, into the process, on a machine without a GPU, too. PyTorch preloads the first
# libcudart.so.* that lies in nvidia/cuda_runtime/lib, where only the packages of CUDA 12 put theirs; its own 13 lies in
# nvidia/cu13/lib and comes through the binary's search path all the same. Without that package no such library is loaded.
# Seen: "without the package: 13; with it: 12 13".
# Why it matters: whether a binary for CUDA 12 (xformers 0.0.35) loads under a PyTorch for CUDA 13 depends on a package that
# nothing requires, and then works only because PyTorch happens to load it; a process with two CUDA runtimes is nothing that
# pip, or torch.version.cuda, would tell.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
loaded() {
    "$work/venv/bin/python" - <<'PY'
import re

import torch

print(torch.version.cuda.split(".")[0] == "13" and " ".join(sorted(set(re.findall(r"libcudart\.so\.(\d+)", open("/proc/self/maps").read())))))
PY
}
without=$(loaded)
"$work/venv/bin/pip" install --quiet --disable-pip-version-check nvidia-cuda-runtime-cu12==12.9.79
with=$(loaded)
echo "without the package: $without; with it: $with"
[ "$without" = 13 ] && [ "$with" = "12 13" ] || {
    echo "This has changed: PyTorch no longer loads the runtime of CUDA 12 because that package is installed." >&2
    exit 1
}
