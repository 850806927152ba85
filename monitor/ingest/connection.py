"""Reaching Kafka: options, secrets, and one clear line when it cannot be reached.

The client retries every failure silently until its time is up and then says only that it could not bootstrap. So we
connect in slices of growing length and, after each that failed, look for the reason ourselves: the client's own log (it
names refused credentials), then a plain TCP connection, then a TLS handshake. Refused credentials and untrusted
certificates fail at once, because waiting does not mend them; an absent broker is waited for until the time is up.

The password is read from its file at every connection, so that a rotated secret needs no restart, and is blanked out of
whatever the client logs. Neighbours: `kafka` is the one module that imports the client.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from monitor.config import Kafka
from monitor.errors import ConfigError, SourceFailed

log = logging.getLogger("tidemark")

Client = TypeVar("Client")

#: How long a start waits for its brokers; longer than a broker's own start, shorter than a liveness probe's patience.
START_SECONDS = 30.0
_FIRST_SLICE_SECONDS = 2.0                          # doubled each time: a slow TLS and SASL handshake gets its chance
_REPEAT_SECONDS = 60.0                              # a broken connection is told once in that time


def client_options(kafka: Kafka, api_version: tuple[int, ...] | None = None) -> dict[str, Any]:
    """What consumer, producer and admin client have in common; reads the secrets' files now."""
    security = kafka.security
    options: dict[str, Any] = {
        "bootstrap_servers": list(kafka.bootstrap_servers),
        "client_id": kafka.client_id,
        "security_protocol": security.protocol,
        "reconnect_backoff_max_ms": 5_000,          # a broker that was restarted is found again within seconds
    }
    if api_version is not None:
        options["api_version"] = api_version
    if security.protocol.endswith("SSL"):
        options["ssl_context"] = tls_context(kafka)
    if security.protocol.startswith("SASL"):
        options |= {"sasl_mechanism": security.mechanism, "sasl_plain_username": security.username,
                    "sasl_plain_password": password(kafka)}
    return options


def password(kafka: Kafka) -> str:
    """The password in `kafka.security.password_file`, without the newline at its end."""
    path = kafka.security.password_file
    if path is None:
        raise ConfigError("kafka.security.password_file: expected a file with the password, got nothing; add it")
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"kafka.security.password_file: expected a readable file, got {path!r} ({why}); "
                          "mend the path or its rights") from None
    if not text:
        raise ConfigError(f"kafka.security.password_file: expected a password, got the empty file {path!r}; fill it")
    return text


def tls_context(kafka: Kafka) -> ssl.SSLContext:
    """TLS as `kafka.security` says: whom to trust, and our own certificate where the brokers ask for one."""
    security = kafka.security
    for key in ("ca_file", "certificate_file", "key_file"):
        path = getattr(security, key)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"kafka.security.{key}: expected a PEM file, found none at {path!r}; mend the path")
    try:
        context = ssl.create_default_context(cafile=security.ca_file)
    except ssl.SSLError:
        raise ConfigError(f"kafka.security.ca_file: expected certificates in PEM form, got none in "
                          f"{security.ca_file!r}; give the authority's certificate") from None
    context.check_hostname = security.check_hostname
    if security.certificate_file:
        try:
            # A key that wants a passphrase would ask for it on the terminal: refuse it instead.
            context.load_cert_chain(security.certificate_file, security.key_file, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError):
            raise ConfigError("kafka.security.certificate_file: expected a PEM certificate whose key, without a "
                              f"passphrase, is key_file, got {security.certificate_file!r}; check both") from None
    return context


