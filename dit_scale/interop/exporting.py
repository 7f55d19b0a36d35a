"""`dit-scale export`: the weights of a run or a checkpoint in the formats of others."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from dit_scale.autoencoder import load_autoencoder
from dit_scale.autoencoder.convolutional import ConvAutoencoder
from dit_scale.checkpoint import open_whole, weights_of
from dit_scale.checkpoint.averages import youth_of
from dit_scale.classes import ClassNames
from dit_scale.config import Config, config_from
from dit_scale.config.fields import shown
from dit_scale.errors import InputError
from dit_scale.files import atomic_folder, full_disk_explained, make_writable_folder
from dit_scale.interop import FORMS, architecture_of, write_weights
from dit_scale.interop.architecture import OWN_LAYERS
from dit_scale.interop.families import PROJECTORS, contradiction, family_of
from dit_scale.interop.pipeline_folder import Noise, write_pipeline
from dit_scale.interop.pipeline_names import TABLE_CLASSES
from dit_scale.interop.rotations import rotations_of
from dit_scale.latents import LatentSpec
from dit_scale.models import DiT, NetworkConfig
from dit_scale.models.config import FROM_DATA, FROM_SECTIONS
from dit_scale.models.embeddings import sincos_positions
from dit_scale.models.presets import SIZES
from dit_scale.recipe import model_of
from dit_scale.sampling import AUTOENCODER_FOLDER
from dit_scale.weights import check_finite, check_names_and_shapes, without_side_layers

log = logging.getLogger(__name__)

DIFFUSERS = "diffusers"
FORMATS = (*FORMS, DIFFUSERS)
"""What ``export`` can write."""


_SAID = ("label_dropout", "learn_sigma", "attention")
"""Switches of a network that a pipeline says in its own way, or that change no function."""


@dataclass(frozen=True)
class _Exported:
    """A trained model, whole."""

    weights: dict[str, Tensor]
    """Under the published names and in their order, then the tables of rotations that published loaders ask for."""
    model: DiT
    """Without weights: its numbers alone."""
    config: Config
    latents: LatentSpec
    class_names: ClassNames
    origin: str


def export(path: Path, out: Path, to: str, kind: str = "ema", keep_projectors: bool = False) -> None:
    """Write one kind of a run's or a checkpoint's weights, in fp32, as one of FORMATS.

    ``keep_projectors`` writes the layers of alignment, too. Raises InputError where something is at ``out`` already, or
    the format cannot say what the model is.
    """
    if keep_projectors and to == DIFFUSERS:
        raise InputError("--keep-projectors has no effect with --to diffusers, which has no projectors; leave it out")
    if to in FORMS and out.suffix != f".{to}":
        raise InputError(f"--out '{out}' does not end in .{to}, by which readers tell the format; give such a name")
    if to in FORMS and out.exists():
        raise InputError(f"'{out}' is there already; remove it, or give another path")
    exported = _read(path, kind, keep_projectors)
    with full_disk_explained(out.parent, "which starts from scratch"):
        if to == DIFFUSERS:
            _write_pipeline(exported, path, out)
        else:
            make_writable_folder(out.parent, "folder")
            write_weights(exported.weights, out, to)
    print(f"weights {kind} of {exported.origin} in {out}")


def _read(path: Path, kind: str, keep_projectors: bool) -> _Exported:
    checkpoint = open_whole(path)
    config = config_from(Config, checkpoint.description.config)
    data = checkpoint.description.data
    latents = LatentSpec.from_json(data["latent"])
    with torch.device("meta"):
        model = model_of(config, latents, len(data["class_names"]))
    whole = weights_of(checkpoint, kind)
    found = without_side_layers(whole, model.state_dict())
    if said := youth_of(checkpoint, kind):
        log.warning("%s; --weights master exports the trained weights", said)
    if "pos_embed" not in found:  # fixed, so training does not save it
        found["pos_embed"] = sincos_positions(model.hidden_size, model.grid_side).float()
    fix = "give another step-… of the run"
    check_names_and_shapes(found, model.state_dict(), str(checkpoint.folder), fix)
    check_finite(found, str(checkpoint.folder), fix)
    weights = {name: found[name] for name in model.state_dict()} | rotations_of(model)
    if keep_projectors:
        weights |= _projectors(whole, str(checkpoint.folder))
    if said := _misleading(weights, config):
        log.warning("Who reads these weights must be told of which network they are: %s", said)
    return _Exported(weights, model, config, latents, ClassNames(data["class_names"]), checkpoint.folder.name)


def _misleading(weights: Mapping[str, Tensor], config: Config) -> str | None:
    """Return, in words, what others would take weights for by their names, and be wrong."""
    if own := sorted({name.partition(".")[0] for name in weights if name.startswith(OWN_LAYERS)}):
        return f"{', '.join(own)} are layers of dit-scale's own, which published samplers and import refuse"
    family = family_of(weights)
    if family is not None and config.diffusion.name != "flow":
        return f"by {family.sign} they look like {family.name}'s, trained by flow matching, and this run's is not"
    return contradiction(weights, config.diffusion)


def _projectors(weights: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    found = {name: value for name, value in weights.items() if name.startswith(PROJECTORS)}
    if not found:
        raise InputError(f"--keep-projectors has no effect with '{origin}', which holds none; leave it out")
    check_finite(found, origin, "give another step-… of the run")
    return found


def _write_pipeline(exported: _Exported, path: Path, out: Path) -> None:
    _check_for_pipeline(exported, str(path))
    checkpoint = open_whole(path)
    run_dir = checkpoint.folder.parent.parent
    autoencoder = load_autoencoder(checkpoint.description.data["autoencoder"], folder=run_dir / AUTOENCODER_FOLDER)
    if not isinstance(autoencoder, ConvAutoencoder):
        raise InputError(
            f"the latents of '{path}' are those of autoencoder '{autoencoder.identity['name']}', which diffusers does "
            f"not have; export --to pt or safetensors"
        )
    diffusion = exported.config.diffusion
    with atomic_folder(out) as folder:
        write_pipeline(
            folder,
            exported.weights,
            architecture_of(exported.weights, str(path)),
            exported.model.num_heads,
            Noise(diffusion.num_timesteps, diffusion.schedule, diffusion.prediction),
            autoencoder.as_diffusers(exported.latents.scale[0]),
            exported.class_names,
        )


def _check_for_pipeline(exported: _Exported, origin: str) -> None:
    """Raise InputError for a model of which a DiTPipeline would make something else."""
    model, latents = exported.model, exported.latents
    reason = None
    if exported.config.diffusion.name != "gaussian":
        reason = "was trained with flow matching, and DiTPipeline takes Gaussian diffusion alone"
    elif switched := _switched(model.config):
        reason = switched
    elif model.num_classes > TABLE_CLASSES:
        reason = f"has {model.num_classes} classes, and DiTPipeline takes label {TABLE_CLASSES} for the null label"
    elif model.null_label is None:
        reason = "has no null label (model.label_dropout=0), with which DiTPipeline guides"
    elif len(set(latents.scale)) > 1:
        reason = f"has a latent scale for each channel ({_listed(latents.scale)}), and DiTPipeline has one for all"
    elif any(latents.shift):
        reason = f"has a latent shift ({_listed(latents.shift)}), and DiTPipeline has none"
    if reason is not None:
        raise InputError(f"'{origin}' {reason}; export --to pt or safetensors")


def _switched(config: NetworkConfig) -> str | None:
    """Return what makes a network another function than DiTTransformer2DModel's; a switch that is new does."""
    if config.route is not None and config.route.fill == "learnt":
        return "has routing.fill=learnt, and DiTTransformer2DModel has no fusion"
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name not in (*SIZES, *FROM_DATA, *FROM_SECTIONS, *_SAID) and value != entry.default:
            return f"has model.{entry.name}={shown(value)}, and DiTTransformer2DModel has {shown(entry.default)}"
    return None


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
