"""The manifest is read back as it was written, or refused in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_scale.data.manifest import Manifest, read_manifest
from dit_scale.data.statistics import LatentSums, no_latents
from dit_scale.errors import InputError
from tests.data.shard_folder import random_records, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "shards", [3, 2])
    return tmp_path / "shards"


def test_round_trip(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.num_records == 5
    assert manifest.class_names == ("a", "b", "c")
    manifest.write(tmp_path)
    again = read_manifest(tmp_path)
    assert again == manifest
    assert again.fingerprint == manifest.fingerprint


def _change(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_names": ["b", "a", "c"]}, r"was changed after it was written"),
        ({"fingerprint": "0" * 64}, r"its fingerprint is 000000000000"),
        ({"format_version": 3}, r"has format version 3, this dit_scale reads 2; update dit_scale"),
        ({"format_version": 1}, r"has format version 1, .* encode the images again"),
        ({"colour": "red"}, r"found the key 'colour', which does not belong there"),
        (
            {"stored": {"dtype": "float32", "has_variance": True, "scale": 1.0}},
            r"hold means and log-variances as float32 times 1, and ours hold .* as float16",
        ),
    ],
)
def test_what_cannot_be_trusted_is_refused(folder: Path, changes: dict[str, object], sentence: str) -> None:
    _change(folder, **changes)
    with pytest.raises(InputError, match=sentence):
        read_manifest(folder)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist; dit-scale encode makes one"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no shard folder or its encoding is unfinished"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format_ver')
    with pytest.raises(InputError, match=r"is not a manifest"):
        read_manifest(tmp_path)


def test_the_fingerprint_covers_every_field(folder: Path) -> None:
    manifest = read_manifest(folder)
    fields = Manifest.__dataclass_fields__
    changed = [manifest.__class__(**{**{n: getattr(manifest, n) for n in fields}, name: None}) for name in fields]
    assert len({manifest.fingerprint, *(other.fingerprint for other in changed)}) == len(fields) + 1


def test_statistics_are_those_of_latents_drawn_from_the_posterior() -> None:
    moments = np.stack([record.moments for record in random_records(40)]).astype(np.float64)  # [N, M, 2C, h, w]
    sums = sum((LatentSums.of(one) for one in moments), no_latents(4, 16))
    statistics = sums.statistics()
    mean, log_variance = np.split(moments, 2, axis=2)
    drawn = torch.from_numpy(mean + np.exp(log_variance / 2) * np.random.default_rng(0).normal(size=(200, *mean.shape)))
    assert statistics.count == 80
    torch.testing.assert_close(torch.tensor(statistics.mean).double(), drawn.mean((0, 1, 2, 4, 5)), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.tensor(statistics.std).double(), drawn.std((0, 1, 2, 4, 5)), atol=0.01, rtol=0)
