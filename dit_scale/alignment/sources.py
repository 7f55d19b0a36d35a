"""Where encoders come from: a name to what is known of it without its weights, and then with them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dit_scale import classifier
from dit_scale.alignment.encoders import KINDS, Classifier, Encoder, Kind, VisionTransformer, resample_positions
from dit_scale.autoencoder.hub import why_out_of_reach
from dit_scale.errors import InputError
from dit_scale.weights import from_library, from_pretrained, pretrained

EFFICIENTNET = "efficientnet"
_FIX = "give a hub name such as facebook/dinov2-base, the folder of an encoder of transformers, or efficientnet"
_SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}
"""Of DINOv2: width, blocks, heads."""


@dataclass(frozen=True)
class Outline:
    """An encoder without its weights."""

    name: str
    kind: Kind | None
    """None of the bundled classifier."""
    config: Any
    """Of transformers."""

    @property
    def width(self) -> int:
        """Of its features."""
        return classifier.WIDTH if self.kind is None else self.config.hidden_size

    def build(self, grid_side: int) -> Encoder:
        """Return it with initial weights, for a network with so many tokens a side."""
        if self.kind is None:
            return Classifier(classifier.build_classifier(*_asked_for(self.name)), grid_side)
        return VisionTransformer(self._network(grid_side), grid_side, self.kind)

    def load(self) -> "Loaded":
        """Return it with its weights; raises InputError where they cannot be had."""
        if self.kind is None:
            network, _ = classifier.load_classifier(*_asked_for(self.name))
            return Loaded(self, network)
        away = None if Path(self.name).is_dir() else why_out_of_reach()
        options = {"config": self.config, "dtype": torch.float32, "local_files_only": away is not None}
        network, what = _from_transformers(self.kind.network, self.name), f"encoder '{self.name}'"
        try:
            with torch.random.fork_rng(devices=[]):  # weights that are replaced are drawn
                return Loaded(self, from_pretrained(network, self.name, what, _FIX, _may_be_left, **options))
        except InputError as error:
            if away is None or not isinstance(error.__cause__, OSError | AttributeError):  # transformers raises both
                raise
            raise _not_cached(self.name, away) from error

    def _network(self, grid_side: int) -> Any:
        assert self.kind is not None
        config = type(self.config).from_dict(self.config.to_dict() | {"image_size": grid_side * self.config.patch_size})
        with torch.random.fork_rng(devices=[]):
            return _from_transformers(self.kind.network, self.name)(config)


@dataclass(frozen=True)
class Loaded:
    """An encoder with its weights as published."""

    outline: Outline
    network: Any

    def fit(self, grid_side: int) -> Encoder:
        """Return it for a network with so many tokens a side, its positions resampled to them."""
        kind = self.outline.kind
        if kind is None:
            return Classifier(self.network, grid_side)
        if kind.positions is None:
            return VisionTransformer(self.network, grid_side, kind)
        weights = self.network.state_dict()
        weights[kind.positions] = resample_positions(weights[kind.positions], kind.class_tokens, grid_side)
        encoder = self.outline.build(grid_side)
        encoder.network.load_state_dict(weights)
        return encoder


@cache
def outline_of(name: str) -> Outline:
    """Return what is known of an encoder by its name: `efficientnet`, a local folder or a hub name.

    Raises InputError where there is none, or where it is of a kind that is not in ``KINDS``.
    """
    if name == EFFICIENTNET:
        return Outline(name, None, None)
    settings = _settings_of(name)
    model_type = settings.get("model_type", "not named")
    if model_type not in KINDS:
        raise InputError(
            f"encoder '{name}' is of a kind that alignment does not know, by the model_type of its config.json: "
            f"{model_type}; give one of these: {', '.join(KINDS)}; or {EFFICIENTNET}"
        )
    kind = KINDS[model_type]
    network = _from_transformers(kind.network, name)
    with pretrained(f"encoder '{name}'", _FIX):
        config = network.config_class.from_dict(settings.get("vision_config", settings))
    for key, value in kind.settings:
        setattr(config, key, value)
    return Outline(name, kind, config)


def _settings_of(name: str) -> dict[str, Any]:
    """Return an encoder's config.json; of DINOv2's hub names what is known, where the hub is out of reach."""
    config = _from_transformers("PretrainedConfig", name)
    if name.count("/") != 1 and not Path(name).is_dir():
        raise InputError(f"encoder '{name}' is neither a folder of this machine nor a hub name; {_FIX}")
    away = None if Path(name).is_dir() else why_out_of_reach()
    with pretrained(f"encoder '{name}'", _FIX):
        try:
            settings, _ = config.get_config_dict(name, local_files_only=away is not None)
        except OSError as error:
            if away is None:
                raise
            if (known := _published(name)) is None:
                raise _not_cached(name, away) from error
            return known
    return dict(settings)


def _published(name: str) -> dict[str, Any] | None:
    """Return the settings of facebook/dinov2-SIZE and facebook/dinov2-with-registers-SIZE, for planning offline."""
    family, _, size = name.rpartition("-")
    kinds = {"facebook/dinov2": "dinov2", "facebook/dinov2-with-registers": "dinov2_with_registers"}
    if family not in kinds or size not in _SIZES:
        return None
    width, depth, heads = _SIZES[size]
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    return {"model_type": kinds[family], "patch_size": 14, "use_swiglu_ffn": size == "giant", "image_size": 518} | sizes


def _may_be_left(network: Any, name: str) -> bool:
    """Return whether weights in the files that an encoder lacks are no mistake: heads, decoders and texts are none."""
    return True


def _not_cached(name: str, why: str) -> InputError:
    return InputError(
        f"encoder '{name}' cannot be loaded (it is not in the hub's cache on this machine, and {why}); give a local "
        f"folder of it, or download it where there is a network, with the same HF_HOME, by hf download"
    )


def _from_transformers(wanted: str, name: str) -> Any:
    try:
        return from_library("transformers", wanted)
    except ImportError as error:
        raise InputError(
            f"encoder '{name}' needs transformers, which is not installed; run pip install 'dit_scale[align]', or give "
            f"alignment.encoders=[{EFFICIENTNET}]"
        ) from error


def _asked_for(name: str) -> tuple[str, str]:
    return f"features of {name}", ", or give another of alignment.encoders"
