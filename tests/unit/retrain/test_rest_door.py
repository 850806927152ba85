"""The door to other programs: whom it trusts, what it never shows, and what is refused before anything starts."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from monitor.config import RestServer
from monitor.errors import ConfigError, LaunchFailed
from monitor.retrain.cloudevent import signing_key
from monitor.retrain.launchers.rest import Door, read_secret
from tests.contract_server import Answer, Asked, ContractServer, said


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA and a certificate of 127.0.0.1 that it signed."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in ("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=test-ca "
                    "-addext keyUsage=critical,keyCertSign",
                    "req -newkey rsa:2048 -nodes -keyout k.key -out k.csr -subj /CN=somebody",
                    "x509 -req -in k.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out k.pem"):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


def echo(asked: Asked) -> Answer:
    return said({"path": asked.path, "query": asked.query, "headers": asked.headers})


def test_a_server_is_trusted_by_its_own_authority_and_by_no_other(certificates: Path) -> None:
    with ContractServer(echo, certificate=certificates / "k.pem", key=certificates / "k.key") as server:
        door = Door(RestServer(url=server.url, ca_file=str(certificates / "ca.pem")), path="here", what="it")
        assert door.call("GET", "/a").document()["headers"]["host"] == f"127.0.0.1:{server.port}"
        with pytest.raises(LaunchFailed, match=r"its certificate is not trusted .*; set here\.ca_file") as refused:
            Door(RestServer(url=server.url), path="here", what="it").call("GET", "/a")
        assert not refused.value.retry
        named = Door(RestServer(url=server.url.replace("127.0.0.1", "localhost"), ca_file=str(certificates / "ca.pem")),
                     path="here", what="it")
        with pytest.raises(LaunchFailed, match="certificate is not trusted"):
            named.call("GET", "/a")


def test_a_server_that_shakes_no_hands_is_given_up_in_time() -> None:
    with ContractServer(echo) as server:             # plain HTTP in place of TLS
        door = Door(RestServer(url=server.url.replace("http", "https")), path="here", what="it", seconds=0.3)
        with pytest.raises(LaunchFailed, match="no answer from") as raised:
            door.call("GET", "/a")
        assert raised.value.retry


def test_a_query_in_the_configured_url_is_kept_and_ours_is_added() -> None:
    with ContractServer(echo) as server:
        door = Door(RestServer(url=f"{server.url}/base/?key=1"), path="here", what="it")
        told = door.call("GET", "/runs", query={"name": "a b&c"}).document()
        assert (told["path"], told["query"]) == ("/base/runs", {"key": "1", "name": "a b&c"})


@pytest.mark.parametrize("kind", ["token", "password"])
def test_no_secret_is_ever_shown_even_if_the_server_says_it(tmp_path: Path, kind: str) -> None:
    secret = "s3cret-of-ours"
    (tmp_path / "secret").write_text(secret)
    basic = base64.b64encode(f"alice:{secret}".encode()).decode()

    def parrot(asked: Asked) -> Answer:
        return said({"message": f"{secret} and {asked.headers['authorization']} may not"}, 403)

    with ContractServer(parrot) as server:
        file = str(tmp_path / "secret")
        settings = (RestServer(url=server.url, token_file=file) if kind == "token" else
                    RestServer(url=server.url, username="alice", password_file=file))
        with pytest.raises(LaunchFailed, match=r"\*\*\*") as refused:
            Door(settings, path="here", what="it").call("GET", "/")
        assert secret not in str(refused.value)
        assert basic not in str(refused.value)


def test_a_secret_that_is_gone_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef")
    door = Door(RestServer(url="http://127.0.0.1:1", token_file=str(tmp_path / "token")), path="here", what="it")
    (tmp_path / "token").unlink()
    with pytest.raises(LaunchFailed, match=r"here\.token_file: expected a file with a secret") as raised:
        door.call("GET", "/")
    assert raised.value.retry


@pytest.mark.parametrize(("url", "words"), [
    ("ftp://host/", "expected a URL"), ("host:80", "expected a URL"), ("http://", "expected a URL"),
    ("http://host/a b", "expected a URL"), ("http://host/#x", "expected a URL"), ("http://host:99999/", "expected a URL"),
    ("http://host\r\nX: y/", "expected a URL"), ("http://alice:sesame@host/", "expected no name or password"), ("", "expected")])
def test_a_url_that_cannot_be_asked_is_refused_at_the_start_and_not_repeated(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"here\.url: .*{words}" if words != "expected" else "expected") as refused:
        Door(RestServer(url=url), path="here", what="it")
    assert "sesame" not in str(refused.value)


def test_credentials_that_contradict_each_other_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("x")
    file = str(tmp_path / "s")
    for settings, words in (
            (RestServer(url="http://h", token_file=file, username="a", password_file=file), "either a token or a name"),
            (RestServer(url="http://h", username="a"), r"here\.password_file: expected username and password_file together"),
            (RestServer(url="http://h", password_file=file), r"here\.username"),
            (RestServer(url="http://h", token_file="/nowhere"), r"here\.token_file: expected a file with a secret"),
            (RestServer(url="http://h", ca_file=file), "expected an https URL beside it"),
            (RestServer(url="https://h", ca_file=file), r"here\.ca_file: expected a file with certificates"),
            (RestServer(url="https://h", ca_file="/nowhere"), r"here\.ca_file: .*No such file")):
        with pytest.raises(ConfigError, match=words):
            Door(settings, path="here", what="it")


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", "Schlüssel".encode(), b"\xff\xfe", b"a\x00b"])
def test_a_file_that_holds_no_one_line_of_text_is_no_secret(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(ConfigError, match="here: expected"):
        read_secret(str(tmp_path / "s"), "here")


@pytest.mark.parametrize("text", ["short", "whsec_MDEy", "whsec_?"])
def test_a_signing_secret_that_is_too_weak_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s").write_text(text)
    with pytest.raises(ConfigError, match="here: expected"):
        signing_key(str(tmp_path / "s"), "here")
