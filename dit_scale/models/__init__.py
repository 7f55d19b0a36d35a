"""The Diffusion Transformer, its sizes and its attention; knows no rank, no config file and no DeepSpeed."""

from dit_scale.models.config import NetworkConfig, Projectors
from dit_scale.models.dit import DiT
from dit_scale.models.presets import PRESETS, build_model
from dit_scale.models.route import Route

__all__ = ["PRESETS", "DiT", "NetworkConfig", "Projectors", "Route", "build_model"]
