"""Making a job: list the source, obtain the autoencoder, and write down the plan that all encoders share."""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch

from dit_scale.autoencoder import EMBEDDED, Autoencoder, load_autoencoder, save_autoencoder
from dit_scale.autoencoder import FILE_NAME as AUTOENCODER_FILE
from dit_scale.config import EncodeConfig, to_yaml, unused_names
from dit_scale.data.manifest import FILE_NAME as MANIFEST_FILE
from dit_scale.documents import read_document
from dit_scale.errors import Failure, InputError
from dit_scale.files import atomic_write, exclusive_lock, make_writable_folder, write_json
from dit_scale.latents import LatentSpec
from preprocessing.conditions import arrays_of, check_beside
from preprocessing.decoding import Decoder, open_decoder
from preprocessing.job import STATE_FOLDER, Job
from preprocessing.sources import Source, list_source, root_of
from preprocessing.transforms import CENTRE_CROP

PLAN_VERSION = 1
_CLASS_NAMES = "class_names"
_ABSENT: dict[str, Any] = {"condition": None, "keep_crops": False}
"""What a plan means that does not say so."""
_PLAN, _LISTING, _LOCK = "plan.json", "source.npy", "lock"
CONFIG = "config.yaml"
"""The settings of the last encode, for a repair; not compared, since paths may change."""
_FIT_BATCH = 64
_PATIENCE_SECONDS = 3600.0


def prepare(config: EncodeConfig) -> Job:
    """Make a new job or go on with the folder's; raises InputError where the folder holds another.

    The first process to come makes it, others on the same folder wait for that and find it made. Where it is refused,
    no folder is left that this call made.
    """
    state = Path(config.output) / STATE_FOLDER
    with _undone_if_refused(state):
        make_writable_folder(state, "output folder")
        arrays = arrays_of(config)
        source = list_source(config.source)  # before the lock: elements of an array list at the same time
        check_beside(source, arrays)
        with exclusive_lock(state / _LOCK, "{holder} does not end preparing the encoding; stop it", _PATIENCE_SECONDS):
            state.mkdir(parents=True, exist_ok=True)  # who held the lock before may have been refused
            job = _prepare(config, source)
            job.discard_stale()
    return job


@contextmanager
def _undone_if_refused(state: Path) -> Iterator[None]:
    """Remove the state folder and those above it that were not there, unless they hold an encoding by now."""
    made = [folder for folder in (state, *state.parents) if not folder.exists()]
    try:
        yield
    except (InputError, Failure):
        with suppress(OSError):  # another process may be at work here
            if made and {path.name for path in state.iterdir()} == {_LOCK}:
                (state / _LOCK).unlink()
            for folder in made:
                folder.rmdir()
        raise


def _prepare(config: EncodeConfig, source: Source) -> Job:
    output, state = Path(config.output), Path(config.output) / STATE_FOLDER
    counted = {"source": {"images": len(source)}, "class_names": source.class_names}
    plan = _settings(config) | {"source": {"images": len(source), "digest": source.digest()}}
    found = _read_plan(state)
    if found is None and (output / MANIFEST_FILE).exists():
        raise InputError(f"output '{output}' holds shards without the plan they were made by; give another output")
    _check_same(config, _settings(config) | counted, found)  # before the digest, which says less
    _check_same(config, plan, found)
    autoencoder = _obtain(config, source, is_planned=found is not None)
    latents = LatentSpec(
        autoencoder.channels,
        autoencoder.latent_size(config.image_size),
        config.autoencoder.scale or autoencoder.scale,
        config.autoencoder.shift or autoencoder.shift,
    )
    plan |= {"identity": autoencoder.identity, "latents": asdict(latents), "class_names": source.class_names}
    plan = json.loads(json.dumps(plan))  # as it reads back
    _check_same(config, plan, found)
    if found is None or not (output / AUTOENCODER_FILE).exists():
        save_autoencoder(autoencoder, output)
    source.save(state / _LISTING)
    with atomic_write(state / CONFIG, "w") as file:
        file.write(to_yaml(config))
    if found is None:
        write_json(state / _PLAN, plan)  # last: other ranks wait for it
    return Job(config, source, plan)


