"""Every setting of an encoding, with its default, its range and a sentence about it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import MISSING

from dit_scale.config.fields import Spell, number, setting, unless, when
from dit_scale.errors import InputError

_PCA, _FITTED, _FOREIGN = when("name", "pca"), when("name", "fitted"), unless("name", "pca", "fitted")
_PATCHES = {"pca": ("pca_patch_size", "pca_channels"), "fitted": ("fit_patch_size", "fit_channels")}
"""The settings of patches, by the name of the codec that is fitted on them."""


@dataclass(frozen=True)
class SourceConfig:
    path: str = MISSING
    """Folder of class folders or of webdataset tars, a tar (ImageNet's own train.tar too), or a .jsonl or .csv list."""
    format: Literal["auto", "folders", "flat", "tars", "class_tars", "list"] = "auto"
    """How the images are stored; auto looks at what lies in the path."""
    labels: str | None = setting(None, only_if=when("format", "auto", "flat", "tars"))
    """Labels of a flat folder or tar (a validation set): a line an image, LABEL in the names' order, or NAME LABEL."""
    class_names: str | None = None
    """Class order: a text file, a name a line, or another shard folder; null sorts the names (for ImageNet, wnids)."""
    check_labels: bool = True
    """Refuse classes that cannot be meant: splits, folders of folders, labels that count from 1; false takes them."""
    exif_rotation: bool = False
    """Turn images as their EXIF orientation says; the published recipe does not."""


@dataclass(frozen=True)
class AutoencoderConfig:
    name: str = "stabilityai/sd-vae-ft-ema"
    """`pca` or `fitted` (codecs fitted on the images), a hub name or a local folder of a diffusers autoencoder."""
    revision: str | None = setting(None, only_if=_FOREIGN)
    """Revision of the hub's model; null takes the newest."""
    scale: tuple[float, ...] | None = number(None, above=0, only_if=when("measure_scale", False), or_one=True)
    """Latent scale, one number or one a channel; null takes the model's own (PCA: 1 / rms)."""
    shift: tuple[float, ...] | None = number(None, only_if=when("measure_scale", False), or_one=True)
    """Latent shift, one number or one a channel; null takes the model's own."""
    measure_scale: bool = False
    """Take scale and shift, per channel, from the latents' measured mean and standard deviation instead."""
    precision: Literal["fp32", "bf16"] = setting("fp32", only_if=_FOREIGN)
    """Arithmetic of the encoder."""
    compile: bool = setting(False, only_if=_FOREIGN)
    """Compile the encoder with torch.compile, which pays for long encodings on GPUs."""
    pca_patch_size: int = number(8, at_least=1, only_if=_PCA)
    """Side of the square image patch that the PCA codec turns into one latent pixel."""
    pca_channels: int = number(4, at_least=1, only_if=_PCA)
    """Principal components kept a patch: the PCA latent's channels."""
    pca_fit_images: int = number(2048, at_least=1, only_if=_PCA)
    """Images, chosen evenly over the source's order, from which the PCA codec is fitted."""
    fit_patch_size: int = number(8, at_least=1, only_if=_FITTED)
    """Side of the square image patch that the fitted codec turns into one latent pixel."""
    fit_channels: int = number(16, at_least=1, only_if=_FITTED)
    """Channels of the fitted codec's latent."""
    fit_images: int = number(2048, at_least=1, only_if=_FITTED)
    """Images, chosen evenly over the source's order and held in memory, on which the fitted codec learns."""
    fit_steps: int = number(800, at_least=1, only_if=_FITTED)
    """Steps of 32 images that the fitted codec learns for; 800 take about 200 CPU seconds."""

    def check_together(self, spell: Spell) -> None:
        """Raise InputError where settings do not fit each other."""
        for name in ("scale", "shift"):
            if getattr(self, name) == ():
                raise InputError(f"{spell(name)}=[] holds no number; give one, one a channel, or null")
        if self.revision is not None and Path(self.name).is_dir():
            raise InputError(
                f"{spell('revision')}={self.revision} has no effect with {spell('name')}={self.name}, a local folder; "
                f"leave it out, or give a hub name"
            )
        if self.name in _PATCHES:
            (patch_size, side), (channels, count) = ((key, getattr(self, key)) for key in _PATCHES[self.name])
            if count > 3 * side**2:
                raise InputError(
                    f"{spell(channels)}={count} is above {3 * side**2}, the numbers in a patch of "
                    f"{spell(patch_size)}={side}; give fewer channels or larger patches"
                )


@dataclass(frozen=True)
class EncodeConfig:
    source: SourceConfig = field(default_factory=SourceConfig)
    """The images."""
    output: str = MISSING
    """Shard folder to write."""
    image_size: int = number(256, at_least=8)
    """Side of the cropped image in pixels."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """The frozen autoencoder."""
    mirrors: Literal["both", "none"] = "both"
    """Store moments of the image and of its mirror image (horizontal flip), or of the image alone."""
    keep_crops: bool = False
    """Keep each cropped image, uint8, beside its latent, for training that looks at it (alignment)."""
    condition: str | None = None
    """Store what this model.condition reads, too, from NAME.ARRAY.npy beside NAME.jpg; null stores labels alone."""
    shard_records: int = number(4096, at_least=1)
    """Records a shard."""
    batch_size: int = number(32, at_least=1)
    """Images in one pass of the encoder, mirrors counted apart; fixed, so that it does not change the bytes."""
    workers: int = number(1, at_least=1)
    """Encoder processes on this machine when there is no launcher; on a CPU each computes with one thread."""
    decode_workers: int = number(2, at_least=0)
    """Processes per encoder that decode and crop images; 0 decodes in the encoder's own."""
    max_rejected: int = number(0, at_least=0)
    """Images that cannot be decoded and may be left out; one more stops the encoding."""

    def check_together(self, spell: Spell) -> None:
        """Raise InputError where settings do not fit each other."""
        key, _ = _PATCHES.get(self.autoencoder.name, (None, None))
        if key is not None and self.image_size % getattr(self.autoencoder, key):
            raise InputError(
                f"image_size={self.image_size} is not divisible by autoencoder.{key}="
                f"{getattr(self.autoencoder, key)}; change either"
            )
