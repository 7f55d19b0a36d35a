"""From what weights tell of a network to the settings of a configuration: a preset's name, and what differs from it."""

from collections.abc import Iterable
from dataclasses import fields

from dit_scale.config import ModelConfig
from dit_scale.errors import InputError
from dit_scale.interop.architecture import Architecture
from dit_scale.models import PRESETS
from dit_scale.models.presets import preset_values


def model_settings(
    architecture: Architecture, num_heads: int | None, rope: bool | None, has_null: bool, origin: str
) -> ModelConfig:
    """Return a model's settings; ``num_heads`` and ``rope`` are what the user says, where weights do not tell.

    Raises InputError where nobody says what is needed, or the user says otherwise than the weights.
    """
    told = {entry.name: getattr(architecture, entry.name, None) for entry in fields(ModelConfig)}
    settings = {name: value for name, value in told.items() if value is not None}
    settings["num_heads"] = _num_heads(architecture, num_heads, origin)
    settings["rope"] = _rope(architecture, rope, origin)
    if architecture.head_depth is not None:
        settings["head_num_heads"] = _head_num_heads(architecture, origin)
    settings["label_dropout"] = ModelConfig.label_dropout if has_null else 0.0
    alike = [name for name, preset in PRESETS.items() if preset.items() <= settings.items()]
    name = max(alike, key=lambda name: len(PRESETS[name]), default="custom")
    values = preset_values(name)
    return ModelConfig(name, **{key: value for key, value in settings.items() if values.get(key) != value})


def _num_heads(architecture: Architecture, given: int | None, origin: str) -> int:
    depth, hidden_size, told = architecture.depth, architecture.hidden_size, architecture.num_heads
    if told is not None and given not in (None, told):
        raise InputError(f"--num-heads {given} does not fit '{origin}', which has {told} attention heads; leave it out")
    number = told or given or _heads_of_preset(architecture, ("depth", "hidden_size"), "num_heads")
    if number is None:
        raise InputError(
            f"'{origin}' has depth {depth} and hidden_size {hidden_size}, which no preset has, and weights do not say "
            f"how many attention heads they are for; give --num-heads N"
        )
    return number


def _head_num_heads(architecture: Architecture, origin: str) -> int:
    number = architecture.head_num_heads
    number = number or _heads_of_preset(architecture, ("head_depth", "head_hidden_size"), "head_num_heads")
    if number is None:
        raise InputError(
            f"'{origin}' has a head of depth {architecture.head_depth} and width {architecture.head_hidden_size}, "
            f"which no preset has, and no dec_feat_rope.freqs_cos, which tells its attention heads; give weights with "
            f"that table"
        )
    return number


def _heads_of_preset(architecture: Architecture, sizes: Iterable[str], heads: str) -> int | None:
    """Return the attention heads of the first preset with these sizes."""
    wanted = {size: getattr(architecture, size) for size in sizes}
    return next((preset[heads] for preset in PRESETS.values() if wanted.items() <= preset.items()), None)


def _rope(architecture: Architecture, given: bool | None, origin: str) -> bool:
    if architecture.rope and given is False:
        raise InputError(f"--rope false does not fit '{origin}', which holds tables of rotations; leave it out")
    rope = architecture.rope if given is None else given
    if rope is None:
        raise InputError(
            f"'{origin}' holds no table of rotations (feat_rope.freqs_cos), and its blocks may rotate queries and keys "
            f"or not; give --rope true, as LightningDiT and RAE are published, or --rope false"
        )
    return rope
