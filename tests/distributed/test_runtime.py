"""Ranks are read from the variables of torchrun, DeepSpeed, mpirun or srun, or there is one process."""

import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from dit_scale.cli import main
from dit_scale.distributed.runtime import (
    LauncherJob,
    World,
    job_end_time,
    launcher_job,
    max_restarts,
    process_group,
)
from dit_scale.errors import Failure, InputError

LAUNCHER_PREFIXES = (
    *("SLURM_", "DIT_SCALE_", "RANK", "WORLD", "LOCAL", "GROUP", "MASTER", "CROSS_", "OMPI_", "PMI", "MPI_", "MV2_"),
    "JSM_",
)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(InputError, match="WORLD_SIZE is 'many'"):
        World.from_environment()


ON_ONE, ELSEWHERE = {"MASTER_ADDR": "127.0.0.1"}, {"MASTER_ADDR": "node7"}
BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
DEEPSPEED = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "8",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
}
OPEN_MPI = {
    f"OMPI_COMM_WORLD_{name}": value
    for name, value in zip(("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"), "3412", strict=True)
}
MVAPICH2 = {name.replace("OMPI", "MV2"): value for name, value in OPEN_MPI.items()}
CRAY = {f"PMI_{name.removeprefix('OMPI_COMM_WORLD_')}": value for name, value in OPEN_MPI.items()}
JSRUN = {name.replace("OMPI_COMM_WORLD", "JSM_NAMESPACE"): value for name, value in OPEN_MPI.items()}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {
    **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
    **{"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"},
}


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        (DEEPSPEED | ELSEWHERE, World(9, 16, 1, 8, 1)),
        (BY_HAND, World(1, 2, 1, 2)),
        (BY_HAND | ON_ONE, World(1, 2, 1, 2)),
        (BY_HAND | ELSEWHERE | {"LOCAL_WORLD_SIZE": "2"}, World(1, 2, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"} | ON_ONE, World(1, 2, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"} | ELSEWHERE, World(1, 2, 0, 1)),
        (OPEN_MPI, World(3, 4, 1, 2)),
        (OPEN_MPI | SRUN, World(3, 4, 1, 2)),  # srun has started mpirun's daemon on each node
        (HYDRA, World(3, 4, 1, 2)),
        (HYDRA | SRUN, World(3, 4, 1, 2)),
        (SRUN | {"PMI_RANK": "1", "PMI_SIZE": "2"}, World(1, 2, 0, 1, 1)),  # srun --mpi=pmi2
        (SRUN | {"RANK": "0", "WORLD_SIZE": "1"}, World(1, 2, 0, 1, 1)),
        (OPEN_MPI | BY_HAND | ON_ONE, World(1, 2, 1, 2)),  # torchrun, started by mpirun
        (MVAPICH2, World(3, 4, 1, 2)),
        (CRAY, World(3, 4, 1, 2)),
        (JSRUN, World(3, 4, 1, 2)),
        ({"RANK": "0"}, World()),
        ({"WORLD_SIZE": "1"}, World()),
        ({"LOCAL_RANK": "0"}, World()),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, World()),
        ({"SLURM_STEP_NUM_TASKS": "1"}, World()),
    ],
)
def test_other_launchers(variables: dict[str, str], world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert World.from_environment() == world


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (BY_HAND | ELSEWHERE, "LOCAL_RANK is set, but not LOCAL_WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "other variables of a launcher are set, but not RANK; set it"),
        ({"RANK": "1", "LOCAL_RANK": "1"}, "other variables of a launcher are set, but not WORLD_SIZE; set it"),
        (BY_HAND | {"RANK": "2"}, "say rank 2 of 2 and, on this machine, 1 of 2, which cannot be"),
        (BY_HAND | {"LOCAL_WORLD_SIZE": "1"}, "say rank 1 of 2 and, on this machine, 1 of 1, which cannot be"),
        (BY_HAND | {"LOCAL_WORLD_SIZE": "0"}, "say rank 1 of 2 and, on this machine, 1 of 0, which cannot be"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "say rank 0 of 0"),
        ({"RANK": "1"}, "RANK=1 says that this is one of several processes, but not which of how many"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 says that this is one of several"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 says that this is one of several"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "PMI_SIZE=2 says .* start them with torchrun or srun, or unset PMI_SIZE"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK=1 says that this is one of several"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE=2 says"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_RANK=1 says"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2 is set, but not SLURM_PROCID; start with srun"),
        (SRUN | {"SLURM_NODEID": "2"}, "SLURM_NODEID=2 is not below 2"),
    ],
)
def test_what_a_launcher_cannot_mean(variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=sentence):
        World.from_environment()


def test_the_argument_of_deepspeeds_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"})
    with pytest.raises(SystemExit) as ended:
        main(["--local_rank=1", "status", "/nowhere"])
    assert ended.value.code == 2
    assert "dit-scale status (rank 1): '/nowhere' is not a run folder" in capsys.readouterr().err
    assert World.from_environment() == World(1, 2, 1, 2)


def test_nobody_says_where_rank_zero_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="MASTER_ADDR and MASTER_PORT are not set"), process_group(World(0, 2), "cpu"):
        pass
    monkeypatch.setenv("PMIX_NAMESPACE", "1")  # Open MPI's, on two machines
    with pytest.raises(InputError, match="MASTER_ADDR and MASTER_PORT are not set"), process_group(World(0, 2), "cpu"):
        pass


def test_a_port_that_is_taken_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(Failure, match=f"MASTER_PORT={port} is in use"), process_group(World(0, 2, 0, 2), "cpu"):
            pass


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
