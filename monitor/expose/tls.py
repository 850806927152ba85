"""The port's certificate, its key and whose clients are let in: from files, read anew when they change.

    certificates = Certificates(Tls(certificate_file=..., key_file=...))
    context = certificates.context             # for the server; every handshake is answered with the newest files

A certificate lives some weeks and is renewed by somebody else (cert-manager, a cron job), who replaces files and restarts
nothing. So each handshake first asks the file system, at most once in LOOK_SECONDS, whether a file is another one
than before; if so, a new context is made of all of them and takes over. Connections that are open go on. Files that
do not fit one another, as in the middle of a renewal, are told once in the log, and the old certificate goes on.

TLS 1.2 and 1.3 only, no compression, no renegotiation, no session tickets: a resumed session would let a client in
whose authority was removed. With `client_ca_file` a client without a certificate of that authority ends in the
handshake, probes and scrapes as well. Cost: three calls of the file system per handshake and second. Neighbours: `api`
serves with it.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from monitor.config import Tls
from monitor.errors import ConfigError

log = logging.getLogger("tidemark")

LOOK_SECONDS = 1.0
_PASSWORD_BYTES = 4_096

Stamp = tuple[tuple[int, int, int], ...]


class Certificates:
    """The files of `service.tls`, checked now and again whenever they change."""

    def __init__(self, settings: Tls, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """ConfigError where the files cannot be used."""
        self._settings, self._monotonic = settings, monotonic
        self._stamp = self._stamped()
        self._looked = monotonic()
        self._current = self.context = self._made()

    def look(self) -> None:
        """Take over files that are others than before; with the ones that cannot be used the old ones go on."""
        if self._monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = self._monotonic()
        try:
            stamp = self._stamped()
            if stamp == self._stamp:
                return
            self._stamp = stamp                     # noted before it is read: a defect is told once
            self._current = self._made()
        except ConfigError as error:
            log.error("Certificate not taken over.", extra={"error": str(error)})
            return
        log.info("Certificate read anew.", extra={"file": self._settings.certificate_file})

    def _stamped(self) -> Stamp:
        """What tells the files of now from those of before, also where a link was turned to another folder."""
        named = {name: getattr(self._settings, name) for name in ("certificate_file", "key_file", "client_ca_file",
                                                                  "key_password_file")}
        found = []
        for name, file in named.items():
            if file is None:
                continue
            try:
                seen = Path(file).stat()
            except OSError as error:
                raise ConfigError(f"service.tls.{name}: expected a file, got {file!r} ({error.strerror}); write it, readable by "
                                  "this process") from None
            found.append((seen.st_ino, seen.st_mtime_ns, seen.st_size))
        return tuple(found)

    def _made(self) -> ssl.SSLContext:
        tls = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_cert_chain(tls.certificate_file, tls.key_file, self._password)
        except ssl.SSLError as error:
            raise ConfigError(f"service.tls: expected a certificate and its key in PEM, got {tls.certificate_file!r} and "
                              f"{tls.key_file!r} ({_words(error)}); write the chain into the one, its key into the other, "
                              "and the key's password into key_password_file") from None
        except OSError as error:
            raise ConfigError(f"service.tls: {tls.certificate_file!r} or {tls.key_file!r} cannot be read ({error.strerror}); "
                              "let this process read them") from None
        if tls.client_ca_file is not None:
            try:
                context.load_verify_locations(tls.client_ca_file)
            except OSError as error:                # SSLError is one
                raise ConfigError(f"service.tls.client_ca_file: expected certificates in PEM, got {tls.client_ca_file!r} "
                                  f"({_words(error)}); write the authority's there") from None
            context.verify_mode = ssl.CERT_REQUIRED
        context.sni_callback = self._answer
        return context

    def _answer(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in every handshake, with or without a name in it."""
        self.look()
        connection.context = self._current

    def _password(self) -> str:
        """The key's password; "" where none is configured, so that nobody is asked at a terminal."""
        file = self._settings.key_password_file
        if file is None:
            return ""
        try:
            with open(file, "rb") as handle:
                return handle.read(_PASSWORD_BYTES).decode("utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"service.tls.key_password_file: expected a file with the key's password, got {file!r}; write it, "
                              "readable by this process") from None


def _words(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
