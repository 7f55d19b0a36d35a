"""The folder of a diffusers DiTPipeline: transformer, scheduler, autoencoder and the names of the classes."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

from torch import Tensor

from dit_scale.classes import ClassNames, as_number
from dit_scale.documents import read_document
from dit_scale.errors import InputError
from dit_scale.interop.architecture import Architecture
from dit_scale.interop.pipeline_names import (
    TABLE_CLASSES,
    cut_labels,
    pad_labels,
    to_pipeline_names,
    to_published_names,
)
from dit_scale.weights import from_diffusers, from_pretrained

log = logging.getLogger(__name__)

INDEX = "model_index.json"
"""The file that makes a folder a pipeline's."""

_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
"""The second is what the authors' own folders say."""
_FIXED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
_NORM_EPS = 1e-6
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


class _Index(TypedDict):
    _class_name: str
    id2label: NotRequired[dict[str, str] | None]


class _Transformer(TypedDict):
    _class_name: str
    norm_eps: NotRequired[float]


class _Named(TypedDict):
    _class_name: NotRequired[str]


class _Scheduler(TypedDict):
    beta_schedule: str
    beta_start: NotRequired[float]
    beta_end: NotRequired[float]
    num_train_timesteps: NotRequired[int]
    prediction_type: NotRequired[str | None]


class _Autoencoder(TypedDict):
    scaling_factor: NotRequired[float | None]


_Settings = TypeVar("_Settings")


@dataclass(frozen=True)
class Noise:
    """The discrete schedule and what the network predicts, in this library's words."""

    num_timesteps: int = 1000
    schedule: str = "linear"
    prediction: str = "epsilon"


@dataclass(frozen=True)
class Pipeline:
    """What a pipeline's folder holds, but for its autoencoder."""

    weights: dict[str, Tensor]
    """Under the published names, without the table of positions."""
    latent_size: int
    num_heads: int
    noise: Noise
    latent_scale: float | None
    """None where the folder leaves it to the autoencoder's class."""
    class_names: ClassNames


def write_pipeline(
    folder: Path,
    weights: Mapping[str, Tensor],
    architecture: Architecture,
    num_heads: int,
    noise: Noise,
    autoencoder: Any,
    class_names: Sequence[str],
) -> None:
    """Write a folder that ``DiTPipeline.from_pretrained`` loads; ``autoencoder`` is diffusers' model.

    ``weights`` have published names and a null label; the label table is filled up to 1001 rows.
    """
    transformer = from_diffusers("DiTTransformer2DModel")(
        num_attention_heads=num_heads,
        attention_head_dim=architecture.hidden_size // num_heads,
        in_channels=architecture.in_channels,
        out_channels=architecture.in_channels * (2 if architecture.learn_sigma else 1),
        num_layers=architecture.depth,
        sample_size=architecture.latent_size,
        patch_size=architecture.patch_size,
        num_embeds_ada_norm=TABLE_CLASSES,
        norm_eps=_NORM_EPS,
        **_FIXED,
    )
    transformer.load_state_dict(to_pipeline_names(pad_labels(weights), architecture.depth))
    scheduler = from_diffusers("DDIMScheduler")(**_scheduler_settings(noise))
    pipeline = from_diffusers("DiTPipeline")(transformer, autoencoder, scheduler)
    pipeline.register_to_config(id2label=dict(enumerate(class_names)))  # which the pipeline itself does not keep
    pipeline.save_pretrained(folder)


