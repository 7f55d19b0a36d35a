"""Ranks are read from torchrun's variables, from srun's, or there is one process."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from dit_scale.distributed.runtime import (
    LauncherJob,
    World,
    job_end_time,
    launcher_job,
    max_restarts,
    process_group,
)
from dit_scale.errors import InputError

LAUNCHER_PREFIXES = ("SLURM_", "DIT_SCALE_", "RANK", "WORLD", "LOCAL", "GROUP", "MASTER")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(LAUNCHER_PREFIXES):
            monkeypatch.delenv(name)


def test_without_a_launcher_there_is_one_process() -> None:
    assert World.from_environment() == World(0, 1, 0, 1, 0)


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 5), ("WORLD_SIZE", 8), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 4), ("GROUP_RANK", 1)):
        monkeypatch.setenv(name, str(value))
    assert World.from_environment() == World(5, 8, 1, 4, 1)


@pytest.mark.parametrize("world", [World(), World(5, 8, 1, 4, 1)])
def test_a_world_exported_is_the_same_world(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {})
    world.export()
    assert World.from_environment() == world


def test_srun_with_uneven_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "7")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x3),1")
    for name, value in (("SLURM_PROCID", 6), ("SLURM_LOCALID", 0), ("SLURM_NODEID", 3)):
        monkeypatch.setenv(name, str(value))
    assert World.from_environment() == World(6, 7, 0, 1, 3)


def test_the_batch_shell_of_slurm_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert World.from_environment().world_size == 1


def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(InputError, match="WORLD_SIZE is 'many'"):
        World.from_environment()


def test_the_job_and_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (launcher_job(), job_end_time(), max_restarts()) == (LauncherJob(None, 0), None, 100)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv("DIT_SCALE_END_TIME", "1795536180")
    monkeypatch.setenv("DIT_SCALE_MAX_RESTARTS", "0")
    assert (launcher_job(), job_end_time(), max_restarts()) == (LauncherJob("12", 3), 1795536180.0, 0)
    monkeypatch.setenv("DIT_SCALE_MAX_RESTARTS", "many")
    with pytest.raises(InputError, match="DIT_SCALE_MAX_RESTARTS is 'many'"):
        max_restarts()


def test_groups_that_others_make_wait_as_long() -> None:
    with process_group(World(), "cpu", timeout_seconds=4321.0):
        for group in (dist.group.WORLD, dist.new_group()):
            assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=4321)
