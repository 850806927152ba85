"""One HTTP port: metrics, probes and the API, served beside the loop and never in its way.

    /metrics  /-/healthy  /-/ready      for Prometheus and Kubernetes: open, no secrets in them
    /api/v1/...  /openapi.json          for programs: the same snapshot in JSON
    POST /api/v1/triggers/{launch}/...  approve or reject a proposed retraining: only with the token, only noted here

Every answer reads one `Published` of the exporter and nothing else, so a slow reader holds up nobody and two answers
never contradict each other. The server runs in a thread of its own; the port is bound by the caller of `start`, so that
a taken port is an error of the configuration, told before anything else happens.

Guards, since the port may be open to a cluster: at most CONNECTIONS at a time, BODY_BYTES of body, HEAD_BYTES of
request line and headers; the bearer token, where one is configured, is compared in constant time and never written
anywhere; answers are not to be cached, framed or sniffed. Neighbours: `monitor.expose.exporter` (what is read),
`monitor.expose.views` (how it is worded).
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor.errors import ConfigError
from monitor.expose import views
from monitor.expose.exporter import CONTENT_TYPE, Exporter
from monitor.expose.inbox import ACTIONS, Asked, Inbox

#: A request's body, bytes: nothing that is served today has one; beyond it the answer is 413.
BODY_BYTES = 65_536
#: Request line and headers, bytes: the longest token and path are far below; beyond it the answer is 431.
HEAD_BYTES = 16_384
#: Connections at a time: two Prometheus, the probes and some people; beyond it the answer is 503.
CONNECTIONS = 64
#: What asks for the token, where there is one: the API, and reports, which are made of kept events.
GUARDED = ("/api", "/reports")
#: Longer than any turn of the loop takes, and shorter than a person would wait for a stuck service to be restarted.
STALLED_SECONDS = 300.0
#: A scrape interval of a minute keeps its connection.
_KEEP_ALIVE_SECONDS = 75
_START_SECONDS = 10.0

_SECURITY_HEADERS = [(name.encode(), value.encode()) for name, value in {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}.items()]

_ANSWERS: dict[str, tuple[str, type]] = {
    "/api/v1/monitors": ("All monitors with their state and highest columns.", views.Monitors),
    "/api/v1/monitors/{model}": ("One monitor with every column of its latest judged pane.", views.MonitorView),
    "/api/v1/alarms": ("The latest alarms, newest first.", views.Alarms),
    "/api/v1/triggers": ("The launches that were decided, newest first.", views.Triggers),
}


def application(exporter: Exporter, token: str | None = None, *, inbox: Inbox | None = None,
                more: Sequence[Route] = (), monotonic: Callable[[], float] = time.monotonic) -> Starlette:
    """The ASGI application over what the exporter publishes; with a token, everything below /api asks for it.

    inbox : where answers to proposed launches are noted; without a token or an inbox none is taken
    more  : routes of other modules of this stage: pages, reports, receivers
    """

    def metrics(request: Request) -> Response:
        return Response(exporter.scrape(), media_type=CONTENT_TYPE)

    async def healthy(request: Request) -> Response:
        at = exporter.published.at
        if at is not None and (silent := monotonic() - at) > STALLED_SECONDS:
            return PlainTextResponse(f"Stalled: the loop has shown nothing for {silent:.0f} seconds.\n", 503)
        return PlainTextResponse("Healthy.\n")

    async def ready(request: Request) -> Response:
        service = exporter.published.service
        if service.ready:
            return PlainTextResponse("Ready.\n")
        return PlainTextResponse(f"Not ready: {service.reason}\n", 503)

    def monitors(request: Request) -> Response:
        return _json(views.monitors(exporter.published))

    def monitor(request: Request) -> Response:
        published, model = exporter.published, request.path_params["model"]
        view = views.monitor(published, model)
        if view is None:
            known = [status.model for status in published.service.monitors]
            return _json(views.Fault(f"no monitor of a model named {model[:80]!r}", known), 404)
        return _json(view)

    def alarms(request: Request) -> Response:
        return _json(views.alarms(exporter.published))

    def triggers(request: Request) -> Response:
        return _json(views.triggers(exporter.published))

    def answered(request: Request) -> Response:
        return _noted(exporter, inbox if token is not None else None, request.path_params)

    document = msgspec.json.encode(openapi(secured=token is not None))

    async def described(request: Request) -> Response:
        return Response(document, media_type="application/json")

    # Endpoints that are plain functions run in a pool of threads: none of them can hold up a probe.
    routes = [
        Route("/metrics", metrics), Route("/-/healthy", healthy), Route("/-/ready", ready),
        Route("/api/v1/monitors", monitors), Route("/api/v1/monitors/{model}", monitor),
        Route("/api/v1/alarms", alarms), Route("/api/v1/triggers", triggers), Route("/openapi.json", described),
        Route("/api/v1/triggers/{launch}/{action}", answered, methods=["POST"]),
        *more,
    ]
    known = [route.path for route in routes]

    async def fault(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = getattr(error, "headers", None)
        return _json(views.Fault(HTTPStatus(status).phrase.lower(), known if status == 404 else []), status, headers)

    guard = Middleware(_Guard, token=token)
    zipped = Middleware(GZipMiddleware, minimum_size=4_096, compresslevel=1)
    return Starlette(routes=routes, middleware=[guard, zipped], exception_handlers={HTTPException: fault})


def _noted(exporter: Exporter, inbox: Inbox | None, asked: Mapping[str, str]) -> Response:
    """Note an answer to a proposed launch for the loop; without an inbox nothing may be changed."""
    if inbox is None:
        return _json(views.Fault("changing something needs a token: set service.token_file", []), 403)
    launch, action = asked["launch"], asked["action"]
    launches = {known.id: known.state for known in exporter.published.service.launches}
    if action not in ACTIONS:
        return _json(views.Fault(f"no answer named {action[:40]!r}", list(ACTIONS)), 404)
    if launch not in launches:
        proposed = [name for name, state in launches.items() if state == "proposed"]
        return _json(views.Fault(f"no launch {launch[:40]!r}", proposed), 404)
    if launches[launch] != "proposed":
        return _json(views.Fault(f"launch {launch} is {launches[launch]}, no longer proposed", []), 409)
    if not inbox.put(Asked(ACTIONS[action], launch, by="token", at=time.time())):
        return _json(views.Fault("too many answers wait for the loop; try again", []), 503)
    return _json(views.Answer(launch, action), 202)


def read_token(path: str) -> str:
    """The bearer token in a file, blanks around it removed; ConfigError where there is none."""
    where = f"service.token_file: expected a file with a token of at least 16 characters, got {path!r}"
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{where} ({why}); write one, readable by this process") from None
    if len(token) < 16:
        raise ConfigError(f"{where} with {len(token)}; make one with `openssl rand -hex 32`")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where} with blanks or other characters that no header can carry; "
                          "make one with `openssl rand -hex 32`")
    return token


def openapi(*, secured: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document; its schemas are those of the types that are encoded."""
    kinds = [*(kind for _, kind in _ANSWERS.values()), views.Answer, views.Fault]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for (path, (summary, _)), schema in zip(_ANSWERS.items(), schemas, strict=False):
        answers = {"200": _described("The answer.", schema)}
        if secured:
            answers["401"] = _described("No token, or a wrong one.", schemas[-1])
        parameters = []
        if "{model}" in path:
            answers["404"] = _described("No such model; names those that there are.", schemas[-1])
            parameters = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
        paths[path] = {"get": {"summary": summary, "parameters": parameters, "responses": answers}}
    paths["/api/v1/triggers/{launch}/{action}"] = {"post": {
        "summary": "Approve or reject a proposed retraining; the loop acts on it within a second.",
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                       for name in ("launch", "action")],
        "responses": {"202": _described("Noted.", schemas[-2]), **{
            code: _described(text, schemas[-1]) for code, text in (
                ("401", "No token, or a wrong one."), ("403", "The service has no token configured."),
                ("404", "No such launch or answer."), ("409", "The launch is no longer proposed."))}}}}
    document: dict[str, Any] = {
        "openapi": "3.1.0", "info": {"title": "tidemark", "version": "1"}, "paths": paths,
        "components": {"schemas": components},
    }
    if secured:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _described(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _json(answer: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(answer), status, headers, media_type="application/json")


class _Guard:
    """Sizes and token before everything else, headers after it.

    The token is compared by digest, so that neither its length nor where it differs shows in the time that it takes.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = None if token is None else hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                names = {name for name, _ in given}                 # a page says for itself what it may load
                message["headers"] = [*given, *(header for header in _SECURITY_HEADERS if header[0] not in names)]
            await send(message)

        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        head = sum(map(len, (*headers, *headers.values(), scope["raw_path"], scope["query_string"])))
        if head > HEAD_BYTES:
            answer = _json(views.Fault(f"a request line and headers of at most {HEAD_BYTES} bytes", []), 431,
                           {"connection": "close"})
        elif not length.isdigit() or int(length) > BODY_BYTES or b"transfer-encoding" in headers:
            answer = _json(views.Fault(f"a body of at most {BODY_BYTES} bytes with its length said", []), 413,
                           {"connection": "close"})
        elif self._token is not None and scope["path"].startswith(GUARDED) and not self._knows(headers, scope["method"]):
            scheme = "Bearer" if scope["path"].startswith("/api") else 'Basic realm="tidemark", charset="UTF-8"'
            answer = _json(views.Fault("a bearer token is needed", []), 401, {"www-authenticate": scheme})
        else:
            return await self._app(scope, receive, send_secured)
        return await answer(scope, receive, send_secured)

    def _knows(self, headers: dict[bytes, bytes], method: str) -> bool:
        """Whether the request carries the token: as a bearer, or, to read in a browser, as the password of any name.

        A browser sends a password along with whatever a foreign page makes it ask, so that one changes nothing.
        """
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        given, is_bearer = given.strip(), scheme.lower() == b"bearer"
        if scheme.lower() == b"basic" and method in ("GET", "HEAD"):
            try:
                given, is_bearer = base64.b64decode(given, validate=True).partition(b":")[2], True
            except binascii.Error:
                given = b""
        return hmac.compare_digest(hashlib.sha256(given).digest(), self._token or b"") and is_bearer


class Server:
    """The application on one address, in a daemon thread.

    `start` returns when requests are answered; `port` is then the port in use (of a configured 0, the one given by the
    system); `stop` lets running answers end for a second. Both may be called from the loop's thread only.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._app = app
        self._thread: threading.Thread | None = None
        self._uvicorn: uvicorn.Server | None = None

    def start(self) -> None:
        """Bind, and serve from now on; ConfigError where the address cannot be had."""
        listener = self._bind()
        self.port = listener.getsockname()[1]
        self._uvicorn = uvicorn.Server(uvicorn.Config(
            self._app, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None,
            log_level="warning", access_log=False,
            server_header=False, limit_concurrency=CONNECTIONS, h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._uvicorn.run, args=([listener],), name="http", daemon=True)
        self._thread.start()
        end = time.monotonic() + _START_SECONDS
        while not self._uvicorn.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise ConfigError(f"service.listen: expected to serve on {self._address()}, but the server did not "
                                  "start; see the log")
            time.sleep(0.002)                       # a start takes some 10 ms; uvicorn has no event to wait for

    def stop(self) -> None:
        """End the server and free the port; safe to call twice, or before start."""
        if self._uvicorn is not None and self._thread is not None:
            self._uvicorn.should_exit = True
            self._thread.join(_START_SECONDS)
            self._uvicorn = self._thread = None

    def _bind(self) -> socket.socket:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listener = socket.socket(family, kind, protocol)
        except OSError as error:
            raise ConfigError(f"service.listen: expected a local address, got {self._address()} ({error.strerror}); "
                              "use 127.0.0.1:PORT or 0.0.0.0:PORT") from None
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            listener.close()
            mend = {errno.EADDRINUSE: "stop the program that has it, or choose another port",
                    errno.EACCES: "choose a port above 1023"}.get(error.errno or 0, "choose an address of this machine")
            raise ConfigError(f"service.listen: expected a free address, got {self._address()} ({error.strerror}); "
                              f"{mend}") from None
        return listener

    def _address(self) -> str:
        return f"'[{self.host}]:{self.port}'" if ":" in self.host else f"'{self.host}:{self.port}'"
