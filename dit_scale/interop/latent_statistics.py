"""A file with the mean and deviation of a set's latents, by which others normalise them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dit_scale.errors import InputError
from dit_scale.torch_file import read_torch_file


def read_latent_statistics(path: Path, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and shift, a number each a channel, from a file of torch.save with ``mean`` and ``std``.

    LightningDiT's ``latents_stats.pt`` holds [1, C, 1, 1] of both. Raises InputError for any other.
    """
    content = read_torch_file(path)
    found = content if isinstance(content, Mapping) else {}
    mean, deviation = found.get("mean"), found.get("std")
    if isinstance(mean, Tensor) and isinstance(found.get("var"), Tensor) and mean.dim() >= 3 and mean[0].numel() > 1:
        raise InputError(
            f"--latent-statistics '{path}' hold numbers for each position, {tuple(mean.shape)}, as RAE's do, and "
            f"latents here are normalised a channel; leave the option out: what the run draws is then still normalised"
        )
    if not isinstance(mean, Tensor) or not isinstance(deviation, Tensor):
        raise InputError(
            f"--latent-statistics '{path}' hold no tensors 'mean' and 'std'; give LightningDiT's latents_stats.pt, or "
            f"--latent-scale"
        )
    if {mean.numel(), deviation.numel()} != {channels}:
        raise InputError(
            f"--latent-statistics '{path}' have a mean of {tuple(mean.shape)} and a std of {tuple(deviation.shape)}, "
            f"and the model's latents have {channels} channels; give those of the latents that it was trained on"
        )
    if not (deviation > 0).all():
        raise InputError(f"--latent-statistics '{path}' have a std that is not above 0; give a file that is whole")
    return tuple((1 / deviation.double()).flatten().tolist()), tuple(mean.double().flatten().tolist())
