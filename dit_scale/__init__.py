"""dit_scale: from a folder of images to a trained Diffusion Transformer, on any number of GPUs."""

__version__ = "0.1.0"
