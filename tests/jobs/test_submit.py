"""`dit-scale submit` before any Slurm is asked: what a chain may say, and one sentence for each mistake."""

import shutil
from pathlib import Path

import pytest

from dit_scale.config import Config, EncodeConfig, load_config
from dit_scale.errors import InputError
from dit_scale.jobs.submit import STAGES, Chain, _command, _site_environment, _words, submit
from tests.launch import ROOT

CHAINS = sorted((ROOT / "configs").glob("*chain.yaml"))


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.stem)
def test_every_chain_that_comes_along_is_whole(path: Path) -> None:
    chain = load_config(Chain, path)
    assert chain.encode is not None
    assert chain.train is not None
    assert chain.sample is not None
    assert chain.evaluate is not None
    encode, train = _words(chain.encode.command, ""), _words(chain.train.command, "")
    load_config(EncodeConfig, encode[0], encode[1:])
    load_config(Config, train[0], train[1:])
    for name in STAGES:
        command = _command(chain, name, getattr(chain, name), site=None)
        assert (ROOT / "slurm" / f"{name}.sbatch").samefile(next(word for word in command if word.endswith(".sbatch")))


def test_a_stages_options_win_and_an_array_logs_by_element(tmp_path: Path) -> None:
    chain = load_config(Chain, CHAINS[0], ["sbatch=--time=1:00 --account=all", "encode.sbatch=--array=0-3 --time=2:00"])
    assert chain.encode is not None
    words = _command(chain, "encode", chain.encode, site=tmp_path)
    assert words.index("--time=1:00") < words.index("--time=2:00")
    assert "--output=logs/%x-%A_%a.log" in words
    assert any(word.startswith("--export=ALL,") and word.endswith(f"DIT_SCALE_SITE={tmp_path}") for word in words)


def test_what_a_site_exports_for_sbatch_reaches_sbatch_and_nothing_else_does(tmp_path: Path) -> None:
    site = tmp_path / "site.sh"
    site.write_text("echo loading modules\nexport SBATCH_ACCOUNT='my lab' NCCL_DEBUG=WARN\nSBATCH_QOS=unexported\n")
    assert _site_environment(site) == {"SBATCH_ACCOUNT": "my lab"}
    site.write_text("false\n")
    with pytest.raises(InputError, match="ends with status 1"):
        _site_environment(site)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["encode=null", "train=null", "sample=null", "evaluate=null"], "has no stage"),
        (["train.command=dit-xl-2-256 data.path=x"], "lacks run_dir="),
        (["train.command=dit-xl-2-256 run_dir=x data.path=y train.stesp=3"], "did you mean 'steps'"),
        (["encode.command=imagenet-256-encode source.path=x"], "lacks output="),
        (["sample.command=runs/x --num-samples 3"], "lacks --out"),
        (["sample.command=runs/x --out y --cfg-scale nan"], "--cfg-scale=nan is not a number"),
        (["sample.command=runs/x --out y --cfg-scale 2 --guidance-interval=0.8,0.1"], "does not rise from 0"),
        (
            ["sample.command=runs/x --out y --guidance-channels 3"],
            "--guidance-channels=3 has no effect with --cfg-scale",
        ),
        (["sample.command=runs/x --out y --num-sampling-steps"], "--num-sampling-steps: expected one argument"),
        (["train.command=dit-xl-2-256 run_dir=x data.path=y engine.activation_budget=2"], "give a number in [0, 1]"),
        (["evaluate.command=runs/x --weights w.pth"], "does not begin with two paths"),
        (["sample.command=runs/x --out 'images"], "close the quotes"),
        (["trian=null"], "did you mean 'train'"),
    ],
)
def test_a_mistake_is_found_before_any_job_exists(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        submit(str(CHAINS[0]), overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_machine_without_slurm_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch is not found"):
        submit(str(CHAINS[0]), [])
