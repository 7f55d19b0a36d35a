"""`dit-scale import`: weights of others as a run folder that can be sampled, exported and trained from."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dit_scale.autoencoder import NO_AUTOENCODER, Autoencoder, Identity, load_autoencoder, save_autoencoder
from dit_scale.checkpoint import Description, Position, Retention, Saver, State, resolve
from dit_scale.checkpoint.averages import EMA
from dit_scale.checkpoint.run_config import write_config
from dit_scale.classes import ClassNames
from dit_scale.config import Config, DataConfig, resolved
from dit_scale.distributed.fragments import Fragment
from dit_scale.distributed.runtime import World, process_group
from dit_scale.errors import Failure, InputError
from dit_scale.files import atomic_folder, full_disk_explained
from dit_scale.interop import Architecture, architecture_of, read_weights, refuse_folder
from dit_scale.interop.architecture import encoder_patches
from dit_scale.interop.families import PROJECTORS, objective_of
from dit_scale.interop.latent_statistics import read_latent_statistics
from dit_scale.interop.model_settings import model_settings
from dit_scale.interop.pipeline_folder import INDEX, Noise, read_pipeline
from dit_scale.interop.rotations import check_rotations
from dit_scale.latents import LatentSpec
from dit_scale.models.embeddings import sincos_positions
from dit_scale.recipe import model_of
from dit_scale.sampling import AUTOENCODER_FOLDER
from dit_scale.versions import versions
from dit_scale.weights import ROTATIONS, check_finite, check_names_and_shapes, without_side_layers

log = logging.getLogger(__name__)

DEFAULT_AUTOENCODER = "stabilityai/sd-vae-ft-ema"
_DEFAULT_CHANNELS = 4
_KNOWN_SCALES = {DEFAULT_AUTOENCODER: 0.18215, "stabilityai/sd-vae-ft-mse": 0.18215}
"""Of autoencoders whose weights are not needed to import a model."""
_FIX = "give a published DiT, SiT, LightningDiT, REPA or RAE checkpoint"
_POSITIONS = "pos_embed"
_POSITIONS_ATOL = 1e-2
"""As far as bf16 rounds a table of sines."""


@dataclass(frozen=True)
class Unsaid:
    """What weights do not say of their model; None is what their file says, or else the usual."""

    objective: str | None = None
    """``gaussian``, which is DiT's, or ``flow``; where names tell whose weights they are, theirs."""
    time_at_data: int | None = None
    """For flows, where names do not tell."""
    schedule: str | None = None
    """For Gaussian diffusion, as the next; a pipeline's folder says both itself."""
    prediction: str | None = None
    autoencoder: str | None = None
    latent_scale: tuple[float, ...] | None = None
    latent_statistics: Path | None = None
    """A file of mean and deviation instead."""
    class_names: ClassNames | None = None
    num_heads: int | None = None
    rope: bool | None = None
    """For weights without tables of rotations, which tell it otherwise."""
    latent_size: int | None = None
    """For weights without the table of positions, whose length tells it otherwise."""
    keep_projectors: bool | None = None
    """Keep the layers that are trained beside a network for alignment, for training that goes on with it."""


def import_weights(source: Path, out: Path, unsaid: Unsaid) -> None:
    """Write a run folder of step 0 that holds weights alone, fp32, under the kind ``ema``.

    ``source`` is a published .pt, a .safetensors or the folder of a DiTPipeline. Raises InputError where it is
    something else or a number is missing that nobody gave.
    """
    with atomic_folder(out) as folder, full_disk_explained(out.parent, "which starts from scratch"):
        read = _read_folder if source.is_dir() else _read_file
        weights, noise, said = read(source, unsaid)
        weights = _in_fp32(weights, str(source))
        architecture = architecture_of(weights, str(source))
        diffusion = objective_of(weights, architecture, said.objective, said.time_at_data, str(source))
        if diffusion.name != "gaussian":
            of = f"'{source}', which is of flow matching" if said.objective is None else f"--objective {said.objective}"
            fix = f"with {of}; leave it out, or give --objective gaussian"
            _refuse_given(unsaid, ("schedule", "prediction"), fix)
        _check_latent_size(architecture, unsaid.latent_size, str(source))
        class_names, has_null = _classes(architecture, said.class_names, str(source))
        model = model_settings(architecture, said.num_heads, said.rope, has_null, str(source))
        autoencoder, identity, latents = _autoencoder(architecture, said)
        diffusion = replace(diffusion, **asdict(noise))
        config = Config(run_dir=str(out), model=model, diffusion=diffusion, data=DataConfig(path=None))
        _check_weights(weights, config, latents, len(class_names), str(source))
        weights = _kept(weights, bool(said.keep_projectors), str(source))
        if autoencoder is not None:
            (folder / AUTOENCODER_FOLDER).mkdir()
            save_autoencoder(autoencoder, folder / AUTOENCODER_FOLDER)
        write_config(folder, config, "no device: imported")
        data = {"fingerprint": None, "latent": asdict(latents), "class_names": class_names, "autoencoder": identity}
        _save(folder, Description(Position(), resolved(config), data, versions()), weights)
    told = f"{model.name}, {len(class_names)} classes, {diffusion.name}"
    print(f"{told}: in {out}; dit-scale sample {out} draws from it")


