"""`dit-scale bench`: the readers do the same work, and figures say where they come from; no time is checked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from dit_scale.bench.data import OURS, STREAMING, UNVERIFIED, WEBDATASET, WITH_CROPS, check_same
from dit_scale.bench.readers import OwnReader, StreamingReader, WebDatasetReader
from dit_scale.bench.shards import write_synthetic
from dit_scale.cli import main
from dit_scale.data.manifest import read_manifest
from dit_scale.data.mds import to_mds
from dit_scale.errors import Failure
from tests.data.shard_folder import write_folder
from tests.launch import ROOT, run

PLAIN = ROOT / "benchmarks" / "plain"


def _report(path: Path) -> dict[str, Any]:
    report = json.loads(path.read_text())
    assert report["machine"]["cpu"]
    assert report["machine"]["cores"] >= 1
    assert {"python", "torch", "numpy", "dit_scale"} <= set(report["versions"])
    assert report["date"].endswith("+00:00")
    assert report["command"].startswith("dit-scale")
    return report


def test_all_readers_deliver_the_first_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = write_folder(tmp_path / "shards", [40, 271, 5], mirrors=2, with_crops=True)[:311]
    out = tmp_path / "report.json"
    main(["bench", "data", str(tmp_path / "shards"), "--records", "300", "--rounds", "2", "--json", str(out)])
    report = _report(out)
    digests = [xxh3_64_intdigest(record.moments[0].tobytes(), seed=record.label) for record in records]
    assert report["content"] == {"records": 311, "digest": f"{sum(digests) % (1 << 64):016x}"}
    assert report["settings"] | {"shards": None} == {
        "shards": None,
        "num_shards": 2,
        "records": 311,
        "mirrors": 2,
        "mirror_bytes": 256,
        "batch_size": 256,
        "rounds": 2,
    }
    bytes_read = {reader["name"]: reader["read_bytes_per_record"] for reader in report["readers"]}
    assert list(bytes_read) == [OURS, UNVERIFIED, WEBDATASET, STREAMING, WITH_CROPS]
    assert bytes_read[OURS] == 256 and bytes_read[WITH_CROPS] == 256 + 3 * 32 * 32
    assert bytes_read[WEBDATASET] > bytes_read[STREAMING] > 2 * 256
    for reader in report["readers"]:
        assert len(reader["cpu_seconds"]) == 2
        rate = reader["records_per_second_per_core"]
        assert 0 < rate["least"] <= rate["median"] <= rate["most"]
    assert {tuple(ratios) for ratios in report["ratios"].values()} == {(WEBDATASET, STREAMING)}
    output = capsys.readouterr().out
    assert "311 records in 2 shards" in output
    assert report["machine"]["cpu"] in output


def test_each_reader_gives_every_record_once_and_either_mirror(tmp_path: Path) -> None:
    records = write_folder(tmp_path / "shards", [150, 150], mirrors=2)
    manifest = read_manifest(tmp_path / "shards")
    readers = {
        OURS: OwnReader(tmp_path / "shards", verify=True),
        WEBDATASET: WebDatasetReader(tmp_path / "shards", manifest),
        STREAMING: StreamingReader(tmp_path / "mds", to_mds(tmp_path / "shards", tmp_path / "mds")),
    }
    known = {record.moments[mirror].tobytes(): (i, mirror) for i, record in enumerate(records) for mirror in (0, 1)}
    for reader in readers.values():
        for _ in range(2):
            batches = list(reader.epoch(mirror=True))
            assert [len(labels) for _, labels in batches] == [256, 44]
            found = [known[np.ascontiguousarray(row).tobytes()] for moments, _ in batches for row in moments.numpy()]
            labels = [label for _, labels in batches for label in labels.tolist()]
            assert sorted(i for i, _ in found) == list(range(300))
            assert labels == [records[i].label for i, _ in found]
            assert 100 < sum(mirror for _, mirror in found) < 200
        reader.close()


def test_readers_of_different_records_are_not_compared(tmp_path: Path) -> None:
    one, other = write_synthetic(tmp_path / "one", 5, mirrors=1), write_synthetic(tmp_path / "other", 6, mirrors=1)
    assert one.layout.mirror_bytes == 16384
    readers = {
        OURS: OwnReader(tmp_path / "one", verify=True),
        WEBDATASET: WebDatasetReader(tmp_path / "other", other),
    }
    with pytest.raises(Failure, match=r"webdataset delivered \{'records': 6"):
        check_same(readers, one)


def test_encoding_is_measured_stage_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    settings = ["image_size=32", "batch_size=4", "shard_records=4"]
    main(["bench", "encode", *settings, "--images", "6", "--rounds", "2", "--json", str(out)])
    report = _report(out)
    assert report["settings"]["images"] == 6
    assert 20_000 < report["settings"]["image_bytes"] < 200_000
    kinds = [result["autoencoder"]["kind"] for result in report["autoencoders"]]
    assert kinds == ["AutoencoderKL", "pca"]
    for result in report["autoencoders"]:
        assert result["config"]["image_size"] == 32
        assert result["images_per_second"]["median"] > 0
        assert result["images_per_cpu_second"]["median"] > 0
        assert list(result["stages"]) == ["decoding and cropping", "encoding", "writing", "all of it"]
        assert all(len(stage["cpu_seconds"]) == 2 for stage in result["stages"].values())
    assert capsys.readouterr().out.count("6 JPEGs of") == 2


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["encode", "quickstart-encode", "source.path=/images"], "'source.path=/images' has no place here"),
        (["encode", "autoencoder.nam=pca"], "did you mean 'name'"),
        (["step", "train.steps=3"], "setting 'train.steps=3' has no place in a benchmark of the network"),
        (["step", "routing.ratio=0.5", "routing.to_blok=3"], "did you mean 'to_block'"),
        (["data", "/nowhere"], "'/nowhere' does not exist"),
        (["data", "--json", "/proc/report.json"], "the folder of the report '/proc' cannot be written to"),
    ],
)
def test_mistakes_get_one_sentence(command: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *command])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_shards_that_not_all_read_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "shards", [3])
    to_mds(tmp_path / "shards", tmp_path / "mds")
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "data", str(tmp_path / "mds")])
    assert stopped.value.code == 2
    assert "holds mds shards, which not every reader of the benchmark reads" in capsys.readouterr().err


def test_saving_is_measured_on_a_real_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    main(["bench", "checkpoint", "--model", "DiT-S/8", "--rounds", "1", "--steps", "1", "--json", str(out)])
    report = _report(out)
    assert report["checkpoint_bytes"] == 16 * report["parameters"] > 5e8
    assert set(report["ways"]) == {"synchronous", "in the background"}
    for way in report["ways"].values():
        assert all(spread["median"] > 0 for spread in way.values())
    assert all(share["median"] > 0 for share in report["share_of_time"].values())
    assert "the loop stands still" in capsys.readouterr().out


def test_a_step_is_measured_beside_a_plain_one_of_the_same_weights(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    small = ["--model", "DiT-S/8", "--image-size", "128", "--batch-size", "2", "--rounds", "1"]
    run(["bench", "step", *small, "--peer-path", PLAIN, "--without-deepspeed", "--json", out])
    report = json.loads(out.read_text())
    assert report["output_difference"]["plain"] < 1e-5
    assert set(report["seconds"]) == {"dit_scale", "without DeepSpeed", "plain"}
    for name in report["seconds"]:
        assert list(report["parts"][name]) == ["forward and backward", "optimizer", "EMA"]
        assert sum(report["kernels"][name].values()) == pytest.approx(1.0)
        assert report["kernels"][name]["matrix products"] > 0.0


def test_a_routed_step_is_measured_beside_the_same_without_routing(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    small = ["--model", "DiT-S/8", "--image-size", "128", "--batch-size", "2", "--rounds", "1", "--json", out]
    run(["bench", "step", *small, "model.hidden_size=48", "routing.ratio=0.75", "routing.fill=learnt"])
    report = json.loads(out.read_text())
    assert list(report["seconds"]) == ["dit_scale", "without routing"]
    assert report["speedup"]["without routing"]["median"] > 0.0
    assert report["settings"]["model"]["hidden_size"] == 48
    assert report["settings"]["routing"]["ratio"] == 0.75


def test_sampling_is_measured_beside_a_plain_one_that_draws_the_same(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    small = ["--model", "DiT-S/8", "--image-size", "128", "--batch-size", "2", "--num-sampling-steps", "5"]
    guides = ["--guide-by", "early", "--peer-path", str(PLAIN)]
    main(["bench", "sample", *small, "--rounds", "1", *guides, "--json", str(out)])
    report = _report(out)
    assert report["latent_difference"]["plain"] < 1e-4
    assert report["speedup"]["plain"]["median"] > 0.0
    assert set(report["seconds"]) == {"dit_scale", "dit_scale, guide_by early", "plain"}
    assert report["against_null"]["dit_scale, guide_by early"]["median"] > 0.0


def test_attention_kernels_are_timed_or_say_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    main(["bench", "attention", "--model", "DiT-S/8", "--batch-size", "1", "--json", str(out)])
    report = _report(out)
    assert report["shape"] == {"batch_size": 1, "num_tokens": 16, "num_heads": 6, "head_size": 64}
    assert report["fastest"] in ("sdpa", "matmul")
    assert set(report["errors"]) == {"sdpa", "matmul"} and 0.0 < max(report["errors"].values()) < 3e-2  # bf16
    assert "it has no operator for device 'cpu'" in capsys.readouterr().out


def test_steps_are_fed_from_shards_beside_a_batch_in_memory(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    small = ["--model", "DiT-S/8", "--batch-size", "2", "--steps", "1", "--rounds", "1"]
    run(["bench", "feed", *small, "--kernels", "off", "--json", out])
    report = json.loads(out.read_text())
    assert len(report["seconds"]) == 2
    assert report["engine"]["kernels"] == "off"
    assert report["ratio"]["median"] > 0.0


def test_communication_is_counted_as_planned(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    small = [
        "--model",
        "DiT-S/8",
        "--image-size",
        "64",
        "--batch-size",
        "4",
        "--micro-batch-size",
        "2",
        "--rounds",
        "1",
    ]
    run(["bench", "comm", *small, "--json", out], ranks=2)
    report = json.loads(out.read_text())
    for kind, num_bytes in report["planned_bytes"].items():
        assert 0 <= report["counted"][kind]["num_bytes"] - num_bytes <= 64


def test_a_peer_laid_out_otherwise_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "step", "--model", "DiT-S/8", "--peer-path", str(tmp_path)])
    assert stopped.value.code == 2
    assert "holds no models.py and diffusion/" in capsys.readouterr().err