class ClientLog(logging.Handler):
    """Takes the client library's log: notes why connections fail, passes one line a minute on, blanks secrets.

    refused : the broker's words when it refused our credentials
    """

    def __init__(self, secret: str | None) -> None:
        super().__init__(logging.WARNING)
        self.refused = ""
        self.connected = False
        self._secret = secret
        self._told_at = -_REPEAT_SECONDS
        logger = logging.getLogger("kafka")
        logger.addHandler(self)
        logger.propagate = False                    # its retries are ours to tell
        logger.setLevel(logging.WARNING)            # below that it writes requests out, passwords included

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`, on the client's own thread: note, act later."""
        text = record.getMessage()
        if self._secret:
            text = text.replace(self._secret, "***")
        if found := re.search(r"S[aA][sS][lL]\w*Error: (?!\w+Error: )([^()]*)", text):
            self.refused = found[1].strip()
        elif "UnsupportedSaslMechanism" in text:
            self.refused = "the broker does not offer this mechanism"
        if self.connected and "failed" in text and time.monotonic() - self._told_at > _REPEAT_SECONDS:
            self._told_at = time.monotonic()
            log.warning("Kafka connection failed; trying again.", extra={"error": text[:300]})

    def close(self) -> None:
        """Stop listening."""
        logging.getLogger("kafka").removeHandler(self)
        super().close()


def connect(make: Callable[[dict[str, Any]], Client], kafka: Kafka, *, api_version: tuple[int, ...] | None = None,
            wait_seconds: float = START_SECONDS) -> tuple[Client, ClientLog]:
    """A connected client, or SourceFailed with the reason in one line.

    make : builds the client from its options; raises TimeoutError when it was not connected in time
    """
    if not kafka.bootstrap_servers:
        raise ConfigError("kafka.bootstrap_servers: expected HOST:PORT of at least one broker, got nothing; add one")
    end, slice_seconds = time.monotonic() + wait_seconds, _FIRST_SLICE_SECONDS
    while True:
        options = client_options(kafka, api_version)
        options["bootstrap_timeout_ms"] = max(500, int(1000 * min(slice_seconds, end - time.monotonic())))
        client_log = ClientLog(options.get("sasl_plain_password"))
        try:
            client = make(options)
        except TimeoutError:
            client_log.close()
            reason, may_pass = diagnose(kafka, options.get("ssl_context"), client_log.refused)
            if not may_pass or time.monotonic() >= end:
                waited = f" (waited {wait_seconds:.0f} s)" if may_pass else ""
                raise SourceFailed(reason + waited) from None
            slice_seconds *= 2
            continue
        except BaseException:
            client_log.close()
            raise
        client_log.connected = True
        return client, client_log


def diagnose(kafka: Kafka, context: ssl.SSLContext | None, refused: str) -> tuple[str, bool]:
    """Why no broker could be talked to, and whether waiting may help."""
    security = kafka.security
    if refused:
        return _not_let_in(kafka, refused), False
    problems = []
    for server in kafka.bootstrap_servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            return f"kafka.bootstrap_servers: expected HOST:PORT, got {server!r}; add the port", False
        try:
            with socket.create_connection((host.strip("[]"), int(port)), 3) as raw:
                if context is not None:
                    with context.wrap_socket(raw, server_hostname=host.strip("[]")) as secured:
                        offered = _offered_mechanisms(secured, security.mechanism)
                else:
                    offered = _offered_mechanisms(raw, security.mechanism)
                if offered and security.mechanism not in offered:
                    return _not_let_in(kafka, f"the broker does not offer it, but {', '.join(offered)}"), False
        except ssl.SSLCertVerificationError as error:
            return (f"kafka.security: expected a certificate of {server} that we can trust, got one with "
                    f"'{error.verify_message}'; check ca_file and the host's name"), False
        except ssl.SSLError as error:
            if "WRONG_VERSION" in str(error) or "RECORD_LAYER" in str(error):
                return (f"kafka.security.protocol: expected TLS at {server}, got something else; "
                        "use a TLS port or a protocol without SSL"), False
            problems.append(f"{server}: TLS {error.reason or 'failed'}")
        except (OSError, OverflowError) as error:
            problems.append(f"{server}: {getattr(error, 'strerror', None) or error}")
        else:
            problems.append(f"{server}: connected, but no Kafka answer for protocol {security.protocol}; "
                            "is it the port of another protocol?")
    return (f"kafka.bootstrap_servers: expected a Kafka broker, got {'; '.join(problems)[:400]}; "
            "check the address, and that the broker runs"), True


def _not_let_in(kafka: Kafka, why: str) -> str:
    security = kafka.security
    return (f"kafka.security: expected to be let in as {security.username!r} with {security.mechanism}, "
            f"got {why[:200]!r}; check mechanism, username and password_file")


def _offered_mechanisms(stream: socket.socket, mechanism: str | None) -> list[str]:
    """The SASL mechanisms that a broker offers, by a SaslHandshake request of our own; empty where it does not say.

    The client's own refusal is lost when the broker's answer and its hanging up arrive together, which happens on a
    loaded machine; without this the user would be told that no broker is there.
    """
    if mechanism is None:
        return []
    name = mechanism.encode()
    body = struct.pack(">hhih", 17, 1, 1, -1) + struct.pack(">h", len(name)) + name     # key, version, id, no client id
    try:
        stream.settimeout(3)
        stream.sendall(struct.pack(">i", len(body)) + body)
        with stream.makefile("rb") as answer:
            size = struct.unpack(">i", answer.read(4))[0]
            content = answer.read(min(max(size, 0), 4_096))
        count, at, offered = struct.unpack_from(">i", content, 6)[0], 10, []
        for _ in range(min(count, 20)):
            length = struct.unpack_from(">h", content, at)[0]
            offered.append(content[at + 2: at + 2 + length].decode("ascii"))
            at += 2 + length
    except (OSError, struct.error, UnicodeDecodeError):
        return []
    return offered
