"""How several processes are started, in the documents and in tests, works on a host whose name does not resolve."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.launch import ROOT, command, environment

FORM = "--local-addr 127.0.0.1 --nproc-per-node"


def test_the_documents_start_torchrun_in_one_way() -> None:
    texts = {path: path.read_text() for path in _documents()}
    commands = [
        found
        for text in texts.values()
        for found in re.findall(r"torchrun\"?\s[^|`;#]*?-m\s+dit_scale", text, re.DOTALL)
    ]
    assert len(commands) >= 5
    assert [wrong for wrong in commands if FORM not in " ".join(wrong.split())] == []
    assert FORM in " ".join(command([], ranks=2))


def _documents() -> list[Path]:
    return [
        ROOT / "README.md",
        *(path for name in ("docs", "configs", "quickstart") for path in (ROOT / name).glob("*.*")),
    ]


def test_two_ranks_on_a_host_whose_name_does_not_resolve(tmp_path: Path) -> None:
    shell = 'hostname no-such-host && exec "$@"'
    words = command([tmp_path], ranks=2, module="tests.supervision.conveniences_worker")
    alone = ["unshare", "--uts", "sh", "-c", shell, "sh"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("a host name of its own takes root")
    result = subprocess.run(
        [*alone, *words], capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert sorted(result.stdout.split()) == ["rank-0-None-3.0", "rank-1-None-3.0"]
