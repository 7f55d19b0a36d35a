"""What a run must keep when it goes on is named by one setting, with both of its values."""

from types import SimpleNamespace
from typing import cast

import pytest

from dit_scale.checkpoint import Checkpoint
from dit_scale.config import Config, load_config, resolved
from dit_scale.errors import InputError
from dit_scale.training.run_folder import check_resume

NEEDED = ["run_dir=r", "data.path=d"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["diffusion.prediction=v"], "diffusion.prediction is 'v' but the run began with 'epsilon', and it is fixed"),
        (["diffusion.name=flow"], "diffusion.name is 'flow' but the run began with 'gaussian', and it is fixed"),
        (["model.head_depth=2", "model.head_hidden_size=8"], "model.head_hidden_size is 8 but the run began with null"),
        (["seed=1"], "seed is 1 but the run began with 0, and it is fixed"),
    ],
)
def test_a_setting_that_is_fixed_is_named_alone(overrides: list[str], sentence: str) -> None:
    saved = SimpleNamespace(config=resolved(load_config(Config, None, NEEDED)), data={}, position=None)
    checkpoint = cast(Checkpoint, SimpleNamespace(kinds=["master"], description=saved))
    with pytest.raises(InputError) as caught:
        check_resume(checkpoint, load_config(Config, None, [*NEEDED, *overrides]), {})
    assert str(caught.value).startswith(sentence)
    assert "(" not in str(caught.value).partition("set it back")[0]  # no section of settings


def test_a_run_of_before_a_setting_was_there_goes_on_with_what_its_preset_says() -> None:
    config = load_config(Config, None, [*NEEDED, "model.name=DiT-S/8"])
    before = resolved(config)
    before["model"] = {"name": "DiT-S/8", "learn_sigma": True, "patch_size": None}  # as earlier versions wrote it
    saved = SimpleNamespace(config=before, data={"fingerprint": ""}, position=SimpleNamespace(step=0))
    checkpoint = cast(Checkpoint, SimpleNamespace(kinds=["master"], description=saved))
    check_resume(checkpoint, config, {"fingerprint": ""})
    with pytest.raises(InputError, match=r"model\.norm is 'rmsnorm' but the run began with 'layernorm'"):
        check_resume(checkpoint, load_config(Config, None, [*NEEDED, "model.name=DiT-S/8", "model.norm=rmsnorm"]), {})
