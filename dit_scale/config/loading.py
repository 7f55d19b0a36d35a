"""Settings from a YAML file and ``key.sub=value`` overrides, checked; one sentence for each mistake."""

import ast
import inspect
import textwrap
from dataclasses import asdict, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError, safe_dump

from dit_scale.errors import InputError, nearest

T = TypeVar("T")

_AT_LEAST: dict[str, float] = {
    "train.steps": 1,
    "train.global_batch_size": 1,
    "train.micro_batch_size_per_gpu": 1,
    "train.learning_rate": 0.0,
    "train.warmup_steps": 0,
    "train.weight_decay": 0.0,
    "data.prefetch_batches": 1,
    "data.request_batches": 0,
    "data.shuffle_block_records": 0,
    "data.shuffle_window_blocks": 1,
    "data.patience_seconds": 0.0,
    "validation.every_steps": 0,
    "validation.num_images": 1,
    "evaluation.every_steps": 0,
    "evaluation.num_images": 1,
    "evaluation.num_sampling_steps": 1,
    "evaluation.batch_size": 1,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 1,
    "preview.every_steps": 0,
    "preview.samples_per_class": 1,
    "preview.num_sampling_steps": 1,
    "log.every_steps": 1,
    "watchdog.step_seconds": 0.0,
    "watchdog.long_seconds": 0.0,
    "engine.checkpoint_every_blocks": 0,
    "engine.bucket_elements": 1,
    "image_size": 8,
    "shard_records": 1,
    "batch_size": 1,
    "workers": 1,
    "decode_workers": 0,
    "max_rejected": 0,
    "autoencoder.pca_patch_size": 1,
    "autoencoder.pca_channels": 1,
    "autoencoder.pca_fit_images": 1,
}
_UP_TO_ONE = ("engine.activation_budget",)
_BELOW_ONE = ("data.held_out_fraction", "train.ema_decay", "train.beta1", "train.beta2", "model.label_dropout")


def load_config(schema: type[T], path: str | Path | None, overrides: list[str] | None = None) -> T:
    """Return ``schema`` filled from a YAML file and ``key.sub=value`` overrides, later ones winning.

    Raises InputError for a missing file, an unknown key (naming the nearest), a value of the wrong type or
    a mandatory key that nobody gave.
    """
    parts: list[Any] = [OmegaConf.structured(schema)]
    if path is not None:
        parts.append(_read_yaml(Path(path)))
    for override in overrides or []:
        if "=" not in override or override.startswith("-"):
            raise InputError(f"override '{override}' is not of the form key.sub=value; write e.g. train.steps=1000")
        parts.append(_merge_source(override))
    try:
        merged = parts[0]
        for part in parts[1:]:
            merged = OmegaConf.merge(merged, part)
        config: T = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except MissingMandatoryValue as error:
        raise InputError(
            f"'{error.full_key}' has no value and no default; set it in the config or give {error.full_key}=…"
        ) from error
    except ConfigKeyError as error:
        raise InputError(f"unknown key '{error.full_key}'{_nearest_key(schema, str(error.full_key))}") from error
    except OmegaConfBaseException as error:
        where = f"'{error.full_key}': " if error.full_key else ""
        raise InputError(f"{where}{str(error).splitlines()[0]}") from error
    _check_ranges(config)
    return config


def describe(schema: type, prefix: str = "") -> str:
    """Return every setting with its default and its sentence, one a line, for ``--help``."""
    sentences = _sentences(schema)
    lines = []
    for entry in fields(schema):
        if is_dataclass(entry.type):
            lines.append(describe(entry.type, f"{prefix}{entry.name}."))  # type: ignore[arg-type]
        else:
            default = "" if entry.default in (MISSING, None) else f"={entry.default}"
            lines.append(f"  {prefix}{entry.name}{default}\n      {sentences.get(entry.name, '')}")
    return "\n".join(lines)


def _sentences(schema: type) -> dict[str, str]:
    """Read the sentence beneath each field from the class's source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0].body  # type: ignore[attr-defined]
    found = {}
    for entry, following in pairwise(body):
        if isinstance(entry, ast.AnnAssign) and isinstance(following, ast.Expr):
            found[entry.target.id] = following.value.value  # type: ignore
    return found


def config_from(schema: type[T], values: dict[str, Any]) -> T:
    """Return ``schema`` filled from plain dictionaries, such as ``resolved`` makes."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))  # type: ignore[return-value]


def resolved(config: Any) -> dict[str, Any]:
    """Return a configuration as plain dictionaries, lists and numbers."""
    return asdict(config)


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML that ``load_config`` reads back to an equal one."""
    return safe_dump(OmegaConf.to_container(OmegaConf.structured(config)), sort_keys=False)


def get(config: Any, dotted_key: str) -> Any:
    """Return the value at ``a.b.c``."""
    for name in dotted_key.split("."):
        config = getattr(config, name)
    return config


def _read_yaml(path: Path) -> Any:
    path = _find(path)
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        if not str(error).startswith("Invalid loaded object type"):  # a number, which OmegaConf takes for no YAML
            raise InputError(f"config '{path}' is not YAML ({_what_is_wrong(error)}); put it right there") from error
        loaded = None
    if not OmegaConf.is_dict(loaded):
        raise InputError(f"config '{path}' is not a mapping of keys to values; write it as key: value lines")
    return loaded


def _what_is_wrong(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"  # type: ignore[attr-defined]


def _check_ranges(config: Any) -> None:
    known = set(_keys(resolved(config)))
    for key, least in _AT_LEAST.items():
        if key in known and get(config, key) is not None and get(config, key) < least:
            raise InputError(f"{key}={get(config, key)} is below {least}; give {least} or more")
    for key in _BELOW_ONE:
        if key in known and not 0.0 <= get(config, key) < 1.0:
            raise InputError(f"{key}={get(config, key)} is not in [0, 1); give a fraction, such as 0.9")
    for key in _UP_TO_ONE:
        if key in known and not 0.0 <= get(config, key) <= 1.0:
            raise InputError(f"{key}={get(config, key)} is not in [0, 1]; give a fraction, such as 0.5, or 1 for all")


def _find(path: Path) -> Path:
    """Return a YAML file by its path, or by its name among the recipes that come with the package."""
    package = Path(__file__).parent.parent
    recipes = [package / "configs", package.parent / "configs"]
    for candidate in (path, *(folder / f"{path.name.removesuffix('.yaml')}.yaml" for folder in recipes)):
        if candidate.is_file():
            return candidate
    known = sorted(file.stem for folder in recipes for file in folder.glob("*.yaml"))
    raise InputError(
        f"config '{path}' is not a file, nor a recipe that comes with dit_scale{nearest(path.name, known)}"
    )


def _merge_source(override: str) -> Any:
    try:
        return OmegaConf.from_dotlist([override])
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"override '{override}' cannot be read: {' '.join(str(error).split())}") from error


def _nearest_key(schema: type, full_key: str) -> str:
    """Name the known key closest to an unknown one, over the whole tree when its own section has none."""
    known = list(_keys(OmegaConf.to_container(OmegaConf.structured(schema))))
    section, _, name = full_key.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    hint = nearest(name, siblings) if siblings else nearest(full_key, known)
    return f"; did you mean '{elsewhere[0]}'?" if elsewhere and "did you mean" not in hint else hint


def _keys(tree: Any, prefix: str = "") -> Any:
    for name, value in tree.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
