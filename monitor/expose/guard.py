"""What every request passes before anything else: how large, how slow, how often, from which page, with which token.

    Guard         head and body in bytes, the body in seconds, the host's name, the token; headers of every answer
    Connection    a connection in seconds: until it has said what it wants, and while it does not read its answer
    Listener      connections that have not come so far yet, as in a handshake of TLS

The port may be open to a cluster, where anybody may open it and say nothing, or say it a byte at a time. So nothing
that is waited for is waited for without end, and where all CONNECTIONS are taken, the one that has been idle longest
gives way: probes and scrapes get through as long as not all of them are being answered. What is refused is told in
JSON, one sentence, with the limit in it.

A browser reads for whatever page it shows. So a port of this machine answers to names that it knows only (a foreign page
may have its own name lead here), and what changes something is refused where a browser says that a foreign page asks.

The token is compared by digest, so that neither its length nor where it differs shows in the time that it takes, and is
written nowhere. Cost: a few µs per request. Neighbours: `rates` counts by address, `api` puts all to
use.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import math
import socket
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import h11
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from monitor.expose import views
from monitor.expose.rates import Rates

#: A request's body, bytes, where a route does not say otherwise: a person's words; beyond it the answer is 413.
BODY_BYTES = 65_536
#: Request line and headers, bytes: the longest token and path are far below; beyond it the answer is 431.
HEAD_BYTES = 16_384
#: Connections at a time: two Prometheus, the probes, an Alertmanager's cluster and some people.
CONNECTIONS = 64
#: Seconds for a head, and again for a body: both fit into one packet, or into few. Beyond it the answer is 408.
HEAD_SECONDS = BODY_SECONDS = 10.0
#: Seconds in which somebody who is sent an answer must have read some of it.
READ_SECONDS = 30.0
#: Connections that are accepted but have not begun to speak, in TLS; beyond them the oldest ends.
HANDSHAKES = 64
#: What asks for the token, where there is one: the API, and reports, which are made of kept events.
GUARDED = ("/api", "/reports")

_SECURITY_HEADERS = [(name.encode(), value.encode()) for name, value in {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}.items()]
#: A year: whoever came by https once comes by https. Names below ours are not ours to speak for.
_TLS_HEADERS = [(b"strict-transport-security", b"max-age=31536000")]


class BodyRefused(HTTPException):
    """A body that is too large or too slow; `detail` is the answer's sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail, {"connection": "close"})


