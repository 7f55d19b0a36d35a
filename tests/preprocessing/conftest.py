"""Images, an autoencoder and shards for the tests of encoding."""

from pathlib import Path

import diffusers
import pytest
import torch

from tests.preprocessing.encoding import COUNTS, encoded
from tests.preprocessing.images import draw_tree


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tree(tmp_path_factory.mktemp("images"), COUNTS)


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("kl") / "kl"
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(block_out_channels=(16, 16), norm_num_groups=4, **blocks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(source: Path, kl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that one process encoded with the KL autoencoder, without a hitch."""
    folder = tmp_path_factory.mktemp("reference") / "shards"
    encoded(source, folder, f"autoencoder.name={kl}")
    return folder
