"""Processes over pipes of their own: answers, errors, and one that is killed at the worst moment."""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from preprocessing.pool import ProcessDied, ProcessPool


def _negated(number: int) -> int:
    if number == 3:
        raise ValueError("no three")
    return -number


def test_answers_and_errors_come_back() -> None:
    with ProcessPool(2, _negated) as pool:
        answers = [pool.submit(number) for number in range(6)]
        assert [answer.result() for answer in answers if answer is not answers[3]] == [0, -1, -2, -4, -5]
        with pytest.raises(ValueError, match="no three") as caught:
            answers[3].result()
        assert "in _negated" in caught.value.__notes__[0], "where it was raised is kept"


def _killed(number: int) -> bytes:
    """Answer with more than fits a pipe; of 1 send the first half and be killed."""

    def send_half(pipe: Connection, content: bytes) -> None:
        os.write(pipe.fileno(), bytes(content)[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    if number == 1:
        Connection._send = send_half  # type: ignore[attr-defined]
    return bytes(1_000_000)


def be_killed_while_sending() -> None:
    """Print which of two answers are lost; in a process of its own, which a test can end while its pool waits."""
    with ProcessPool(2, _killed) as pool:
        answers = [pool.submit(number) for number in range(2)]
        died = [isinstance(answer.exception(), ProcessDied) for answer in answers]
    print(died, multiprocessing.active_children())


def test_a_process_that_is_killed_while_it_sends_is_noticed() -> None:
    code = f"from {__name__} import be_killed_while_sending; be_killed_while_sending()"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout, done.returncode) == ("[False, True] []\n", 0), done.stderr


def _asleep() -> None:
    signal.pause()


def test_closing_ends_processes_that_are_busy() -> None:
    with ProcessPool(2, _asleep) as pool:
        answers = [pool.submit() for _ in range(4)]
        assert len(multiprocessing.active_children()) == 2
    assert all(answer.done() for answer in answers)
    assert multiprocessing.active_children() == []
