"""References: statistics of many origins, and a cache that is a convenience and no more."""

import gc
import pickle
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_scale.errors import InputError
from dit_scale.evaluation import Evaluator, default_cache, load_reference
from tests.disks import small_disk
from tests.evaluation.small import Counting, Patches, pictures, write_folder


@pytest.mark.parametrize("trouble", ["below a file", "full", "read-only", "damaged", "another's", "no home"])
def test_a_cache_that_cannot_be_used_costs_a_line_and_no_metric(
    trouble: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    real = write_folder(tmp_path / "real", pictures(range(40)))
    extractor = Counting("cpu")
    expected = load_reference(real, extractor, None)
    caplog.clear()
    with unusable_cache(trouble, tmp_path, real) as cache:
        found = load_reference(real, extractor, cache)
    gc.collect()
    assert torch.equal(found.pool.covariance, expected.pool.covariance)
    assert torch.equal(found.features, expected.features)  # type: ignore[arg-type]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert "\n" not in told[0] and "Errno" not in told[0]
    assert "Traceback" not in capfd.readouterr().err
    assert extractor.seen == 80


@contextmanager
def unusable_cache(trouble: str, folder: Path, real: Path) -> Iterator[Path | None]:
    cache = folder / "cache"
    if trouble == "below a file":
        cache.write_text("x")
        yield cache / "deep"
    elif trouble in ("full", "read-only"):
        with small_disk(folder / "disk", 4096) as disk:  # for root, too
            if trouble == "read-only":
                disk.make_read_only()
            yield disk.folder / "cache"
            assert not list(disk.folder.rglob("*.tmp"))
    elif trouble == "no home":
        with pytest.MonkeyPatch.context() as patch:
            for name in ("HOME", "XDG_CACHE_HOME"):
                patch.delenv(name, raising=False)
            patch.setattr(pwd, "getpwuid", lambda number: {}[number])  # a user whom the machine does not know
            yield default_cache()
    else:
        load_reference(real, Patches("cpu"), cache)
        (kept,) = cache.iterdir()
        if trouble == "damaged":
            whole = kept.read_bytes()
            kept.write_bytes(whole[:300] + bytes(100) + whole[400:])
        else:
            np.savez(kept, format=np.array(1), mu=np.zeros(3))
        yield cache


def test_torch_fidelitys_stored_statistics(tmp_path: Path) -> None:
    images, samples = pictures(range(50)), pictures(range(50, 90))
    extractor = Patches("cpu")
    own = load_reference(write_folder(tmp_path / "real", images), extractor, None)
    mu, sigma = own.pool.mean, own.pool.covariance
    torch.save({"mu": mu.numpy(), "sigma": sigma.numpy()}, tmp_path / "arrays.pt")  # as torch-fidelity does
    torch.save({"mu": mu, "sigma": sigma}, tmp_path / "tensors.pt")
    torch.save({"mu": mu.numpy(), "sigma": sigma.numpy()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "pytorch-fid.npz", mu=mu.numpy(), sigma=sigma.numpy())
    expected = Evaluator(extractor, own).evaluate([samples]).metrics["fid"]
    for name in ("arrays.pt", "tensors.pt", "old.pt", "pytorch-fid.npz"):
        reference = load_reference(tmp_path / name, extractor, None)
        assert Evaluator(extractor, reference).evaluate([samples]).metrics["fid"] == pytest.approx(expected, rel=1e-9)
        assert reference.identity["kind"] == "statistics"


class Planted:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_statistics_that_are_not_read(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    content = {"mu": np.zeros(12), "sigma": np.eye(12)}
    torch.save(content | {"more": Planted(planted)}, tmp_path / "code.pt")
    torch.save({"features": torch.zeros(3)}, tmp_path / "features.pt")
    torch.save({"mu": np.zeros(12), "sigma": np.full((12, 12), np.nan)}, tmp_path / "nan.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Planted(planted)))
    for name, sentence in (
        ("code.pt", "holds more than tensors and arrays, or is damaged; write its mu and sigma into an .npz"),
        ("features.pt", "without mu and sigma, so it holds no statistics; give torch-fidelity's"),
        ("nan.pt", "hold numbers that are not finite"),
        ("plain.pkl", "is a pickle, neither a folder of images nor an .npz of them; opening it runs what it says"),
    ):
        with pytest.raises(InputError, match=re.escape(sentence)) as caught:
            load_reference(tmp_path / name, Patches("cpu"), None)
        assert "cannot be read" not in str(caught.value), "one reason is enough"
    assert not planted.exists()


def test_edm2s_pickle_is_converted_by_the_command_that_is_told(tmp_path: Path) -> None:
    statistics = {"mu": np.arange(12.0), "sigma": np.eye(12)}
    path = tmp_path / "it's img512.pkl"
    path.write_bytes(pickle.dumps({"num_images": 50_000, "fid": statistics, "fd_dinov2": {"mu": np.zeros(3)}}))
    with pytest.raises(InputError) as caught:
        load_reference(path, Patches("cpu"), None)
    command = str(caught.value).partition("write an .npz of them: ")[2]
    assert command.startswith("python -c ")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    reference = load_reference(path.with_suffix(".npz"), Patches("cpu"), None)
    assert torch.equal(reference.pool.mean, torch.arange(12.0, dtype=torch.float64))
    assert reference.features is None
