"""dit_scale: from a folder of images to a trained Diffusion Transformer, on any number of GPUs."""

from dit_scale.memory_efficient import load_cuda_runtime

__version__ = "0.1.0"

load_cuda_runtime()
