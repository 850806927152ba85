"""One HTTP port: metrics, probes and the API, served beside the loop and never in its way.

    /metrics  /-/healthy  /-/ready      for Prometheus and Kubernetes: open, no secrets in them
    /api/v1/...  /openapi.json          for programs: the same snapshot in JSON
    POST /api/v1/...                    what changes something: only with the token (`monitor.expose.answers`)
    POST /api/v1/alertmanager           alerts that ask for a retraining (`monitor.expose.alertmanager`)

Every answer reads one `Published` of the exporter and nothing else, so a slow reader holds up nobody and two answers
never contradict each other. The server runs in a thread of its own; the port is bound by the caller of `start`, so that
a taken port is an error of the configuration, told before anything else happens.

The port may be open to a cluster, so every request passes `monitor.expose.guard` first: sizes, times, the token. Answers
are not to be cached, framed or sniffed. Neighbours: `monitor.expose.exporter` (what is read),
`monitor.expose.views` (how it is worded).
"""

from __future__ import annotations

import errno
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
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
from starlette.types import ASGIApp

from monitor.errors import ConfigError
from monitor.expose import alertmanager, answers, views
from monitor.expose.exporter import Exporter
from monitor.expose.exposition import CONTENT_TYPE, OPENMETRICS, wants_openmetrics
from monitor.expose.guard import CONNECTIONS, HEAD_BYTES, BodyRefused, Connection, Guard, Listener
from monitor.expose.inbox import Inbox
from monitor.expose.rates import Rates
from monitor.expose.tls import Certificates

#: Longer than any turn of the loop takes, and shorter than a person would wait for a stuck service to be restarted.
STALLED_SECONDS = 300.0
#: A scrape interval of a minute keeps its connection.
_KEEP_ALIVE_SECONDS = 75
_START_SECONDS = 10.0

_ANSWERS: dict[str, tuple[str, type]] = {
    "/api/v1/monitors": ("All monitors with their state and highest columns.", views.Monitors),
    "/api/v1/monitors/{model}": ("One monitor with every column of its latest judged pane.", views.MonitorView),
    "/api/v1/alarms": ("The latest alarms, newest first.", views.Alarms),
    "/api/v1/triggers": ("The launches that were decided, newest first.", views.Triggers),
    **answers.READ,
}


