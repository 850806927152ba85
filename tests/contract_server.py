"""An HTTP server on loopback that plays another program's API in tests, strictly, and misbehaves on demand.

It stands in for servers that cannot be had here (Airflow, Kubeflow Pipelines, a deployment webhook). `answer` gets each
request whole and returns an Answer; what it raises as AssertionError is kept in `complaints`, which every test must find
empty, and answered with 500. `misbehave` replaces the next answers, whatever is asked.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        assert self.headers.get("content-type", "").split(";")[0].endswith("json"), self.headers
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    how: str = "whole"                              # or hang, drip, cut, close


def said(document: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json",
                                                          **{name.replace("_", "-"): value for name, value in headers.items()}})


class ContractServer:
    """Answers on a port of its own until it is closed; use as a context manager."""

    def __init__(self, answer: Callable[[Asked], Answer], *, certificate: Path | None = None, key: Path | None = None) -> None:
        self.asked: list[Asked] = []
        self.complaints: list[str] = []
        self.bad: list[Answer] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                split = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                asked = Asked(self.command, split.path, dict(parse_qsl(split.query)),
                              {name.lower(): value for name, value in self.headers.items()}, body)
                outer.asked.append(asked)
                if outer.bad:
                    return self.send(outer.bad.pop(0))
                try:
                    answered = answer(asked)
                except AssertionError as error:
                    outer.complaints.append(f"{asked.method} {asked.path}: {error}")
                    answered = said({"detail": "the contract was broken"}, 500)
                return self.send(answered)

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = do  # noqa: N815

            def send(self, answered: Answer) -> None:
                self.close_connection = True
                if answered.how == "close":
                    return
                if answered.how == "hang":
                    outer.over.wait(30)
                    return
                self.send_response(answered.status)
                # Said, or a client that keeps connections asks again on one that is just being closed.
                headers = {"Content-Length": str(len(answered.body)), "Connection": "close", **answered.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):
                    if answered.how == "drip":
                        for byte in answered.body:
                            self.wfile.write(bytes([byte]))
                            if outer.over.wait(0.05):
                                return
                    self.wfile.write(answered.body[:len(answered.body) // 2] if answered.how == "cut" else answered.body)
                return

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that cut the connection is what some tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.port = self._server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def misbehave(self, *answers: Answer) -> None:
        self.bad.extend(answers)

    def __enter__(self) -> ContractServer:
        return self

    def __exit__(self, *raised: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        if raised[0] is None:
            assert self.complaints == []


def closed_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
