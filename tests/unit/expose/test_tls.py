"""The port with a certificate: served, renewed under way, clients' certificates asked for, half files and silence borne."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from monitor.config import Tls, parse
from monitor.errors import ConfigError
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.guard import HANDSHAKES, Connection
from monitor.expose.tls import LOOK_SECONDS, Certificates
from tests.conftest import missing, wait_until

PASSWORD = "a key's own password"


def openssl(*arguments: object) -> None:
    if shutil.which("openssl") is None:
        missing("openssl", "no `openssl` on PATH; run tests/setup_components.sh")
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


class Authority:
    """A certificate authority in a folder, and what it signs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.file = folder, folder / "ca.pem"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
                folder / "ca.key", "-out", self.file, "-days", 2, "-subj", f"/CN={folder.name}")

    def signs(self, name: str, *, password: str = "") -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 and its key."""
        made, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        hidden = ["-passout", f"pass:{password}"] if password else ["-nodes"]
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *hidden, "-keyout", key, "-out",
                self.folder / "asked", "-subj", f"/CN={name}")
        (self.folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        openssl("x509", "-req", "-in", self.folder / "asked", "-CA", self.file, "-CAkey", self.folder / "ca.key", "-out", made,
                "-days", 2, "-extfile", self.folder / "names", "-set_serial", abs(hash(name)) % 10**8 + 1)
        return made, key

    def context(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """What a client that trusts this authority uses."""
        context = ssl.create_default_context(cafile=str(self.file))
        if client is not None:
            context.load_cert_chain(*client)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "first")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "second")


@pytest.fixture
def place(tmp_path, authority):
    """A folder with certificate and key, as a secret is mounted."""
    for file, name in zip(authority.signs("one"), ("tls.crt", "tls.key"), strict=True):
        shutil.copy(file, tmp_path / name)
    return tmp_path


class Clock:
    """Time that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def serve(place, clock):
    """A function that serves by the files of the folder."""
    servers = []

    def served(**more: object) -> Server:
        settings = Tls(certificate_file=str(place / "tls.crt"), key_file=str(place / "tls.key"), **more)
        server = Server(application(Exporter(1_000)), "127.0.0.1", 0, Certificates(settings, monotonic=clock))
        server.start()
        servers.append(server)
        return server

    yield served
    for server in servers:
        server.stop()


def get(server: Server, context: ssl.SSLContext) -> httpx.Response:
    return httpx.get(f"https://127.0.0.1:{server.port}/-/healthy", verify=context, trust_env=False, timeout=10)


