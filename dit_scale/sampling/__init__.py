"""Weights and a solver -> images; image ``i`` depends on (seed, i) and its label alone, on any number of ranks."""

from dit_scale.sampling.drawing import SamplingSettings, sample_latents
from dit_scale.sampling.sampler import AUTOENCODER_FOLDER, Sampler, sampler_of

__all__ = ["AUTOENCODER_FOLDER", "Sampler", "SamplingSettings", "sample_latents", "sampler_of"]
