"""`dit-scale evaluate` as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest

from dit_scale.cli import main
from tests.evaluation.small import pictures, random_inception_weights, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples with their protocol, and real images."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name, first, step in (("early", 100, 10), ("late", 200, 20)):
        write_folder(folder / name / "images", pictures(range(first, first + 16)))
        protocol = {"step": step, "weights": "ema", "cfg_scale": 2.0, "seed": 0, "num_samples": 16}
        (folder / name / "protocol.json").write_text(json.dumps(protocol))
    np.savez(folder / "real.npz", pictures(range(16)))
    return folder


def evaluate(*arguments: object) -> None:
    main(["evaluate", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one sentence with which a command ends."""
    with pytest.raises(SystemExit) as ended:
        evaluate(*arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("dit-scale evaluate: ")
    return last


def test_without_weights_against_an_earlier_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--cache", folder / "cache", "--batch-size", 8]
    evaluate(folder / "early", folder / "real.npz", *common)
    said = capsys.readouterr()
    assert "its Fréchet distance is not FID" in said.err
    assert "frechet_efficientnet_lite0" in said.out
    earlier = json.loads((folder / "early" / "evaluation.json").read_text())
    assert earlier["protocol"]["samples"]["protocol"]["step"] == 10
    assert earlier["protocol"]["reference"]["images"] == 16
    assert set(earlier["metrics"]) == set(earlier["spread"])
    assert not any("fid" in name for name in earlier["metrics"])

    against = ["--against", folder / "early" / "evaluation.json"]
    (folder / "late" / "images" / "notes.txt").write_text("which changes no number")
    (folder / "no-folder").write_text("x")
    common[1] = folder / "no-folder" / "cache"  # a home that is not there: a line, and the same numbers
    evaluate(folder / "late", folder / "real.npz", *common, *against)
    out = capsys.readouterr().out
    assert "change" in out
    assert "samples: 16 images (16 .png), left out: 1 .txt" in " ".join(out.split())
    assert "reference: 16 images" in out
    later = json.loads((folder / "late" / "evaluation.json").read_text())
    assert later["protocol"]["samples"]["files"] == {"used": {".png": 16}, "left_out": {".txt": 1}}
    name = "frechet_efficientnet_lite0"
    assert f"{later['metrics'][name] - earlier['metrics'][name]:+.3g}" in out

    protocol = json.loads((folder / "late" / "protocol.json").read_text())
    (folder / "late" / "protocol.json").write_text(json.dumps(protocol | {"cfg_scale": 4.0}))
    sentence = refused(capsys, folder / "late", folder / "real.npz", *common, *against)
    assert "samples.protocol.cfg_scale: 4.0 / 2.0" in sentence
    assert "step" not in sentence.split("samples.protocol.cfg_scale")[0]


def test_with_inceptions_weights(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_inception_weights(tmp_path / "inception.pth")
    np.savez(tmp_path / "samples.npz", pictures(range(300, 316), 24))
    evaluate(
        tmp_path / "samples.npz", folder / "real.npz", "--weights", weights, "--cache", tmp_path, "--batch-size", 8
    )
    said = capsys.readouterr()
    result = json.loads((tmp_path / "samples.evaluation.json").read_text())
    assert set(result["metrics"]) == {"fid", "sfid", "inception_score", "precision", "recall", "kid"}
    assert all(np.isfinite(value) for value in result["metrics"].values())
    assert "samples are of 24 x 24 pixels, the reference of 16 x 16" in said.err
    assert "fid: 16 samples for 2048 features" in said.err
    assert result["protocol"]["definitions"]["inception_score"]["splits"] == 1


def test_bad_input_is_said_before_anything_is_computed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.json").write_text("{}")
    assert "is not a result of dit-scale evaluate" in refused(
        capsys, folder / "early", folder / "real.npz", "--against", tmp_path / "old.json"
    )
    write_folder(tmp_path / "few", pictures(range(3)))
    assert "holds 3 images, and the metrics need 16" in refused(capsys, tmp_path / "few", folder / "real.npz")
    assert "give --weights" in refused(capsys, folder / "early", folder / "real.npz", "--features", "inception")
    assert "is neither a folder nor a file" in refused(capsys, folder / "early", folder / "nowhere")