def shown(server: Server, context: ssl.SSLContext) -> str:
    """The name in the certificate that a new connection is shown."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as plain, context.wrap_socket(
            plain, server_hostname="127.0.0.1") as wrapped:
        return dict(pair for part in wrapped.getpeercert()["subject"] for pair in part)["commonName"]


def test_https_is_served_with_strict_transport_and_no_plain_http_beside(serve, authority):
    server = serve()
    answer = get(server, authority.context())
    assert (answer.status_code, answer.headers["strict-transport-security"]) == (200, "max-age=31536000")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{server.port}/-/healthy", trust_env=False, timeout=10)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://127.0.0.1:{server.port}/-/healthy", trust_env=False, timeout=10)


def test_old_versions_of_the_protocol_are_not_spoken(serve, authority):
    server, context = serve(), authority.context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert get(server, context).status_code == 200
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        get(server, context)


def test_renewed_files_are_served_without_a_restart_and_open_connections_go_on(serve, authority, place, clock, caplog):
    server, context = serve(), authority.context()
    with httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=context, trust_env=False) as kept:
        assert kept.get("/-/healthy").status_code == 200
        assert shown(server, context) == "one"
        for file, name in zip(authority.signs("two"), ("tls.crt", "tls.key"), strict=True):
            shutil.copy(file, place / f"{name}.new")
            (place / f"{name}.new").replace(place / name)
        assert shown(server, context) == "one", "the file system is not asked at every handshake"
        clock.now += LOOK_SECONDS
        with caplog.at_level(logging.INFO):
            assert shown(server, context) == "two"
        assert "Certificate read anew." in caplog.text
        assert kept.get("/-/healthy").status_code == 200


def test_half_a_renewal_is_told_once_and_the_old_certificate_goes_on(serve, authority, place, clock, caplog):
    server, context = serve(), authority.context()
    certificate, key = authority.signs("three")
    shutil.copy(certificate, place / "tls.crt")
    for _ in range(3):
        clock.now += LOOK_SECONDS
        assert shown(server, context) == "one"
    assert caplog.text.count("Certificate not taken over.") == 1
    (place / "tls.crt").unlink()
    clock.now += LOOK_SECONDS
    assert shown(server, context) == "one"
    shutil.copy(certificate, place / "tls.crt")
    shutil.copy(key, place / "tls.key")
    clock.now += LOOK_SECONDS
    assert shown(server, context) == "three"


def test_with_a_client_authority_only_its_clients_come_in_and_another_authority_takes_over(serve, authority, other, place, clock):
    shutil.copy(authority.file, place / "clients.pem")
    server = serve(client_ca_file=str(place / "clients.pem"))
    mine, theirs = authority.context(authority.signs("client")), authority.context(other.signs("stranger"))
    assert get(server, mine).status_code == 200
    for context in (theirs, authority.context()):
        with pytest.raises(httpx.HTTPError):
            get(server, context)
    shutil.copy(other.file, place / "clients.pem")
    clock.now += LOOK_SECONDS
    assert get(server, theirs).status_code == 200
    with pytest.raises(httpx.HTTPError):
        get(server, mine)


def test_a_session_that_was_begun_before_is_not_resumed(serve, authority):
    server, context = serve(), authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def session(before: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
        with socket.create_connection(("127.0.0.1", server.port), 10) as plain, context.wrap_socket(
                plain, server_hostname="127.0.0.1", session=before) as wrapped:
            return wrapped.session, bool(wrapped.session_reused)

    first, _ = session(None)
    assert not session(first)[1]


def test_a_key_with_a_password_is_opened_by_its_file(serve, authority, place):
    certificate, key = authority.signs("hidden", password=PASSWORD)
    shutil.copy(certificate, place / "tls.crt")
    shutil.copy(key, place / "tls.key")
    (place / "password").write_text("wrong one\n")
    for options in ({}, {"key_password_file": str(place / "password")}):
        with pytest.raises(ConfigError, match=r"service\.tls: expected a certificate and its key") as refused:
            serve(**options)
        assert "wrong one" not in str(refused.value)
    (place / "password").write_text(f"{PASSWORD}\n")
    assert shown(serve(key_password_file=str(place / "password")), authority.context()) == "hidden"


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda place: (place / "tls.crt").unlink(), r"service\.tls\.certificate_file: expected a file"),
    (lambda place: (place / "tls.key").write_text("-----BEGIN NOTHING"), r"service\.tls: expected a certificate and its key"),
    (lambda place: (place / "clients.pem").write_text("nothing"), r"service\.tls\.client_ca_file: expected certificates"),
    (lambda place: (place / "password").unlink(), r"service\.tls\.key_password_file: expected a file"),
])
def test_files_that_cannot_be_used_are_one_line_at_the_start(spoil, words, place, authority, serve):
    (place / "clients.pem").write_text(authority.file.read_text())
    (place / "password").write_text("x")
    spoil(place)
    with pytest.raises(ConfigError, match=words) as refused:
        serve(client_ca_file=str(place / "clients.pem"), key_password_file=str(place / "password"))
    assert "\n" not in str(refused.value)


def test_connections_that_begin_no_handshake_make_room_and_end(serve, authority, monkeypatch):
    monkeypatch.setattr(Connection, "head_seconds", 0.5)
    server = serve()
    begun = time.monotonic()
    silent = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(2 * HANDSHAKES)]
    try:
        assert get(server, authority.context()).status_code == 200
        for one in silent:
            one.settimeout(30)
            assert one.recv(1) == b""
        assert time.monotonic() - begun < 30
    finally:
        for one in silent:
            one.close()
    wait_until(lambda: get(server, authority.context()).status_code == 200, what="the port answering")


def test_tls_and_hosts_are_read_from_the_configuration():
    config = parse("files: {paths: [a.jsonl]}\nmonitors: [{model: m, topic: t, reference: r}]\n"
                   "service: {hosts: [tidemark.example], "
                   "tls: {certificate_file: c, key_file: k, client_ca_file: a, key_password_file: p}}")
    assert config.service.tls == Tls("c", "k", "p", "a")
    with pytest.raises(ConfigError, match=r"service\.tls\.key_file: expected a value, got none"):
        parse("files: {paths: [a.jsonl]}\nmonitors: [{model: m, topic: t, reference: r}]\nservice: {tls: {certificate_file: c}}")