def _refuse_given(unsaid: Unsaid, names: Iterable[str], fix: str) -> None:
    """Raise InputError for the first of these options that was given."""
    for name in names:
        if (value := getattr(unsaid, name)) is not None:
            given = "" if value is True else f" {value}"
            raise InputError(f"--{name.replace('_', '-')}{given} has no effect {fix}")


def _read_file(path: Path, unsaid: Unsaid) -> tuple[dict[str, Tensor], Noise, Unsaid]:
    """Return a file's weights, with positions, the noise that the options say, and the options."""
    usual = Noise()
    noise = Noise(schedule=unsaid.schedule or usual.schedule, prediction=unsaid.prediction or usual.prediction)
    return _with_positions(path, read_weights(path), unsaid), noise, unsaid


def _with_positions(path: Path, weights: dict[str, Tensor], unsaid: Unsaid) -> dict[str, Tensor]:
    """Return weights with positions, which some trainers do not save, since they are not trained."""
    try:
        patches = encoder_patches(weights)
    except KeyError:
        return weights
    if _POSITIONS in weights or patches.dim() != 4:
        return weights
    if unsaid.latent_size is None:
        raise InputError(
            f"weights '{path}' hold no {_POSITIONS}, the table of positions whose length tells the size of the latent; "
            f"give --latent-size N (32 for images of 256 and an autoencoder that makes them 8 times smaller)"
        )
    hidden_size, _, patch_size = patches.shape[:3]
    return {_POSITIONS: sincos_positions(hidden_size, unsaid.latent_size // patch_size).float()} | weights


def _check_is_pipeline(folder: Path) -> None:
    """Raise InputError, with what to do, for the folder of a run of ours or of another tool."""
    if (folder / INDEX).is_file():
        return
    try:
        resolve(folder)
    except InputError:
        refuse_folder(folder)  # what else it may be, reading it tells
    else:
        raise InputError(
            f"'{folder}' is of dit-scale's own already; sample and export take it as it is, and "
            f"init_from={folder} trains from it"
        )


def _read_folder(folder: Path, unsaid: Unsaid) -> tuple[dict[str, Tensor], Noise, Unsaid]:
    """Return a pipeline's weights with positions, its noise, and what else its folder says."""
    _check_is_pipeline(folder)
    fix = f"with '{folder}', the folder of a DiTPipeline, which is of Gaussian diffusion and says its own; leave it out"
    told = ("objective", "time_at_data", "schedule", "prediction", "num_heads", "rope", "latent_size")
    _refuse_given(unsaid, (*told, "keep_projectors"), fix)
    found = read_pipeline(folder, unsaid.class_names)
    hidden_size, _, patch_size = encoder_patches(found.weights).shape[:3]
    positions = sincos_positions(hidden_size, found.latent_size // patch_size).float()
    scale = None if found.latent_scale is None else (float(found.latent_scale),)
    said = replace(
        unsaid,
        autoencoder=unsaid.autoencoder or str(folder / "vae"),
        latent_scale=unsaid.latent_scale or scale,
        class_names=found.class_names,
        num_heads=found.num_heads,
    )
    return {_POSITIONS: positions} | found.weights, found.noise, said


def _check_latent_size(architecture: Architecture, given: int | None, origin: str) -> None:
    if given not in (None, architecture.latent_size):
        raise InputError(
            f"--latent-size {given} does not fit '{origin}', of size {architecture.latent_size} in patches of "
            f"{architecture.patch_size}; give the size that it was trained for, or leave it out"
        )


def _in_fp32(weights: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    for name, value in weights.items():
        if not value.is_floating_point():
            raise InputError(
                f"weights '{origin}' hold {name}, whose numbers are {str(value.dtype).removeprefix('torch.')} and not "
                f"floating point; save the state dict of a DiT alone"
            )
    return {name: value.float().contiguous() for name, value in weights.items()}


def _classes(architecture: Architecture, given: ClassNames | None, origin: str) -> tuple[ClassNames, bool]:
    """Return class names, and whether the label table has a null label beside them.

    Without a table the number of classes is not known, nor does it matter: one stands for all.
    """
    if architecture.condition == "none":
        return given or ClassNames(("all classes",)), False
    rows = architecture.num_labels
    names = ClassNames(map(str, range(rows - 1))) if given is None else given
    if len(names) not in (rows - 1, rows):
        raise InputError(
            f"{len(names)} class names are given and '{origin}' has {rows} labels, the null label among them or not; "
            f"give {rows - 1} names, or {rows} where it has none"
        )
    return names, len(names) == rows - 1


def _autoencoder(architecture: Architecture, said: Unsaid) -> tuple[Autoencoder | None, Identity, LatentSpec]:
    """Return the autoencoder, None where it is not at hand; what identifies it; and the latents."""
    name = said.autoencoder or DEFAULT_AUTOENCODER
    channels, size = architecture.in_channels, architecture.latent_size
    given = _normalisation(said, channels)
    if said.autoencoder is None and channels != _DEFAULT_CHANNELS:
        _warn_of_no_autoencoder(channels, is_normalised=given is not None)
        return None, NO_AUTOENCODER, LatentSpec(channels, size, *(given or ()))
    try:
        autoencoder = load_autoencoder(name)
    except InputError as error:
        if name not in _KNOWN_SCALES:
            raise
        log.warning(
            "%s. The weights are imported without it; dit-scale sample looks for it again, or takes --decoder", error
        )
        identity: Identity = {"kind": "AutoencoderKL", "name": name, "revision": None, "sha256": None}
        return None, identity, LatentSpec(channels, size, *(given or ((_KNOWN_SCALES[name],),)))
    if autoencoder.channels != channels:
        raise InputError(
            f"autoencoder '{name}' has {autoencoder.channels} channels and the model {channels}; give the autoencoder "
            f"that the model was trained with as --autoencoder NAME"
        )
    normalisation = given or (autoencoder.scale, autoencoder.shift)
    return autoencoder, autoencoder.identity, LatentSpec(channels, size, *normalisation)


def _normalisation(said: Unsaid, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return scale and shift of latents, where the user says them."""
    if said.latent_statistics is not None and said.latent_scale is not None:
        raise InputError("--latent-scale and --latent-statistics both say how latents are normalised; give one of them")
    if said.latent_statistics is not None:
        return read_latent_statistics(said.latent_statistics, channels)
    return None if said.latent_scale is None else (said.latent_scale, (0.0,))


def _warn_of_no_autoencoder(channels: int, is_normalised: bool) -> None:
    fix = ""
    if not is_normalised:
        fix = ". Latents are taken as not normalised; for LightningDiT's give --latent-statistics latents_stats.pt"
    log.warning(
        "The usual autoencoder, %s, makes latents of %d channels and this model takes %d: the weights are imported "
        "without one, and dit-scale sample needs --decoder%s",
        *(DEFAULT_AUTOENCODER, _DEFAULT_CHANNELS, channels, fix),
    )


def _check_weights(
    weights: Mapping[str, Tensor], config: Config, latents: LatentSpec, num_classes: int, origin: str
) -> None:
    """Raise InputError where the weights are not those of the model that they were taken for."""
    with torch.device("meta"):
        expected = model_of(config, latents, num_classes)
    state = expected.state_dict()
    check_names_and_shapes(without_side_layers(weights, state), state, origin, _FIX)
    check_finite(weights, origin, _FIX)
    check_rotations(weights, expected, origin, _FIX)
    positions = sincos_positions(expected.hidden_size, expected.grid_side).float()
    if not torch.allclose(weights[_POSITIONS], positions, rtol=0.0, atol=_POSITIONS_ATOL):
        raise InputError(f"weights '{origin}' have a {_POSITIONS} that is not DiT's table of sines and cosines; {_FIX}")


def _kept(weights: Mapping[str, Tensor], keep_projectors: bool, origin: str) -> dict[str, Tensor]:
    """Return what a run folder holds of weights: no computed rotations, and projectors where they are asked for."""
    weights = {name: value for name, value in weights.items() if not name.startswith(ROTATIONS)}
    projectors = [name for name in weights if name.startswith(PROJECTORS)]
    if keep_projectors and not projectors:
        raise InputError(f"--keep-projectors has no effect with '{origin}', which holds none; leave it out")
    if projectors and not keep_projectors:
        log.info(
            "weights '%s': projectors are dropped, of which sampling needs none; --keep-projectors keeps them for "
            "training that goes on with alignment",
            origin,
        )
    return {name: value for name, value in weights.items() if keep_projectors or name not in projectors}


def _save(run_dir: Path, description: Description, weights: Mapping[str, Tensor]) -> None:
    """Write the one checkpoint as training writes its own; raises Failure where it cannot."""
    fragments = [Fragment(name, 0, value.numel(), index, 0) for index, (name, value) in enumerate(weights.items())]
    flats = [value.flatten() for value in weights.values()]
    shapes = {name: value.shape for name, value in weights.items()}
    world = World()
    with process_group(world, "cpu"):
        saver = Saver(run_dir / "checkpoints", world, Retention(), in_background=False)
        saver.save(description, State(shapes, fragments, {EMA: flats}, adam_step=0))
        outcome = saver.wait()
    if outcome is None or outcome.trouble is not None:
        raise Failure(f"'{run_dir}' could not be written ({outcome and outcome.trouble}); fix that and run this again")
