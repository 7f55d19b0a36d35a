"""Weights in the formats of others: published files and diffusers' pipeline folders, in and out.

A state dict under the published parameter names is what all of them are turned into.
"""

from dit_scale.interop.architecture import Architecture, architecture_of
from dit_scale.interop.foreign_folders import refuse_folder
from dit_scale.interop.published import FORMS, load_into, read_weights, write_weights

__all__ = [
    "FORMS",
    "Architecture",
    "architecture_of",
    "load_into",
    "read_weights",
    "refuse_folder",
    "write_weights",
]
