"""Real processes without the seconds that importing torch and DeepSpeed takes: forked from one that has done so.

`python -m tests.fork_server` reads a line of JSON for each run from its input and answers with a line: the exit
status. Each rank is a process of its own, with torchrun's variables where there are several; like torchrun it ends
the others once one has failed. Tests of the launcher itself, of signals and of kills start real torchruns.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
_HEAVY = (
    "deepspeed",
    "diffusers.models.autoencoders.autoencoder_kl",
    "matplotlib.pyplot",
    "dit_scale.sampling.job",
    "dit_scale.doctor",
    "dit_scale.interop.importing",
    "dit_scale.training.job",
    "preprocessing.encode",
)


class ForkServer:
    """The client's side: one server for this process, begun with the first run and again after a time-out."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, request: dict[str, Any], environment: dict[str, str], timeout: float) -> int:
        """Return the exit status of a request: words, module, ranks, environment, stdout, stderr (files)."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server"],
                env=environment,
                cwd=ROOT,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request | {"timeout": timeout}) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer.strip():
            self._process = None
            raise AssertionError("the fork server has died")
        return int(answer)


def serve() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed greets on standard output
    _import_heavy()
    for line in sys.stdin:
        print(_run(json.loads(line)), file=answers, flush=True)


def _import_heavy() -> None:
    for name in _HEAVY:
        importlib.import_module(name)


def _run(request: dict[str, Any]) -> int:
    ranks = request["ranks"]
    port = _free_port()
    children = {}
    for rank in range(ranks):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "GROUP_RANK": 0,
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        child = os.fork()
        if child == 0:
            _become(request, variables if ranks > 1 else {})
        children[child] = rank
    signal.signal(signal.SIGALRM, lambda *_: [_end(child) for child in children])
    signal.alarm(int(request["timeout"]))
    worst = 0
    while children:
        child, status = os.wait()
        if child not in children:
            continue
        del children[child]
        code = os.waitstatus_to_exitcode(status)
        if code != 0 and worst == 0:
            worst = code if ranks == 1 else 1  # torchrun tells only zero from not zero
            for other in children:
                _end(other)
    signal.alarm(0)
    return worst


def _end(child: int) -> None:
    os.kill(child, signal.SIGKILL)


def _become(request: dict[str, Any], variables: dict[str, object]) -> NoReturn:
    """Turn this child into `python -m MODULE WORDS…` with its own environment and files."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(request["environment"] | {name: str(value) for name, value in variables.items()})
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_APPEND), descriptor)
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        sys.argv = [request["module"], *request["words"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    serve()