def join(config: EncodeConfig) -> Job:
    """Return the job that rank zero prepares, waiting until it has."""
    state = Path(config.output) / STATE_FOLDER
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (plan := _read_plan(state)) is None:
        if time.monotonic() > deadline:
            raise Failure(f"rank zero wrote no '{state / _PLAN}' within {_PATIENCE_SECONDS:g} s; look at its log")
        time.sleep(0.5)
    _check_same(config, _settings(config), plan)
    source = Source.load(root_of(config.source), plan["class_names"], state / _LISTING)
    return Job(config, source, plan)


def decoder_for(config: EncodeConfig, source: Source) -> AbstractContextManager[Decoder]:
    """Return what decodes a source's images as the settings say."""
    return open_decoder(source, config.image_size, config.decode_workers, exif_rotation=config.source.exif_rotation)


def _settings(config: EncodeConfig) -> dict[str, Any]:
    """Return the settings that determine the shards' bytes, without absolute paths."""
    settings = asdict(config.autoencoder)
    if Path(config.autoencoder.name).is_dir():
        settings["name"] = Path(config.autoencoder.name).resolve().name
    settings = {key: value for key, value in settings.items() if key not in unused_names(config.autoencoder)}
    arrays = [asdict(array) for array in arrays_of(config)]  # none in plans of labels alone, as before there were any
    return (
        ({"condition": config.condition, "arrays": json.loads(json.dumps(arrays))} if arrays else {})
        | {
            "version": PLAN_VERSION,
            "image_size": config.image_size,
            "transform": CENTRE_CROP + ("-exif" if config.source.exif_rotation else ""),
            "mirrors": config.mirrors,
            "shard_records": config.shard_records,
            "batch_size": config.batch_size,
            "autoencoder": json.loads(json.dumps(settings)),
        }
        | ({"keep_crops": True} if config.keep_crops else {})
    )


class _Latents(TypedDict):
    channels: int
    size: int
    scale: list[float]
    shift: list[float]


class _Plan(TypedDict):
    version: int
    transform: str
    identity: dict[str, Any]
    latents: _Latents
    class_names: list[str]


def _read_plan(state: Path) -> dict[str, Any] | None:
    path = state / _PLAN
    if not path.exists():
        return None
    fix = "give another output, or delete this one"
    return cast(dict[str, Any], read_document(path, _Plan, "the plan of an encoding", fix))


def _check_same(config: EncodeConfig, plan: dict[str, Any], found: dict[str, Any] | None) -> None:
    """Raise InputError naming the first thing in which the folder's plan differs."""
    if found is None:
        return
    mine, theirs = (dict(_flat(_ABSENT | one)) for one in (plan, found))
    for key, ours in mine.items():
        if theirs.get(key) != ours:
            way_back = (
                "give source.class_names (this output, once it has a manifest) to keep the order"
                if key.startswith(_CLASS_NAMES)
                else "set it back"
            )
            raise InputError(
                f"output '{config.output}' was begun with {key}={_short(theirs.get(key))}, now it is {_short(ours)}; "
                f"{way_back}, give another output, or delete this one"
            )


def _flat(plan: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plan.items():
        if key == _CLASS_NAMES:
            yield from _flat({str(label): name for label, name in enumerate(value)}, f"{key}.")
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _obtain(config: EncodeConfig, source: Source, is_planned: bool) -> Autoencoder:
    """Return the autoencoder, on the CPU: the folder's own where the plan began with it, else a new one."""
    settings = config.autoencoder
    output = Path(config.output)
    if is_planned and (output / AUTOENCODER_FILE).exists() and not Path(settings.name).is_dir():
        return load_autoencoder(str(output))
    if settings.name in EMBEDDED:
        return _fit(config, source)
    or_else = ", or autoencoder.name=fitted or autoencoder.name=pca, which need neither"
    return load_autoencoder(settings.name, revision=settings.revision, or_else=or_else)


def _fit(config: EncodeConfig, source: Source) -> Autoencoder:
    embedded = EMBEDDED[config.autoencoder.name]
    count = min(len(source), embedded.fit_images(config.autoencoder))
    indices = (i * len(source) // count for i in range(count))
    with decoder_for(config, source) as decoder:
        images = (image for image in decoder.decode(indices) if not isinstance(image, str))
        batches = iter(lambda: list(islice(images, _FIT_BATCH)), [])
        tensors = (torch.from_numpy(np.stack(batch)).movedim(-1, 1) for batch in batches)
        return embedded.fit(tensors, config.autoencoder)