def application(exporter: Exporter, token: str | None = None, *, inbox: Inbox | None = None,
                more: Sequence[Route] = (), monotonic: Callable[[], float] = time.monotonic,
                hosts: Collection[str] | None = None, rates: Rates | None = None) -> Starlette:
    """The ASGI application over what the exporter publishes; with a token, everything below /api asks for it.

    inbox : where answers to proposed launches are noted; without a token or an inbox none is taken
    more  : routes of other modules of this stage: pages, reports, receivers
    hosts : names that requests may be for, besides addresses; None for any      rates : how often what may be asked
    """

    def metrics(request: Request) -> Response:
        asked = wants_openmetrics(request.headers.get("accept", ""))
        return Response(exporter.scrape(as_openmetrics=asked), headers={"vary": "accept"},
                        media_type=OPENMETRICS if asked else CONTENT_TYPE)

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

    document = msgspec.json.encode(openapi(secured=token is not None))

    async def described(request: Request) -> Response:
        return Response(document, media_type="application/json")

    # Endpoints that are plain functions run in a pool of threads: none of them can hold up a probe.
    routes = [
        Route("/metrics", metrics), Route("/-/healthy", healthy), Route("/-/ready", ready),
        Route("/api/v1/monitors", monitors), Route("/api/v1/monitors/{model}", monitor),
        Route("/api/v1/alarms", alarms), Route("/api/v1/triggers", triggers), Route("/openapi.json", described),
        *answers.routes(exporter, inbox if token is not None else None),
        *alertmanager.routes(exporter, inbox if token is not None else None),
        *more,
    ]
    known = [route.path for route in routes]

    async def fault(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = getattr(error, "headers", None)
        words = error.detail if isinstance(error, BodyRefused) else HTTPStatus(status).phrase.lower()
        return _json(views.Fault(words, known if status == 404 else []), status, headers)

    guard = Middleware(Guard, token=token, bodies={alertmanager.PATH: alertmanager.BODY_BYTES}, hosts=hosts, rates=rates)
    zipped = Middleware(GZipMiddleware, minimum_size=4_096, compresslevel=1)
    return Starlette(routes=routes, middleware=[guard, zipped], exception_handlers={HTTPException: fault})


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
    kinds = [*(kind for _, kind in _ANSWERS.values()), alertmanager.Message, alertmanager.Received, answers.Body, answers.Answer,
             views.Fault]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for (path, (summary, _)), schema in zip(_ANSWERS.items(), schemas, strict=False):
        responses = {"200": _described("The answer.", schema), **_always(schemas[-1], secured=secured)}
        parameters = []
        if "{model}" in path:
            responses["404"] = _described("No such model; names those that there are.", schemas[-1])
            parameters = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
        paths[path] = {"get": {"summary": summary, "parameters": parameters, "responses": responses}}
    for path, summary in answers.CHANGED.items():
        names = re.findall(r"{(\w+)}", path)
        paths.setdefault(path, {})["post"] = {
            "summary": summary,
            "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
            "requestBody": {"required": not names, "content": {"application/json": {"schema": schemas[-3]}}},
            "responses": {"200": _described("Done, or what a dry run would do.", schemas[-2]),
                          "202": _described("Noted; the loop is busy and will act on it.", schemas[-2]),
                          "409": _described("Not done, and why.", {"anyOf": [schemas[-2], schemas[-1]]}),
                          **_always(schemas[-1], secured=secured), **{
                code: _described(text, schemas[-1]) for code, text in (
                    ("400", "A body that cannot be read."), ("403", "No token is configured, or a foreign page asks."),
                    ("404", "No such launch, answer or model."), ("408", "A body that comes too slowly."),
                    ("429", "Asked too often; Retry-After says when to come again."),
                    ("503", "Not ready, or too many requests wait."))}}}
    paths[alertmanager.PATH] = {"post": {
        "summary": "Alertmanager's webhook message, version 4: alerts that ask for a retraining.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schemas[-5]}}},
        "responses": {"200": _described("What became of each alert.", schemas[-4]), **_always(schemas[-1], secured=secured), **{
            code: _described(text, schemas[-1]) for code, text in (
                ("400", "No such message."), ("403", "No token is configured, or a foreign page asks."),
                ("408", "A body that comes too slowly."),
                ("429", "Asked too often; Retry-After says when to come again."),
                ("503", "Not ready, or too many requests wait: Alertmanager tries again."))}}}}
    _let_numbers_be_null(components)
    document: dict[str, Any] = {
        "openapi": "3.1.0", "info": {"title": "tidemark", "version": "1"}, "paths": paths,
        "components": {"schemas": components},
    }
    if secured:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _always(fault: dict[str, Any], *, secured: bool) -> dict[str, Any]:
    """What any request may be answered, before anybody looks at what it asks."""
    told = {"413": "A body that is too large.", "421": "A request for a name that is not this service's.",
            "431": "A request line and headers that are too large."}
    if secured:
        told |= {"401": "No token, or a wrong one.", "429": "Too many wrong tokens; Retry-After says when to come again."}
    return {code: _described(text, fault) for code, text in told.items()}


def _let_numbers_be_null(schema: Any) -> None:
    """Describe what is encoded: a number that does not exist (a distance of an empty window) is null."""
    if isinstance(schema, dict):
        if schema.get("type") == "number":
            schema["type"] = ["number", "null"]
        for value in schema.values():
            _let_numbers_be_null(value)
    elif isinstance(schema, list):
        for value in schema:
            _let_numbers_be_null(value)


def _described(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _json(answer: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(answer), status, headers, media_type="application/json")


class Server:
    """The application on one address, in a daemon thread.

    `start` returns when requests are answered; `port` is then the port in use (of a configured 0, the one given by the
    system); `stop` lets running answers end for a second. Both may be called from the loop's thread only.

    certificates : to serve https with
    """

    def __init__(self, app: ASGIApp, host: str, port: int, certificates: Certificates | None = None) -> None:
        self._certificates = certificates
        self.host = host
        self.port = port
        self._app = app
        self._thread: threading.Thread | None = None
        self._uvicorn: uvicorn.Server | None = None

    def start(self) -> None:
        """Bind, and serve from now on; ConfigError where the address cannot be had."""
        listener = self._bind()
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app, loop="asyncio", http=type("Connection", (Connection,), {"listener": listener}), ws="none",
            lifespan="off", log_config=None,
            log_level="warning", access_log=False,
            server_header=False, limit_concurrency=CONNECTIONS, h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=1)
        if self._certificates is not None:
            config.load()
            config.ssl = self._certificates.context
        self._uvicorn = uvicorn.Server(config)
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

    def _bind(self) -> Listener:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listener = Listener(family, kind, protocol)
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
