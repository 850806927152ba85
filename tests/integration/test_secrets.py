"""Secrets planted in every place that takes one, and looked for in everything that good and failing runs emit.

The service runs as a process, at its most talkative log level, on the real broker with a password, with TLS, an Alertmanager
with a password and launchers with tokens that servers of the test let in or turn away. Everything that can be read from
outside is then searched: output, log, state, reports, dead letters, answers, the process' title, and what a trainer was
given. What is searched for is each secret, its base64 and its quoted form.
"""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import yaml

from tests.conftest import Process, free_port, wait_until
from tests.contract_server import Answer, ContractServer
from tests.crash import world
from tests.unit.expose.test_tls import Authority

#: Words that stand nowhere else. Alice's is the broker's own.
SECRETS = {name: f"planted-{name}-9f31c7e2" for name in (
    "token", "tls", "alert", "launcher", "signing", "grafana", "environment", "aws", "session", "url", "trainer", "kubeconfig")}
SECRETS["kafka"] = "alice-secret"
TRAINER = """
import json, os, pathlib
out = pathlib.Path(os.environ["TIDEMARK_OUTPUT_URI"])
(out / "environment.json").write_text(json.dumps(dict(os.environ)))
raise SystemExit(os.environ["GIVEN"] and "failed as it was told to")
"""


def forms(secret: str) -> set[bytes]:
    """A secret as it might be written."""
    plain = secret.encode()
    return {plain, quote(secret, safe="").encode(), *(base64.b64encode(b"x" * n + plain)[4 if n else 0:-4] for n in range(3))}


def leaks(content: bytes, *, but: tuple[str, ...] = ()) -> list[str]:
    """The names of the secrets that stand in it."""
    return [name for name, secret in SECRETS.items() if name not in but and any(form in content for form in forms(secret))]


def emitted(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is no planted one."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and "planted" not in path.relative_to(folder).parts[0]}


@pytest.fixture
def plant(tmp_path, kafka_broker):
    """A function that writes a secret's file."""
    (tmp_path / "planted").mkdir(mode=0o700)

    def written(name: str) -> str:
        path = tmp_path / "planted" / name
        path.write_text(SECRETS[name] + "\n")
        return str(path)

    return written


def configuration(folder: Path, plant, broker, topic: str, alertmanager: str, launcher: dict) -> Path:
    authority = Authority(folder / "planted" / "authority")
    certificate, key = authority.signs("service", password=SECRETS["tls"])
    path = world.configuration(folder, broker.secure_bootstrap, topic, promote=False)
    tree = yaml.safe_load(path.read_text())
    tree["service"].update(listen=f"127.0.0.1:{free_port()}", log_level="DEBUG", token_file=plant("token"), tls={
        "certificate_file": str(certificate), "key_file": str(key), "key_password_file": plant("tls")})
    tree["kafka"]["security"] = {"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "alice",
                                 "password_file": plant("kafka"), "ca_file": str(broker.ca)}
    tree["alertmanager"] = {"urls": [alertmanager], "username": "alerts", "password_file": plant("alert")}
    tree["grafana"] = {"url": "http://127.0.0.1:9", "token_file": plant("grafana")}
    tree["monitors"][0]["retrain"]["launcher"] = launcher
    path.write_text(yaml.safe_dump(tree))
    return path


def environment(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PLANTED": SECRETS["environment"], "AWS_SECRET_ACCESS_KEY": SECRETS["aws"],
            "AWS_SESSION_TOKEN": SECRETS["session"], "HTTP_PROXY": f"http://me:{SECRETS['url']}@127.0.0.1:9", "NO_PROXY": "*",
            "GIVEN_FROM_OUTSIDE": SECRETS["trainer"], "TMPDIR": str(folder)}


def answers(port: int, authority: Path) -> dict[str, bytes]:
    """What the port says, with the token, without it and with a wrong one."""
    import ssl

    context = ssl.create_default_context(cafile=str(authority))
    found = {}
    with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, trust_env=False, timeout=20) as client:
        for path in ("/metrics", "/", "/models/m", "/reports", "/-/ready", "/openapi.json", "/api/v1/monitors",
                     "/api/v1/monitors/m", "/api/v1/alarms", "/api/v1/triggers", "/api/v1/decisions", "/api/v1/audit",
                     "/nothing"):
            for headers in ({}, {"authorization": f"Bearer {SECRETS['token']}"}):
                answer = client.get(path, headers=headers)
                found[f"GET {path} {len(headers)}"] = answer.content + str(answer.headers).encode()
        for body in (b"{", b'{"model": "m", "dry_run": true}'):
            answer = client.post("/api/v1/triggers", content=body, headers={"authorization": f"Bearer {SECRETS['token']}"})
            found[f"POST {body!r}"] = answer.content + str(answer.headers).encode()
    return found


