"""A server that the real wandb library talks to: one that takes a run, or refuses every key."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers what `wandb.init` and `run.finish` ask."""

    daemon_threads = True

    def __init__(self, refuses: bool):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses = refuses
        self._connections: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def go(self) -> None:
        """Be gone, as in an outage: nobody answers at the port, nor on a connection that is open."""
        self.shutdown()
        self.server_close()
        for connection in self._connections:
            with suppress(OSError):  # which has ended by itself
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def wandb_server(refuses: bool = False) -> Iterator[Server]:
    """Run a server on a thread of this process."""
    server = Server(refuses)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.go()


def _answer(query: str, variables: dict[str, Any]) -> dict[str, Any]:
    if "upsertBucket" in query:
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
        run = {"id": "r", "name": variables["name"], "displayName": "run", "historyLineCount": 0, "project": project}
        return {"upsertBucket": {"bucket": run, "inserted": True}}
    if "createRunFiles" in query:
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
    if "viewer" in query:
        return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
    return {"model": None}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.server.refuses:
            self._send(401, {"errors": [{"message": "this key is not known"}]})
        elif self.path == "/graphql":
            asked = json.loads(body)
            self._send(200, {"data": _answer(asked["query"], asked.get("variables") or {})})
        else:
            self._send(200, {})

    def _send(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass
