"""Why no broker lets us in: asked of the broker itself, in a few bytes of its own protocol.

A client library retries silently and then says that it could not bootstrap; and where a broker's refusal and its hanging
up arrive together, as on a loaded machine, the library never sees the refusal. So after a failed attempt we go the same
way by hand: TCP, TLS, ApiVersions, SaslHandshake, SaslAuthenticate. The first step that fails names the line of the
configuration to mend, and whether waiting may help: a broker that is not there may come, a wrong password stays wrong.

Each wait ends after 3 s and each answer after 64 KB, so that whatever listens at the port costs a few seconds at most.
The password is sent only where the configuration would send it: by the same mechanism, over the same TLS. Numbers are
those of Kafka's protocol guide. Neighbours: `connection` asks; every transport takes its answers from there.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import ssl
import struct

from monitor.config import Kafka

_WAIT_SECONDS = 3
_ANSWER_BYTES = 65_536
_API_VERSIONS, _HANDSHAKE, _AUTHENTICATE = 18, 17, 36           # the requests' keys
_ILLEGAL_SASL_STATE = 34                            # a listener without SASL answers a handshake with it
_AUTHENTICATION_FAILED = 58
_ITERATIONS_MAX = 1_000_000                         # what a stranger may make us hash


class _Refused(Exception):
    """A reason that waiting does not mend."""


class _NoKafka(Exception):
    """Nothing that a Kafka broker would say."""


def diagnose(kafka: Kafka, context: ssl.SSLContext | None, refused: str, secret: str | None = None) -> tuple[str, bool]:
    """Why no broker could be talked to, in one line, and whether waiting may help.

    context : the TLS that the client used; None without TLS       refused : the broker's refusal, where the client heard it
    secret  : the password; without it the broker is not asked whether it is right
    """
    if refused:
        return _not_let_in(kafka, refused), False
    problems = []
    for server in kafka.bootstrap_servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            return f"kafka.bootstrap_servers: expected HOST:PORT, got {server!r}; add the port", False
        address = (host.strip("[]"), int(port))
        try:
            _ask(kafka, server, address, context, secret)
        except _Refused as error:
            return str(error), False
        except _NoKafka:
            problems.append(f"{server}: connected, but no Kafka answer for protocol {kafka.security.protocol}")
        except (OSError, OverflowError) as error:
            problems.append(f"{server}: {getattr(error, 'strerror', None) or error}")
        else:
            problems.append(f"{server}: it answers, but its cluster could not be reached in time; can the addresses in its "
                            "advertised.listeners be reached from here?")
    return (f"kafka.bootstrap_servers: expected a Kafka broker, got {'; '.join(problems)[:400]}; "
            "check the address, and that the broker runs"), True


def _ask(kafka: Kafka, server: str, address: tuple[str, int], context: ssl.SSLContext | None, secret: str | None) -> None:
    """Go one broker's way in; raises at the first step that fails."""
    with socket.create_connection(address, _WAIT_SECONDS) as raw:
        if context is None:
            try:
                _walk(_Talk(raw), kafka, server, secret)
            except _NoKafka:
                if _speaks_tls(address):
                    raise _Refused(f"kafka.security.protocol: expected a broker without TLS at {server}, got one with it; "
                                   "use SSL or SASL_SSL, or the port of the plaintext listener") from None
                raise
            return
        try:
            secured = context.wrap_socket(raw, server_hostname=address[0])
        except ssl.SSLCertVerificationError as error:
            raise _Refused(f"kafka.security: expected a certificate of {server} that we can trust, got one with "
                           f"'{error.verify_message}'; {_advice(error.verify_code)}") from None
        except (ssl.SSLError, ConnectionError) as error:
            if _speaks_kafka(address):
                raise _Refused(f"kafka.security.protocol: expected TLS at {server}, got a broker that speaks without it; use "
                               "the port of a TLS listener, or a protocol without SSL") from None
            raise OSError(f"TLS {getattr(error, 'reason', None) or 'failed'}") from None
        with secured:
            try:
                _walk(_Talk(secured), kafka, server, secret)
            except ssl.SSLError as error:           # with TLS 1.3 the broker judges our certificate after the handshake
                if "ALERT" not in str(error.reason):
                    raise
                given = kafka.security.certificate_file
                raise _Refused(
                    f"kafka.security.certificate_file: expected a certificate that {server} accepts, got "
                    f"{str(error.reason).lower().replace('_', ' ')!r} for {repr(given) if given else 'none'}; "
                    f"{'ask for one that the brokers trust' if given else 'the broker asks for one: name it here'}") from None


def _advice(code: int) -> str:
    if code in (9, 10):                             # not yet valid, expired
        return "have it renewed, or set this machine's clock"
    if code in (62, 64):                            # another host's name, another address
        return "name the broker as its certificate does in kafka.bootstrap_servers, or have it issued for this name"
    return "check ca_file and the host's name"


def _walk(talk: _Talk, kafka: Kafka, server: str, secret: str | None) -> None:
    """ApiVersions, then SASL as far as it is configured."""
    mechanism, protocol = kafka.security.mechanism, kafka.security.protocol
    talk.ask(_API_VERSIONS, 0, b"")
    code, offered = _offered(talk, mechanism or "PLAIN")
    if not protocol.startswith("SASL"):
        if code != _ILLEGAL_SASL_STATE:
            raise _Refused(f"kafka.security.protocol: expected a broker that lets in with {protocol} at {server}, got one "
                           f"that asks for SASL ({', '.join(offered)}); use SASL_{protocol}, or another port")
        return
    if code == _ILLEGAL_SASL_STATE:
        raise _Refused(f"kafka.security.protocol: expected a broker that asks for SASL at {server}, got one without it; use "
                       f"{protocol.removeprefix('SASL_')}, or another port")
    if mechanism not in offered:
        raise _Refused(_not_let_in(kafka, f"the broker does not offer it, but {', '.join(offered)}"))
    if secret is None or mechanism is None:
        return
    user = kafka.security.username or ""
    if mechanism == "PLAIN":
        code, why, _ = talk.authenticate(f"\0{user}\0{secret}".encode())
    else:
        code, why = _scram(talk, user, secret, mechanism)
    if code == _AUTHENTICATION_FAILED:
        raise _Refused(_not_let_in(kafka, why))


def _not_let_in(kafka: Kafka, why: str) -> str:
    security = kafka.security
    return (f"kafka.security: expected to be let in as {security.username!r} with {security.mechanism}, "
            f"got {why[:200]!r}; check mechanism, username and password_file")


class _Talk:
    """Requests and answers on one connection."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        stream.settimeout(_WAIT_SECONDS)

    def ask(self, key: int, version: int, body: bytes) -> bytes:
        """The answer behind its correlation id; _NoKafka where there is none."""
        message = struct.pack(">hhih", key, version, 1, -1) + body                      # id 1, no client id
        try:
            self._stream.sendall(struct.pack(">i", len(message)) + message)
            (size,) = struct.unpack(">i", self._read(4))
            if not 4 <= size <= _ANSWER_BYTES:
                raise _NoKafka
            return self._read(size)[4:]
        except ssl.SSLError:
            raise
        except (OSError, struct.error):
            raise _NoKafka from None

    def authenticate(self, token: bytes) -> tuple[int, str, bytes]:
        """A SaslAuthenticate: error code, the broker's words, its token."""
        answer = self.ask(_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
        try:
            code, size = struct.unpack_from(">hh", answer)
            words = answer[4: 4 + max(size, 0)].decode("utf-8", "replace")
            return code, words, answer[8 + max(size, 0):]
        except struct.error:
            raise _NoKafka from None

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self._stream.recv(size - len(found))
            if not piece:
                raise _NoKafka
            found += piece
        return found


def _offered(talk: _Talk, mechanism: str) -> tuple[int, list[str]]:
    """A SaslHandshake: error code and the mechanisms that the broker offers."""
    name = mechanism.encode()
    answer = talk.ask(_HANDSHAKE, 1, struct.pack(">h", len(name)) + name)
    try:
        code, count = struct.unpack_from(">hi", answer)
        at, offered = 6, []
        for _ in range(min(count, 20)):
            (length,) = struct.unpack_from(">h", answer, at)
            offered.append(answer[at + 2: at + 2 + length].decode("ascii", "replace"))
            at += 2 + length
    except struct.error:
        raise _NoKafka from None
    return code, offered


def _scram(talk: _Talk, user: str, secret: str, mechanism: str) -> tuple[int, str]:
    """Both rounds of SCRAM (RFC 5802) with the secret: error code and the broker's words."""
    kind = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}[mechanism]
    first = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={secrets.token_hex(16)}"
    code, why, answer = talk.authenticate(f"n,,{first}".encode())
    if code:
        return code, why
    try:
        said = dict(pair.split("=", 1) for pair in answer.decode().split(","))
        nonce, salt, iterations = said["r"], base64.b64decode(said["s"]), int(said["i"])
    except (ValueError, KeyError):
        raise _NoKafka from None
    if not 0 < iterations <= _ITERATIONS_MAX:
        raise _NoKafka
    salted = hashlib.pbkdf2_hmac(kind, secret.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", kind)
    signed = f"{first},{answer.decode()},c=biws,r={nonce}"
    signature = hmac.digest(hashlib.new(kind, client_key).digest(), signed.encode(), kind)
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature, strict=True))).decode()
    code, why, _ = talk.authenticate(f"c=biws,r={nonce},p={proof}".encode())
    return code, why


def _speaks_tls(address: tuple[str, int]) -> bool:
    """Whether a TLS handshake succeeds there, whoever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(address, _WAIT_SECONDS) as raw, context.wrap_socket(raw):
            return True
    except OSError:
        return False


def _speaks_kafka(address: tuple[str, int]) -> bool:
    """Whether a broker answers there without TLS."""
    try:
        with socket.create_connection(address, _WAIT_SECONDS) as raw:
            _Talk(raw).ask(_API_VERSIONS, 0, b"")
    except (OSError, _NoKafka):
        return False
    return True
