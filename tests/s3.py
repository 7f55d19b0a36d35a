"""A real S3 server (moto's) as a process of its own, which can be stopped, started again and made to stall."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

BUCKET = "latents"
_SERVER = """
import sys
from moto.server import ThreadedMotoServer

for line in sys.stdin:  # until the process that started this one ends
    if line == "start\\n":
        server = ThreadedMotoServer("127.0.0.1", int(sys.argv[1]), verbose=False)
        server.start()
    else:
        server.stop()
    print("done", flush=True)
"""


class S3Server:
    """A server on a free port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.start()
        self._client = boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )
        self._client.create_bucket(Bucket=BUCKET)

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to use this server."""
        return {
            "S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def start(self) -> None:
        """Accept connections; what was stored before is there."""
        self._tell("start")

    def stop(self) -> None:
        """Refuse connections."""
        self._tell("stop")

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def stall(self) -> None:
        """Let it accept connections and say nothing more."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._process.send_signal(signal.SIGCONT)

    def put(self, key: str, content: bytes) -> None:
        """Store an object."""
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def upload(self, folder: Path, prefix: str) -> str:
        """Store a folder's files; return the location."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def _tell(self, command: str) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n", "moto's server has ended"


@contextmanager
def running_server() -> Iterator[S3Server]:
    """Run a server, with this process's environment pointing to it."""
    server = S3Server()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in server.environment.items():
                patch.setenv(name, value)
            patch.delenv("AWS_PROFILE", raising=False)
            yield server
    finally:
        server.end()