def ran(folder: Path, path: Path, broker, topic: str, until: Callable[[str], bool]) -> dict[str, bytes]:
    """Everything that a run emits until its log is as wanted: its answers, its title, its files, its log."""
    port = int(yaml.safe_load(path.read_text())["service"]["listen"].rpartition(":")[2])
    for partition, values in world.messages().items():
        broker.produce(topic, values, partition=partition)
    process = Process(world.command(path), folder / "log.txt", env=environment(folder))
    try:
        def said() -> bool:
            assert process.popen.poll() is None, (folder / "log.txt").read_text()[-2_000:]
            return until((folder / "log.txt").read_text())

        wait_until(said, 120, "the launch having come so far")
        found = answers(port, folder / "planted" / "authority" / "ca.pem")
        for name in ("cmdline", "comm"):
            found[f"/proc {name}"] = Path(f"/proc/{process.popen.pid}/{name}").read_bytes()
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(30) == 0
    finally:
        process.stop()
    return found | emitted(folder)


def test_a_run_whose_trainer_fails_tells_no_secret_and_gives_the_trainer_none(tmp_path, plant, kafka_broker, unique_name):
    topic = kafka_broker.create_topic(unique_name("topic"), world.PARTITIONS)
    with ContractServer(lambda asked: Answer(200)) as alertmanager:
        path = configuration(tmp_path, plant, kafka_broker, topic, alertmanager.url, {
            "type": "local", "command": ["{python}", "-c", TRAINER], "environment": {"GIVEN": "yes"}})
        found = ran(tmp_path, path, kafka_broker, topic, lambda log: 'state="failed"' in log)
        assert alertmanager.asked, "alerts were sent, with the password"
        sent = [value for asked in alertmanager.asked for name, value in asked.headers.items() if name.lower() == "authorization"]
        login = base64.b64encode(f"alerts:{SECRETS['alert']}".encode()).decode()
        assert f"Basic {login}" in sent
    given = json.loads(next(content for name, content in found.items() if name.endswith("environment.json")))
    assert "PLANTED" not in given
    assert not {name for name in given if name.startswith("AWS_")}
    assert {name: leaks(content) for name, content in found.items() if leaks(content)} == {}


@pytest.mark.parametrize("kind", ["airflow", "kfp", "webhook"])
def test_a_launcher_that_repeats_our_secrets_in_its_refusal_has_them_taken_out(kind, tmp_path, plant, kafka_broker, unique_name):
    topic = kafka_broker.create_topic(unique_name("topic"), world.PARTITIONS)
    echo = {"detail": f"go away, {SECRETS['launcher']}, Bearer {SECRETS['launcher']}"}
    with ContractServer(lambda asked: Answer(403, json.dumps(echo).encode(), {"content-type": "application/json"})) as server:
        options = {"airflow": {"dag": "churn", "url": server.url}, "kfp": {"pipeline": "churn", "url": server.url},
                   "webhook": {"url": f"{server.url}/hook?key={SECRETS['url']}", "secret_file": plant("signing")}}[kind]
        path = configuration(tmp_path, plant, kafka_broker, topic, server.url, {
            "type": kind, "token_file": plant("launcher"), **options})
        found = ran(tmp_path, path, kafka_broker, topic, lambda log: 'state="submitted"' in log and any(
            "/api/v2/alerts" not in asked.path for asked in server.asked))      # what is refused may be tried again for long
    (tmp_path / "tidemark.yaml").unlink()
    found = {name: content for name, content in found.items() if name != "tidemark.yaml"}       # the hook's URL is in it
    assert {name: leaks(content) for name, content in found.items() if leaks(content)} == {}


@pytest.mark.parametrize("wrong", ["kafka", "tls", "token", "launcher", "url", "kubeconfig"])
def test_a_start_that_fails_tells_no_secret(wrong, tmp_path, plant, kafka_broker, unique_name):
    """Wrong passwords, files that are no such files, passwords in addresses: one line, and nothing of it in the line."""
    launcher: dict = {"type": "airflow", "dag": "churn", "url": "http://127.0.0.1:9", "token_file": plant("launcher")}
    path = configuration(tmp_path, plant, kafka_broker, unique_name("topic"), "http://127.0.0.1:9", launcher)
    tree = yaml.safe_load(path.read_text())
    if wrong in ("kafka", "tls"):
        SECRETS[f"wrong {wrong}"] = f"planted-wrong-{wrong}-51aa"
        (tmp_path / "planted" / wrong).write_text(SECRETS[f"wrong {wrong}"])
    elif wrong in ("token", "launcher"):
        (tmp_path / "planted" / wrong).write_text(f"{SECRETS[wrong]}\nand another line")
    elif wrong == "url":
        tree["monitors"][0]["retrain"]["launcher"]["url"] = f"http://me:{SECRETS['url']}@127.0.0.1:9"
    else:
        (tmp_path / "planted" / "kubeconfig").write_text(f"users: [{{user: {{token: {SECRETS['kubeconfig']}}}]")
        tree["monitors"][0]["retrain"]["launcher"] = {"type": "kubernetes", "image": "i", "kubeconfig": str(
            tmp_path / "planted" / "kubeconfig")}
    path.write_text(yaml.safe_dump(tree))
    ended = subprocess.run([sys.executable, "-m", "monitor.cli", "run", "-c", str(path)], capture_output=True, timeout=120,
                           env=environment(tmp_path))
    assert ended.returncode in (1, 2)
    assert b"Traceback" not in ended.stderr
    found = {"stderr": ended.stderr, "stdout": ended.stdout, **emitted(tmp_path)}
    found.pop("tidemark.yaml")
    assert {name: leaks(content) for name, content in found.items() if leaks(content)} == {}
