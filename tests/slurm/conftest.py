"""One cluster for all tests of the batch scripts; where none can run they are skipped, in CI they fail."""

import os
from collections.abc import Iterator

import pytest

from tests.end_to_end.conftest import images, shards  # noqa: F401  (fixtures)
from tests.slurm.cluster import Cluster, running_cluster, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real Slurm of two nodes, stopped at the end whatever happens."""
    reason = why_not()
    if reason is not None:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"the batch scripts are not tested: {reason}")
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="package", autouse=True)
def _without_gpus() -> Iterator[None]:
    """Keep what runs beside the cluster on CPUs, as the jobs are; the tests of other folders see their GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield
