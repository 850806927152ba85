"""The one door to other programs' HTTP APIs: for the launchers that are reached so, and for promotion by webhook.

A call sends one request and brings back one whole reply, or raises LaunchFailed with one line that says what to do:

    no connection, cut, slower than SECONDS, 408, 425, 429, 5xx    may be tried again; Retry-After is kept as `after`
    401                                                            may be tried again: credentials are read anew each time
    a redirect, another 4xx, a certificate we do not trust         never, unless the caller is `patient`
    more than REPLY_BYTES, not what was promised                   may be tried again: starting is idempotent

What holds. One call ends within CONNECT_SECONDS + SECONDS whatever the other side does: a timer cuts the connection, so
that a server that sends a byte now and then holds nobody up (only the resolver keeps its own limits). Redirects are
never followed, so credentials reach no other host. Secrets come from files that are read at each call, and are taken
out of whatever a server says before it becomes an error; of a URL only the host is ever shown, because paths and
queries of webhooks hold secrets. Proxy variables of the environment are not looked at.

Cost: one connection per call, four a minute and launch; standard library only. Neighbours: `airflow`, `kfp`,
`webhook` beside this module, and `retrain.promotions`.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

from monitor.config import RestServer
from monitor.errors import ConfigError, LaunchFailed, one_line

CONNECT_SECONDS = 3.0
#: From the first byte sent to the last one received.
SECONDS = 10.0
#: A run's document with its parameters is a few kB; a listing of ten runs a few hundred.
REPLY_BYTES = 4 << 20
WORDS_MAX = 200
SECRET_BYTES_MAX = 65_536
#: Answers after which the same call may succeed.
PASSING = frozenset({401, 408, 425, 429})


class Refused(LaunchFailed):
    """A reply that is not a success; `status` is its HTTP status."""

    def __init__(self, message: str, *, status: int, retry: bool, after: float = 0.0) -> None:
        super().__init__(message, retry=retry, after=after)
        self.status = status


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply: its status, its headers by lower-case name, its bytes; `host` names who sent it."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    host: str

    def document(self) -> dict[str, Any]:
        """The JSON object that it holds; LaunchFailed(retry=True) for anything else."""
        try:
            document = json.loads(self.content)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            kind = self.headers.get("content-type", "no content type")[:60]
            raise LaunchFailed(f"{self.host}: expected a JSON object, got {len(self.content):,} bytes of {one_line(kind)}; "
                               "does something else answer in its place, a login page perhaps?", retry=True)
        return document


class Door:
    """One server. `call` asks it; the constructor checks what can be checked without it.

    server : its node of the configuration        path : where that stands in the file, for errors
    what   : its name in messages: "Airflow"
    """

    def __init__(self, server: RestServer, *, path: str, what: str, seconds: float = SECONDS) -> None:
        self.path, self.what, self.seconds = path, what, seconds
        self.url = checked_url(server.url, f"{path}.url")
        self.host = self.url.netloc
        self._server = server
        if server.token_file is not None and server.username is not None:
            raise ConfigError(f"{path}.token_file: expected either a token or a name with a password, got both; remove one")
        if (server.username is None) != (server.password_file is None):
            lacking = "password_file" if server.password_file is None else "username"
            raise ConfigError(f"{path}.{lacking}: expected username and password_file together, got one; add the other")
        for name in ("token_file", "password_file"):
            if (file := getattr(server, name)) is not None:
                read_secret(file, f"{path}.{name}")
        if server.ca_file is not None:
            if self.url.scheme != "https":
                raise ConfigError(f"{path}.ca_file: expected an https URL beside it, got {self.url.scheme}; mend the URL")
            _trust(server.ca_file, f"{path}.ca_file")

    def call(self, method: str, target: str, *, query: Mapping[str, str] | None = None, body: object = None,
             content: bytes | None = None, headers: Mapping[str, str] | None = None, authorization: str | None = None,
             expected: Collection[int] = (200,), patient: bool = False) -> Reply:
        """One request, one reply whose status is among `expected`.

        target  : the path below the configured URL, already quoted; "" for the URL itself
        body    : sent as JSON                       content : sent as it is
        authorization : in place of what the configuration says; "" for none
        patient : whether what is refused may be tried again: a job is running, and a person can mend the rights
        """
        sent = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "tidemark", "Connection": "close"}
        if body is not None:
            content = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
            sent["Content-Type"] = "application/json"
        sent.update(headers or {})
        secrets = self._secrets()
        if authorization is None:
            authorization = secrets[0] if secrets else ""
        if authorization:
            sent["Authorization"] = authorization
        secrets.append(authorization)
        place = f"{self.url.path.rstrip('/')}{target}" or "/"
        # The configured query stays: some webhooks carry their key in it.
        asked = "&".join(filter(None, [self.url.query, urlencode(query or {})]))
        try:
            reply = self._exchange(method, f"{place}?{asked}" if asked else place, content, sent)
        except ConfigError as error:                # the file of authorities was there at the start
            raise LaunchFailed(str(error), retry=True) from None
        except ssl.SSLCertVerificationError as error:
            raise LaunchFailed(f"{self.what}: {self.host}: its certificate is not trusted ({error.verify_message}); set "
                               f"{self.path}.ca_file", retry=patient) from None
        except (OSError, http.client.HTTPException) as error:
            raise LaunchFailed(f"{self.what}: no answer from {self.host} ({_cause(error)}); is it up and reachable from here?",
                               retry=True) from None
        if reply.status in expected:
            return reply
        raise self._refusal(reply, [part for secret in secrets for part in (secret, secret.partition(" ")[2]) if part], patient)

    def basic(self) -> tuple[str, str] | None:
        """Name and password, where they are configured; LaunchFailed(retry=True) where they cannot be read now."""
        if self._server.username is None or self._server.password_file is None:
            return None
        return self._server.username, self._read(self._server.password_file, "password_file")

    def has_token(self) -> bool:
        """Whether a bearer token is configured."""
        return self._server.token_file is not None

    def _secrets(self) -> list[str]:
        """The Authorization header's value, then whatever else must not be shown."""
        if self._server.token_file is not None:
            return [f"Bearer {self._read(self._server.token_file, 'token_file')}"]
        if (pair := self.basic()) is not None:
            return [f"Basic {base64.b64encode(':'.join(pair).encode()).decode()}", pair[1]]
        return []

    def _read(self, file: str, name: str) -> str:
        try:
            return read_secret(file, f"{self.path}.{name}")
        except ConfigError as error:                # it was there at the start: it may be in the middle of a rotation
            raise LaunchFailed(str(error), retry=True) from None

    def _exchange(self, method: str, target: str, content: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Send and receive within `seconds`, on a connection of its own."""
        usual = 443 if self.url.scheme == "https" else 80
        port = self.url.port or usual
        assert self.url.hostname is not None
        connection = http.client.HTTPConnection(self.url.hostname, port, timeout=self.seconds)
        connection.default_port = usual             # the Host header names any other
        plain = socket.create_connection((self.url.hostname, port), CONNECT_SECONDS)
        is_late = threading.Event()
        with contextlib.ExitStack() as closing:
            closing.callback(plain.close)
            plain.settimeout(self.seconds)
            if self.url.scheme == "https":
                trusted = _trust(self._server.ca_file, f"{self.path}.ca_file")
                wrapped: socket.socket = trusted.wrap_socket(plain, server_hostname=self.url.hostname,
                                                             do_handshake_on_connect=False)
            else:
                wrapped = plain
            closing.callback(wrapped.close)

            def cut() -> None:
                is_late.set()
                with contextlib.suppress(OSError):
                    # The plain socket's own shutdown: that of TLS would take state away from under the reading thread.
                    socket.socket.shutdown(wrapped, socket.SHUT_RDWR)

            timer = threading.Timer(self.seconds, cut)
            timer.daemon = True
            timer.start()
            closing.callback(timer.cancel)
            try:
                if isinstance(wrapped, ssl.SSLSocket):
                    wrapped.do_handshake()
                connection.sock = wrapped
                connection.request(method, target, body=content, headers=dict(headers))
                answer = connection.getresponse()
                received = answer.read(REPLY_BYTES + 1)
            except (OSError, http.client.HTTPException, ValueError) as error:
                # Silence ends at the socket's own limit or at the timer's, whichever is first.
                if is_late.is_set() or isinstance(error, TimeoutError):
                    raise TimeoutError(f"no whole reply within {self.seconds:g} s") from None
                raise
            if is_late.is_set():
                raise TimeoutError(f"no whole reply within {self.seconds:g} s")
            if len(received) > REPLY_BYTES:
                raise http.client.HTTPException(f"a reply of more than {REPLY_BYTES >> 20} MiB")
            if answer.length:
                raise http.client.HTTPException("the connection was cut in the middle of the reply")
            known = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, known, received, f"{self.what}: {self.host}")

    def _refusal(self, reply: Reply, secrets: Collection[str], patient: bool) -> Refused:
        """What a reply that is no success means, in one line that says what to do."""
        status, words = reply.status, said(reply.content)
        for secret in secrets:
            words = words.replace(secret, "***")
        heard = f": {words[:WORDS_MAX]}" if words else ""
        retry = patient or status in PASSING or status >= 500
        if 300 <= status < 400:
            there = urlsplit(reply.headers.get("location", ""))
            where = f" to {there.scheme}://{there.hostname}" if there.hostname else ""
            text = (f"answers with a redirect ({status}){one_line(where)}, which is not followed: is that a login page? set "
                    f"{self.path}.url to the address that answers")
        elif status == 401:
            text = f"does not accept the credentials (401){heard}; renew {self._credentials()}"
        elif status == 403:
            text = f"does not allow this (403){heard}; give {self._credentials()} the right to do it"
        elif status == 429:
            text = f"is asked too often (429){heard}; it is asked again later"
        elif status >= 500:
            text = f"fails ({status}){heard}; see its log"
        else:
            text = f"refuses ({status}){heard}; check {self.path}"
        return Refused(f"{self.what}: {self.host} {text}", status=status, retry=retry, after=_after(reply.headers))

    def _credentials(self) -> str:
        named = next((name for name in ("token_file", "password_file") if getattr(self._server, name)), "token_file")
        return f"{self.path}.{named}"


def checked_url(url: str, where: str) -> SplitResult:
    """A URL of http or https with a host and without credentials in it; ConfigError, which does not repeat it."""
    try:
        split = urlsplit(url)
        is_good = (split.scheme in ("http", "https") and bool(split.hostname) and not split.fragment
                   and url.isascii() and url.isprintable() and " " not in url and (split.port is None or split.port > 0))
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(f"{where}: expected a URL such as https://HOST[:PORT]/PATH without blanks or a fragment, "
                          "got another text; mend it")
    if "@" in split.netloc:
        raise ConfigError(f"{where}: expected no name or password in the URL, got one; use username and password_file")
    return split


def read_secret(file: str, where: str) -> str:
    """The one line in a file, blanks around it removed; ConfigError, which repeats nothing of it."""
    try:
        with Path(file).expanduser().open("rb") as handle:
            text = handle.read(SECRET_BYTES_MAX).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{where}: expected a file with a secret, got {file!r} ({why}); write one, readable by this "
                          "process") from None
    if not text or not text.isascii() or not text.isprintable():
        raise ConfigError(f"{where}: expected one line of printable ASCII in {file!r}, got something else; write the secret "
                          "alone into it")
    return text


def said(content: bytes) -> str:
    """The message in an error reply: what the usual keys hold, else how it starts; one line.

    >>> said(b'{"detail": "DAG churn not found"}')
    'DAG churn not found'
    """
    text = content[:SECRET_BYTES_MAX].decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        for key in ("message", "detail", "error", "error_message", "title", "reason"):
            if document.get(key):
                text = document[key] if isinstance(document[key], str) else json.dumps(document[key])
                break
    elif re.match(r"\s*<", text):
        text = "an HTML page"
    return one_line(" ".join(text.split()))[:2 * WORDS_MAX]


def _trust(ca_file: str | None, where: str) -> ssl.SSLContext:
    """Whom we trust: the system's authorities, or those of one file; read anew, because it may be renewed."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        why = "no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"{where}: expected a file with certificates, got {ca_file!r} ({why}); mend the path") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 without one, or with nonsense."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _cause(error: BaseException) -> str:
    """The reason of a failed exchange, short and on one line."""
    if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "the connection was cut in the middle of the reply"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {one_line(error.reason or 'failed')}"
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return one_line(" ".join(words.split()))[:WORDS_MAX]
