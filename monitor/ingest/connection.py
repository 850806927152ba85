"""Reaching Kafka: options, secrets, and one clear line when it cannot be reached.

The client retries every failure silently until its time is up and then says only that it could not bootstrap. So we
connect in slices of growing length and, after each that failed, look for the reason ourselves: in the client's own log
(it names refused credentials), then by asking the broker (`diagnosis`). Refused credentials and untrusted certificates
fail at once, because waiting does not mend them; an absent broker is waited for until the time is up.

Password and certificates are read from their files whenever a client is made. The source makes a new one when the
brokers refuse it, so that what was rotated needs no restart. A secret is blanked out of whatever the client logs.
Neighbours: `kafka` is the one module that imports the client; `outage` tells of brokers that went away later.
"""

from __future__ import annotations

import base64
import logging
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from monitor.config import Kafka
from monitor.errors import ConfigError, SourceFailed
from monitor.ingest.diagnosis import diagnose

__all__ = ["METADATA_SECONDS", "REQUEST_SECONDS", "START_SECONDS", "ClientLog", "client_options", "connect", "diagnose",
           "password", "refuse_another_topic", "shown_id", "tls_context"]

Client = TypeVar("Client")

#: How long a start waits for its brokers; longer than a broker's own start, shorter than a liveness probe's patience.
START_SECONDS = 30.0
#: How soon added partitions and moved leaders are seen without an error that tells; one small request each.
METADATA_SECONDS = 30.0
#: How long a broker that hangs holds us up. Answers that take longer by their size are asked for in smaller pieces.
REQUEST_SECONDS = 30.0
_FIRST_SLICE_SECONDS = 2.0                          # doubled each time: a slow TLS and SASL handshake gets its chance


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


def shown_id(number: bytes) -> str:
    """A topic's id of 16 bytes as Kafka's own tools show it; empty where the broker knows of none, which it tells as zeros."""
    return base64.urlsafe_b64encode(number).decode().rstrip("=") if any(number) else ""


def refuse_another_topic(topic: str, expected: str, got: str) -> None:
    """SourceFailed where a topic has another id than the one whose offsets we go on from."""
    if got != expected:
        raise SourceFailed(f"kafka topic {topic!r}: expected the topic that was read so far ({expected}), got another one that "
                           f"was made under its name ({got}); start with another service.state")


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
        if lack := _why_not_valid_now(security.certificate_file, security.key_file):
            raise ConfigError(f"kafka.security.certificate_file: expected a certificate that is valid now, got "
                              f"{security.certificate_file!r} with {lack!r}; have it renewed, or set this machine's clock")
    return context


def _why_not_valid_now(certificate: str, key: str | None) -> str:
    """Why our own certificate's time is not now; empty if it is. Nothing else about it is judged.

    A broker only says that it does not like it, if it says anything. So a handshake with ourselves, in memory, in which
    the server trusts nothing but this very certificate.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for context in (server, client):
        context.load_cert_chain(certificate, key)
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server.load_verify_locations(certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True))
    for _ in range(4):                              # flights of TLS 1.2, the longer one
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return error.verify_message if error.verify_code in (9, 10) else ""     # not yet valid, expired
            except ssl.SSLError:
                return ""
    return ""


class ClientLog(logging.Handler):
    """Takes the client library's log: notes why connections fail and passes nothing on, for its retries are ours to tell.

    refused : the broker's words when it refused our credentials
    failed  : the client's last words about a connection that failed or was lost, secrets blanked
    timed_out : how often a request was not answered in time
    """

    def __init__(self, secret: str | None) -> None:
        super().__init__(logging.WARNING)
        self.refused = ""
        self.failed = ""
        self.timed_out = 0
        self._secret = secret
        logger = logging.getLogger("kafka")
        logger.addHandler(self)
        logger.propagate = False
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
        if "Request timed out after" in text and "Closing connection" in text:
            self.timed_out += 1
        if found := re.search(r"(?:failed|lost|dead)\b[^:]*: (.*)", text, re.DOTALL):
            self.failed = found[1][:200]

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
        client_log = ClientLog(secret := options.get("sasl_plain_password"))
        try:
            client = make(options)
        except TimeoutError:
            client_log.close()
            reason, may_pass = diagnose(kafka, options.get("ssl_context"), client_log.refused, secret)
            if not may_pass or time.monotonic() >= end:
                waited = f" (waited {wait_seconds:.0f} s)" if may_pass else ""
                raise SourceFailed(reason + waited) from None
            slice_seconds *= 2
            continue
        except BaseException:
            client_log.close()
            raise
        client_log.failed = ""                      # of the first attempts
        return client, client_log
