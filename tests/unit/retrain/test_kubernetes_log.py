"""The end of a pod's log as progress: which pod, which line, how often; and that nothing which goes wrong is an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor import config
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers import kubernetes_client
from monitor.retrain.launchers.kubernetes import KubernetesJobs
from monitor.retrain.launchers.kubernetes_client import Cluster
from monitor.retrain.launchers.kubernetes_log import FORBIDDEN_SECONDS, LOOK_SECONDS, LogTails, last_line
from tests.conftest import package
from tests.contract_server import Answer, Asked, ContractServer, said

package("kubernetes")

LAUNCH = Launch("3f9c2a1b7d4e", "churn", "7", 1, "kubernetes", "running", "{}", (("running", 1.0),),
                external="Job/ml/churn-3f9c2a1b7d4e")


class Api:
    """One running Job with two pods, as the API server and a kubelet behind it answer."""

    def __init__(self) -> None:
        self.log, self.read = Answer(200, b"epoch 1 of 9\n", {"Content-Type": "text/plain"}), list[str]()
        self.pods = [pod("churn-1", "1"), pod("churn-0", "0")]

    def __call__(self, asked: Asked) -> Answer:
        assert asked.method == "GET"
        if asked.path == "/apis/batch/v1/namespaces/ml/jobs/churn-3f9c2a1b7d4e":
            return said({"metadata": {"labels": {"tidemark.dev/launch": LAUNCH.id}}, "spec": {}, "status": {
                "active": 1, "ready": 1}})
        if asked.path == "/api/v1/namespaces/ml/pods":
            return said({"items": self.pods})
        assert asked.path.startswith("/api/v1/namespaces/ml/pods/"), asked.path
        assert asked.path.endswith("/log"), asked.path
        assert asked.query == {"container": "trainer", "tailLines": "20", "limitBytes": "16384"}
        self.read.append(asked.path.split("/")[-2])
        return self.log


def pod(name: str, index: str, phase: str = "Running", container: str = "trainer") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"batch.kubernetes.io/job-completion-index": index}},
            "spec": {"containers": [{"name": container}]}, "status": {"phase": phase}}


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def kubeconfig(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    # A request that is given up on a busy machine would be taken for a log that cannot be had.
    monkeypatch.setattr(kubernetes_client, "TIMEOUT", (30, 60))
    with ContractServer(api) as server:
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "it", "users": [{"name": "it", "user": {"token": "t"}}],
            "clusters": [{"name": "it", "cluster": {"server": server.url}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}]}))
        yield str(path)


def test_a_running_jobs_last_line_is_its_progress_read_once_a_minute_of_its_first_pod(api: Api, kubeconfig: str) -> None:
    jobs = KubernetesJobs(config.KubernetesLauncher(image="i", namespace="ml", kubeconfig=kubeconfig), capture_uri="s3://t/c")
    now = [0.0]
    jobs._logs = LogTails(clock=lambda: now[0])
    assert [jobs.status(LAUNCH) for _ in range(3)] == [JobStatus("running", progress="epoch 1 of 9")] * 3
    assert api.read == ["churn-0"]
    api.log = Answer(200, "\x1b[2Kepoch 2 of 9 \u2588\u2588\r\r\n\n".encode())
    now[0] = LOOK_SECONDS
    assert jobs.status(LAUNCH).progress == "[2Kepoch 2 of 9 \u2588\u2588"
    api.log = Answer(200, b"")
    now[0] *= 2
    assert jobs.status(LAUNCH).progress == "[2Kepoch 2 of 9 \u2588\u2588", "a log that was rotated shows what was known"
    assert len(api.read) == 3


def test_without_the_right_nobody_is_asked_again_for_an_hour(api: Api, kubeconfig: str) -> None:
    api.log = said({"kind": "Status", "message": 'pods "churn-0" is forbidden: User "system:serviceaccount:tidemark:tidemark" '
                                                 'cannot get resource "pods/log"', "code": 403}, 403)
    now = [0.0]
    tails, cluster = LogTails(clock=lambda: now[0]), Cluster(kubeconfig, namespace="ml", path="retrain.launcher")
    for minute in range(61):
        now[0] = minute * LOOK_SECONDS
        assert tails.line(cluster, LAUNCH.id, api.pods) == ""
    assert (len(api.read), now[0]) == (2, FORBIDDEN_SECONDS)


@pytest.mark.parametrize("answer", [
    said({"message": "container trainer is waiting to start: ContainerCreating", "code": 400}, 400),
    said({"message": 'pods "churn-0" not found', "details": {"name": "churn-0"}, "code": 404}, 404),
    said({"message": "Get https://10.0.0.1:10250/containerLogs: dial tcp: i/o timeout"}, 500),
    Answer(how="close"), Answer(200, b"\xff\xfe\x00", {"Content-Type": "text/plain"})])
def test_what_goes_wrong_with_a_log_is_no_error_and_no_line(api: Api, kubeconfig: str, answer: Answer) -> None:
    api.log = answer
    line = LogTails(clock=lambda: 0.0).line(Cluster(kubeconfig, namespace="ml", path="p"), LAUNCH.id, api.pods)
    assert line in ("", "\ufffd\ufffd")
    assert api.read == ["churn-0"]


def test_a_pod_that_does_not_run_is_not_asked_and_a_single_container_may_have_any_name(api: Api, kubeconfig: str) -> None:
    tails, cluster = LogTails(clock=lambda: 0.0), Cluster(kubeconfig, namespace="ml", path="p")
    assert tails.line(cluster, "a", [pod("churn-0", "0", "Pending"), pod("churn-1", "1", "Succeeded")]) == ""
    assert api.read == []
    other = pod("x", "nonsense", container="pytorch")
    with pytest.MonkeyPatch.context() as patch:
        asked: list[str] = []
        patch.setattr(Cluster, "log", lambda self, name, container, **_: asked.append(container) or b"")
        tails.line(cluster, "b", [other])
    assert asked == ["pytorch"]


@pytest.mark.parametrize(("log", "line"), [(b"", ""), (b"\n \n", ""), (b"a\nb", "b"), (b"a\rb\r", "b"), (b"x" * 999, "x" * 200)])
def test_the_last_line_is_the_last_that_says_something(log: bytes, line: str) -> None:
    assert last_line(log) == line