class Guard:
    """Sizes and token before everything else, headers after it.

    bodies : path -> bytes that its body may have, its length said or not; of every other path BODY_BYTES, and said
    hosts  : names that requests may be for, besides addresses; None where every name may be ours
    """

    def __init__(self, app: ASGIApp, token: str | None, bodies: Mapping[str, int], body_seconds: float = BODY_SECONDS, *,
                 hosts: Collection[str] | None = None, rates: Rates | None = None) -> None:
        self._app, self._bodies, self._body_seconds = app, bodies, body_seconds
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self._rates = rates or Rates()
        self._token = None if token is None else hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in the application's place, or let it answer."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                names = {name for name, _ in given}                 # a page says for itself what it may load
                wanted = _SECURITY_HEADERS + _TLS_HEADERS if scope["scheme"] == "https" else _SECURITY_HEADERS
                message["headers"] = [*given, *(header for header in wanted if header[0] not in names)]
            await send(message)

        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        head = sum(map(len, (*headers, *headers.values(), scope["raw_path"], scope["query_string"])))
        most = self._bodies.get(scope["path"], BODY_BYTES)
        unsaid = b"transfer-encoding" in headers and scope["path"] not in self._bodies
        if head > HEAD_BYTES:
            answer = _fault(f"a request line and headers of at most {HEAD_BYTES} bytes", 431, {"connection": "close"})
        elif not length.isdigit() or int(length) > most or unsaid:
            answer = _fault(_too_large(most), 413, {"connection": "close"})
        elif not self._is_ours(headers):
            answer = _fault("a request for a name of this service: name it in service.hosts", 421, {"connection": "close"})
        elif refused := self._refusal(scope, headers):
            answer = refused
        else:
            try:
                return await self._app(scope, self._bounded(receive, most), send_secured)
            except ClientDisconnect:                # it went before it had said all: nobody is left to be answered
                return None
        return await answer(scope, receive, send_secured)

    def _is_ours(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the request's Host is an address, which no foreign name can lead to, or a name that is known."""
        if self._hosts is None:
            return True
        host = _host(headers.get(b"host", b"").decode("latin-1"))
        try:
            return bool(ipaddress.ip_address(host))
        except ValueError:
            return host in self._hosts

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        """The no to a request without the token, from a foreign page, or that comes too often."""
        is_change, address = scope["method"] not in ("GET", "HEAD", "OPTIONS"), (scope.get("client") or ("",))[0]
        if is_change and _is_foreign(headers):
            return _fault("a request of a page of this service, or of no page", 403, {})
        if self._token is not None and scope["path"].startswith(GUARDED):
            offers = b"authorization" in headers
            if offers and (seconds := self._rates.wait("failures", address, take=False)):
                return _too_often(seconds)
            if not self._knows(headers, scope["method"]):
                if offers:
                    self._rates.wait("failures", address)
                scheme = "Bearer" if scope["path"].startswith("/api") else 'Basic realm="tidemark", charset="UTF-8"'
                return _fault("a bearer token is needed", 401, {"www-authenticate": scheme})
        if is_change and (seconds := self._rates.wait("changes", address)):
            return _too_often(seconds)
        return None

    def _bounded(self, receive: Receive, most: int) -> Receive:
        """`receive` for a body of at most so many bytes and seconds; after the body it waits as long as it takes."""
        end, got, is_whole = asyncio.get_running_loop().time() + self._body_seconds, 0, False

        async def receive_bounded() -> Message:
            nonlocal got, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise BodyRefused(408, f"a whole body within {self._body_seconds:g} seconds") from None
            got += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if got > most:
                raise BodyRefused(413, _too_large(most))
            return message

        return receive_bounded

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


class Listener(socket.socket):
    """A listening socket that knows which of its connections have not begun to speak, and ends those that take too long.

    A connection of TLS is nobody's until its handshake is over, and each holds a file descriptor.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._silent: OrderedDict[int, socket.socket] = OrderedDict()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection; the one that has been silent longest makes room for it."""
        connection, address = super().accept()
        number = connection.fileno()
        self._silent.pop(number, None)              # a number comes again, once its connection is gone
        self._silent[number] = connection
        while len(self._silent) > HANDSHAKES:
            self._end(next(iter(self._silent)))
        asyncio.get_running_loop().call_later(Connection.head_seconds, self._end, number, connection)
        return connection, address

    def speaks(self, number: int) -> None:
        """Note that the connection of this file descriptor is in other hands."""
        self._silent.pop(number, None)

    def _end(self, number: int, expected: socket.socket | None = None) -> None:
        if expected is None or self._silent.get(number) is expected:
            silent = self._silent.pop(number)
            if silent.fileno() == number:           # else it is closed already
                try:
                    silent.shutdown(socket.SHUT_RDWR)
                except OSError:                     # it is gone by itself
                    return


class Connection(H11Protocol):
    """One connection, which ends where it says nothing, too little, or does not read what it asked for."""

    #: Where it came from.
    listener: Listener | None = None
    #: Seconds, as above; a test takes others.
    head_seconds, read_seconds = HEAD_SECONDS, READ_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits: asyncio.TimerHandle | None = None          # for the head of a request
        self._stands: asyncio.TimerHandle | None = None         # while its answer is not read
        self._idle_since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; where no place is left, the connection that has been idle longest is ended for it."""
        super().connection_made(transport)
        if self.listener is not None and (own := transport.get_extra_info("socket")) is not None:
            self.listener.speaks(own.fileno())
        self._wait_for_head()
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            idle = [one for one in self.connections if isinstance(one, Connection) and one is not self and one.is_idle]
            if idle:
                oldest = min(idle, key=lambda one: one._idle_since)
                self.connections.discard(oldest)
                oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and leave no timer behind."""
        for timer in (self._waits, self._stands):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Take what came; from the first byte of a head on, all of it must come soon."""
        super().data_received(data)
        if not self.is_idle:
            self._unwait()
        elif self._waits is None and not self.transport.is_closing() and self.timeout_keep_alive_task is None:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """An answer is given: it is idle from now on."""
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.is_idle and self._waits is None and not self.transport.is_closing() and self.conn.trailing_data[0]:
            self._unset_keepalive_if_required()     # the next head has begun already
            self._wait_for_head()

    def pause_writing(self) -> None:
        """Its answer is not read fast enough to be sent."""
        super().pause_writing()
        self._stands = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads on."""
        super().resume_writing()
        if self._stands is not None:
            self._stands.cancel()
            self._stands = None

    def _wait_for_head(self) -> None:
        self._waits = self.loop.call_later(self.head_seconds, self._give_up)

    def _unwait(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _give_up(self) -> None:
        """No whole request came: say so where one was begun, and end."""
        self._waits = None
        if not self.is_idle or self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            body = msgspec.json.encode(views.Fault(f"a request line and headers within {self.head_seconds:g} seconds", []))
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
                                 b"content-length: %d\r\n\r\n%b" % (len(body), body))
        self.transport.close()


def _host(text: str) -> str:
    """The name or address in a Host header, without port and brackets."""
    if text.startswith("["):
        return text[1:].partition("]")[0].lower()
    return (text.partition(":")[0] if text.count(":") == 1 else text).rstrip(".").lower()


def _is_foreign(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser says that a page of somebody else asks. Programs say nothing of the kind."""
    if headers.get(b"sec-fetch-site", b"none") in (b"cross-site", b"same-site"):
        return True
    origin = headers.get(b"origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin.decode("latin-1")).netloc.lower() != headers.get(b"host", b"").decode("latin-1").lower()
    except ValueError:
        return True


def _too_often(seconds: float) -> Response:
    wait = math.ceil(seconds)
    return _fault(f"fewer requests of this kind: come again in {wait} s", 429, {"retry-after": str(wait)})


def _too_large(most: int) -> str:
    return f"a body of at most {most} bytes with its length said"


def _fault(words: str, status: int, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(views.Fault(words, [])), status, headers, media_type="application/json")