def read_pipeline(folder: Path, class_names: Sequence[str] | None = None) -> Pipeline:
    """Read a pipeline's folder; ``class_names`` win over its own.

    Raises InputError where it is another pipeline's, a file is missing or damaged, or no DiT could say the same.
    """
    index = _json(folder / INDEX, _Index)
    if index.get("_class_name") != "DiTPipeline":
        raise InputError(f"'{folder}' is of class {index.get('_class_name')}; give the folder of a DiTPipeline")
    _check_transformer(_json(folder / "transformer" / "config.json", _Transformer), folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    _check_scheduler(_json(scheduler, _Named), folder)
    noise = _noise_of(_json(scheduler, _Scheduler), folder)
    latent_scale = _json(folder / "vae" / "config.json", _Autoencoder).get("scaling_factor")
    if latent_scale is not None and not 0 < latent_scale < math.inf:
        raise InputError(
            f"'{folder / 'vae' / 'config.json'}' has scaling_factor={latent_scale:g}; give one above 0 there"
        )
    transformer = _load_transformer(folder)
    config = transformer.config
    weights = to_published_names(transformer.state_dict(), config.num_layers, str(folder))
    names = ClassNames(class_names or _own_names(index, folder) or map(str, range(config.num_embeds_ada_norm)))
    weights = cut_labels(weights, len(names), str(folder))
    return Pipeline(weights, config.sample_size, config.num_attention_heads, noise, latent_scale, names)


def _load_transformer(folder: Path) -> Any:
    path = folder / "transformer"
    return from_pretrained(
        from_diffusers("DiTTransformer2DModel"), path, f"'{path}'", "copy the folder again", local_files_only=True
    )


def _check_transformer(config: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError for a transformer that is no DiT."""
    kind = config.get("_class_name")
    if kind not in _CLASSES:
        raise InputError(f"the transformer of '{folder}' is of class {kind}; give one of class {_CLASSES[0]}")
    for key, needed in _FIXED.items():
        if config.get(key, needed) != needed:
            raise InputError(
                f"the transformer of '{folder}' has {key}={json.dumps(config[key])} where a DiT has "
                f"{json.dumps(needed)}; give a DiT's"
            )
    if config.get("norm_eps", 1e-5) != _NORM_EPS:
        log.warning(
            "'%s' normalises with epsilon %g there, %g here as published", folder, config["norm_eps"], _NORM_EPS
        )


def _check_scheduler(config: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError for a scheduler of flow matching, which has no schedule of betas."""
    if (name := config.get("_class_name", "")).startswith("FlowMatch"):
        raise InputError(
            f"the scheduler of '{folder}' is a {name}, of flow matching, but a DiTPipeline is read as one of Gaussian "
            f"diffusion; give published SiT weights with --objective flow"
        )


def _scheduler_settings(noise: Noise) -> dict[str, Any]:
    """Return DDIMScheduler's settings, with which it takes the same steps as solver ``ddim``."""
    scale = 1000 / noise.num_timesteps
    return {
        "num_train_timesteps": noise.num_timesteps,
        "beta_schedule": _SCHEDULES[noise.schedule],
        "beta_start": scale * 1e-4,
        "beta_end": min(scale * 0.02, 0.999),
        "prediction_type": _PREDICTIONS[noise.prediction],
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
    }


def _noise_of(config: Mapping[str, Any], folder: Path) -> Noise:
    """Undo ``_scheduler_settings``, for any scheduler; raises InputError where there is no such schedule here."""
    schedules = {there: here for here, there in _SCHEDULES.items()}
    predictions = {there: here for here, there in _PREDICTIONS.items()}
    kind, prediction = str(config.get("beta_schedule")), str(config.get("prediction_type") or "epsilon")
    if kind in schedules and prediction in predictions:
        num_timesteps = config.get("num_train_timesteps", 1000)
        if num_timesteps < 1:
            raise InputError(
                f"the scheduler of '{folder}' has num_train_timesteps={num_timesteps}; give 1 or more there"
            )
        noise = Noise(num_timesteps, schedules[kind], predictions[prediction])
        if _has_our_betas(config, _scheduler_settings(noise)):
            return noise
    raise InputError(
        f"the scheduler of '{folder}' has a schedule ({kind}, {prediction}) that is none of dit_scale's; give "
        f"a folder with DiT's linear schedule or a squaredcos_cap_v2"
    )


def _has_our_betas(config: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        return False
    ends = ("beta_start", "beta_end") if ours["beta_schedule"] == "linear" else ()
    return all(abs(config.get(key, 0.0) - ours[key]) < 1e-9 for key in ends)


def _own_names(index: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the class names in the order of the labels; none where the folder has none."""
    names = index.get("id2label") or {}
    by_label = {as_number(label): name for label, name in names.items()}
    if len(by_label) != len(names) or any(label not in by_label for label in range(len(names))):
        raise InputError(f"id2label of '{folder / INDEX}' does not number the classes 0, 1, …; give --class-names FILE")
    return [by_label[label] for label in range(len(names))]


def _json(path: Path, shape: type[_Settings]) -> _Settings:
    return read_document(path, shape, "a DiTPipeline's file of settings", "give a whole DiTPipeline folder")
