"""What samples are compared with: statistics and features of real images, made once and kept by their digests."""

import logging
import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_scale.errors import InputError
from dit_scale.evaluation.extractors import Extractor
from dit_scale.evaluation.images import ARRAY, ImageArray, ImageSet, file_digest, open_images
from dit_scale.evaluation.metrics import Gaussian, Moments
from dit_scale.files import atomic_write
from dit_scale.kinds import TORCH, kind_of
from dit_scale.progress import passed_on

FEWEST_IMAGES = 16
"""Below so many no metric means anything; each of four subsets still has a covariance."""
MOST_FEATURES = 50_000
"""Features of a reference that are kept; of more images every n-th, which bounds memory and the cache."""
_CACHE_FORMAT = 1
_STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
"""ADM's names: mean and covariance of pool_3 and of the spatial features."""
_REBUILD = np.zeros(1).__reduce__()[0]
_NUMPY: list[Any] = [
    *((_REBUILD, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),  # numpy 1 and 2
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64")),
]
"""What a stored array of numbers is made with, so that torch reads it and nothing else."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Real images as an extractor sees them."""

    identity: dict[str, Any]
    """Digest of the file or folder, what it holds and how many images."""
    pool: Gaussian
    spatial: Gaussian | None
    features: Tensor | None
    """[M, D] fp32, for precision, recall and the kernel distance; null where statistics alone are stored."""
    size: tuple[int, int] | None = None
    """Width and height of the images in pixels, if there are any."""


def default_cache() -> Path | None:
    """Return where references are kept: below $XDG_CACHE_HOME, or ~/.cache; None for a user without a home."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        log.warning("the reference's features are not kept, since this user has no home folder; set XDG_CACHE_HOME")
        return None
    return caches / "dit_scale" / "references"


def check_count(count: int, what: str) -> None:
    """Raise InputError for fewer images than any metric can do with."""
    if count < FEWEST_IMAGES:
        raise InputError(f"{what} holds {count} images, and the metrics need {FEWEST_IMAGES} at least; give more")


def load_reference(path: Path, extractor: Extractor, cache: Path | None, batch_size: int = 32) -> Reference:
    """Return the reference at a path: a folder of images, an .npz of images, or stored statistics.

    Statistics are ADM's or pytorch-fid's .npz, or torch-fidelity's .pt. What is extracted from images is kept in
    ``cache`` under the digests of images and weights, where that can be written to.
    """
    if path.is_file() and (kind_of(path) == TORCH or _members(path) & set(_STATISTICS)):
        return _from_statistics(path, extractor, cache, batch_size)
    images = open_images(path)
    check_count(images.count, f"reference '{path}'")
    return extract_reference(images, extractor, cache, batch_size)


def reference_of(
    batches: Iterable[np.ndarray], count: int, extractor: Extractor, identity: dict[str, Any]
) -> Reference:
    """Extract the features of ``count`` images, uint8 [N, H, W, 3], and take their moments."""
    pool, spatial = Moments(extractor.width), Moments(extractor.spatial_width)
    stride = -(-count // MOST_FEATURES)
    kept, seen, size = [], 0, None
    for batch in batches:
        features = extractor(torch.from_numpy(batch))
        pool.add(features.pool)
        if features.spatial is not None:
            spatial.add(features.spatial)
        kept.append(features.pool[-seen % stride :: stride])
        seen += len(batch)
        size = batch.shape[2], batch.shape[1]
    pairs = [moments.gaussian() for moments in (pool, spatial)]
    return Reference(identity, pairs[0], pairs[1] if extractor.spatial_width else None, torch.cat(kept), size)


def extract_reference(images: ImageSet, extractor: Extractor, cache: Path | None, batch_size: int = 32) -> Reference:
    """Return images as a reference, from ``cache`` where their digest is known there."""
    digest = images.digest()
    identity: dict[str, Any] = {"kind": images.kind, "xxh3": digest, "images": images.count, "features": "every image"}
    if images.files is not None:
        identity["files"] = images.files
    if images.count > MOST_FEATURES:
        identity["features"] = f"image 1 of {-(-images.count // MOST_FEATURES)}"
    kept = None if cache is None else cache / f"{extractor.name}-{extractor.weights_digest[:16]}-{digest}.npz"
    found = _read_cache(kept, identity, images.size) if kept is not None else None
    if found is not None:
        return found
    batches = passed_on("reference", images.batches(batch_size), images.count, "images", len)
    reference = reference_of(batches, images.count, extractor, identity)
    if kept is not None:
        _keep(kept, reference)
    return reference


# ------------------------------------------------------------ stored statistics


def _from_statistics(path: Path, extractor: Extractor, cache: Path | None, batch_size: int) -> Reference:
    """Take mean and covariance from the file, and features from its images where it holds some."""
    if not extractor.spatial_width:
        raise InputError(
            f"reference '{path}' holds statistics of Inception, which features of {extractor.name} cannot be compared "
            f"with; give Inception's --weights (in a run: evaluation.weights), or a reference of images"
        )
    values = _read_statistics(path, {"mu": extractor.width, "mu_s": extractor.spatial_width})
    pool = Gaussian(values["mu"], values["sigma"])
    spatial = Gaussian(values["mu_s"], values["sigma_s"]) if "mu_s" in values else None
    if ARRAY not in _members(path):
        return Reference({"kind": "statistics", "xxh3": file_digest(path)}, pool, spatial, None)
    images = ImageArray(path)
    check_count(images.count, f"reference '{path}'")
    own = extract_reference(images, extractor, cache, batch_size)
    return Reference(own.identity | {"kind": "statistics and images"}, pool, spatial, own.features, own.size)


def _read_statistics(path: Path, widths: dict[str, int]) -> dict[str, Tensor]:
    try:
        stored = _from_torch(path) if kind_of(path) == TORCH else dict(_from_numpy(path))
        values = {name: np.asarray(value, np.float64) for name, value in stored.items() if name in _STATISTICS}
    except InputError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"statistics '{path}' cannot be read ({error}); write or copy them again") from error
    for mean, width in widths.items():
        covariance = mean.replace("mu", "sigma")
        if mean == "mu_s" and mean not in values:
            continue
        shapes = [values[name].shape if name in values else None for name in (mean, covariance)]
        if shapes != [(width,), (width, width)]:
            raise InputError(
                f"statistics '{path}' hold {mean} and {covariance} of shapes {shapes[0]} and {shapes[1]}, not "
                f"({width},) and ({width}, {width}); give the file of ADM's suite, or another of Inception's features"
            )
        if not all(np.isfinite(values[name]).all() for name in (mean, covariance)):
            raise InputError(f"statistics '{path}' hold numbers that are not finite; write or copy them again")
    return {name: torch.from_numpy(value) for name, value in values.items()}


def _from_numpy(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    with np.load(path, allow_pickle=False) as archive:
        yield from ((name, archive[name]) for name in _STATISTICS if name in archive)


def _from_torch(path: Path) -> dict[str, Any]:
    """Return the arrays or tensors of a file of torch.save by their names; no code of the file is run."""
    try:
        with torch.serialization.safe_globals(_NUMPY):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{path}' is a file of torch.save that holds more than tensors and arrays, or is damaged; write its mu "
            f"and sigma into an .npz with numpy.savez"
        ) from error
    if not isinstance(content, dict) or not {"mu", "sigma"} <= content.keys():
        raise InputError(
            f"'{path}' is a file of torch.save without mu and sigma, so it holds no statistics; give torch-fidelity's "
            f"…-stat-fid-2048.pt, an .npz of statistics, or a folder of images"
        )
    return content


def _members(path: Path) -> set[str]:
    """Return the names of what an .npz holds; none where it is no .npz, which reading it will say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return set()


# ------------------------------------------------------------ the cache


def _read_cache(path: Path, identity: dict[str, Any], size: tuple[int, int]) -> Reference | None:
    """Return what was kept, or None where nothing is, or something that is not whole."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if int(archive["format"]) != _CACHE_FORMAT:
                return None
            values = {name: torch.from_numpy(archive[name]) for name in archive if name != "format"}
        spatial = Gaussian(values["mu_s"], values["sigma_s"]) if "mu_s" in values else None
        return Reference(identity, Gaussian(values["mu"], values["sigma"]), spatial, values["features"], size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # a damaged file makes numpy and zipfile raise all kinds
        log.warning("'%s' cannot be read (%s): the reference's features are computed again", path, _reason(error))
        return None


def _keep(path: Path, reference: Reference) -> None:
    """Write what the next evaluation need not compute; where that cannot be done, say so and go on."""
    assert reference.features is not None
    values = {"mu": reference.pool.mean, "sigma": reference.pool.covariance, "features": reference.features}
    if reference.spatial is not None:
        values |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:  # savez leaves it open on a full disk
            for name, value in {"format": torch.tensor(_CACHE_FORMAT), **values}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, value.numpy(), allow_pickle=False)
    except Exception as error:  # a full disk may end in any complaint of zipfile's
        log.warning(
            "the reference's features are not kept in '%s' (%s), so the next evaluation computes them again; "
            "XDG_CACHE_HOME, or evaluate's --cache, names another folder",
            path.parent,
            _reason(error),
        )


def _reason(error: BaseException) -> object:
    """Return in words what went wrong first: the system's own, where it was the system."""
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, OSError):
        origin = origin.__context__
    return error if origin is None else origin.strerror or origin
