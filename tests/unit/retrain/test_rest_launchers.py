"""The launchers behind REST APIs against strict contract servers, and everything that such a server may do wrong."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from monitor import config
from monitor.errors import ConfigError, LaunchFailed
from monitor.flow import JobStatus, Launch, Launcher
from monitor.retrain.launchers import launcher_for
from monitor.retrain.launchers.airflow import Airflow
from monitor.retrain.launchers.kfp import KubeflowPipelines
from monitor.retrain.launchers.rest import REPLY_BYTES
from monitor.retrain.launchers.webhook import Webhook
from tests.contract_server import Answer, ContractServer, closed_port, said
from tests.unit.retrain.rest_servers import CONTRACT, AirflowApi, KubeflowApi, Receiver

LAUNCH = Launch("3f9c2a1b7d4e", "churn", "7", 1, "airflow", "submitted", '{"columns":["age"]}',
                (("approved", 1.0), ("submitted", 1_700_000_000.0)), columns="[]", data_uri="s3://t/data", output_uri="s3://t/out")


def settings_of(kind: str, url: str, folder: Path | None = None) -> Any:
    return {"airflow": lambda: config.AirflowLauncher(url=url, dag="retrain/churn"),
            "kfp": lambda: config.KfpLauncher(url=url, pipeline="p-1"),
            "webhook": lambda: config.WebhookLauncher(url=f"{url}/hook", status_url=f"{url}/state/{{launch_id}}")}[kind]()


def api_of(kind: str) -> Callable[..., Answer]:
    return {"airflow": AirflowApi, "kfp": KubeflowApi, "webhook": Receiver}[kind]()


def door_of(launcher: Any) -> Any:
    return launcher._sender.door if isinstance(launcher, Webhook) else launcher._door


# -- Airflow ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("api", ["v2", "v1"])
def test_a_dag_run_is_started_once_followed_and_ended(api: Any) -> None:
    airflow = AirflowApi(api)
    with ContractServer(airflow) as server:
        launcher = Airflow(config.AirflowLauncher(url=server.url, dag="retrain/churn", api=api, environment={"EPOCHS": "3"}))
        assert launcher.start(LAUNCH) == launcher.start(LAUNCH) == "tidemark__churn__3f9c2a1b7d4e"
        ((name, run),) = airflow.runs.items()
        assert run["conf"]["TIDEMARK_OUTPUT_URI"] == "s3://t/out"
        assert set(run["conf"]) == {*CONTRACT, "EPOCHS"}
        launch = replace(LAUNCH, external=name)
        assert launcher.status(launch) == JobStatus("queued")
        run["state"] = "running"
        assert launcher.status(launch) == JobStatus("running")
        run["state"] = "success"
        assert launcher.status(launch) == JobStatus("succeeded")
        launcher.cancel(launch)
        assert run["state"] == "success", "a run that has ended stays as it ended"
        run["state"] = "running"
        launcher.cancel(launch)
        assert run["state"] == "failed"
        airflow.tasks = [{"task_id": "prepare", "state": "success"}, {"task_id": "train", "state": "failed"}]
        assert launcher.status(launch) == JobStatus("failed", "run tidemark__churn__3f9c2a1b7d4e of DAG retrain/churn failed; "
                                                              "task train; its log in Airflow says why")
        del airflow.runs[name]
        assert launcher.status(launch).state == "unknown"
        launcher.cancel(launch)


def test_a_paused_dag_is_named_as_what_a_queued_run_waits_for() -> None:
    airflow = AirflowApi()
    with ContractServer(airflow) as server:
        launcher = Airflow(config.AirflowLauncher(url=f"{server.url}/", dag="retrain/churn"))
        launcher.start(LAUNCH)
        airflow.is_paused = True
        assert launcher.status(LAUNCH) == JobStatus("queued", "DAG retrain/churn is paused: unpause it in Airflow")
        assert launcher.look() == "DAG retrain/churn can be read; it is paused, so runs would wait"


def test_a_run_of_another_service_with_the_same_id_is_refused_and_left_alone() -> None:
    airflow = AirflowApi()
    with ContractServer(airflow) as server:
        launcher = Airflow(config.AirflowLauncher(url=server.url, dag="retrain/churn"))
        launcher.start(replace(LAUNCH, output_uri="s3://staging/out"))
        with pytest.raises(LaunchFailed, match="belongs to another launch") as refused:
            launcher.start(LAUNCH)
        assert not refused.value.retry
        assert launcher.status(LAUNCH).state == "unknown"
        launcher.cancel(LAUNCH)
        assert next(iter(airflow.runs.values()))["state"] == "queued"


def test_airflow_3_gives_a_token_for_a_password_and_a_new_one_when_it_has_expired(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    airflow = AirflowApi(user=("alice", "open sesame"))
    with ContractServer(airflow) as server:
        launcher = Airflow(config.AirflowLauncher(url=server.url, dag="retrain/churn", username="alice",
                                                  password_file=str(tmp_path / "password")))
        launcher.start(LAUNCH)
        launcher.status(LAUNCH)
        assert airflow.logins == 1
        airflow.token = "expired"
        assert launcher.status(LAUNCH).state == "queued"
        assert airflow.logins == 2
        (tmp_path / "password").write_text("wrong")
        airflow.token = "expired again"
        with pytest.raises(LaunchFailed, match=r"does not accept the credentials \(401\).*renew .*password_file") as refused:
            launcher.status(LAUNCH)
        assert refused.value.retry
        assert airflow.logins == 3


def test_airflow_2_takes_name_and_password_with_every_request(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("sesame")
    with ContractServer(AirflowApi("v1", user=("alice", "sesame"))) as server:
        launcher = Airflow(config.AirflowLauncher(url=server.url, dag="retrain/churn", api="v1", username="alice",
                                                  password_file=str(tmp_path / "password")))
        assert launcher.start(LAUNCH)


def test_a_token_is_read_anew_for_every_request(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old-token-of-ours")
    airflow = AirflowApi(token="new-token-of-ours")
    with ContractServer(airflow) as server:
        launcher = Airflow(config.AirflowLauncher(url=server.url, dag="retrain/churn", token_file=str(tmp_path / "token")))
        with pytest.raises(LaunchFailed, match="401") as refused:
            launcher.start(LAUNCH)
        assert refused.value.retry
        (tmp_path / "token").write_text("new-token-of-ours\n")
        assert launcher.start(LAUNCH)


def test_a_run_in_a_state_that_airflow_does_not_have_is_asked_about_again() -> None:
    airflow = AirflowApi()
    with ContractServer(airflow) as server:
        launcher = Airflow(config.AirflowLauncher(url=server.url, dag="retrain/churn"))
        name = launcher.start(LAUNCH)
        airflow.runs[name]["state"] = "upstream_failed"
        with pytest.raises(LaunchFailed, match="got 'upstream_failed'") as raised:
            launcher.status(LAUNCH)
        assert raised.value.retry


# -- Kubeflow Pipelines ----------------------------------------------------------------------------------------------

def output_of(run: dict[str, Any], name: str = "output_uri") -> str:
    return str(run["runtime_config"]["parameters"][name])


def test_a_pipeline_run_is_started_once_followed_and_terminated() -> None:
    kubeflow = KubeflowApi()
    with ContractServer(kubeflow) as server:
        launcher = KubeflowPipelines(config.KfpLauncher(url=server.url, pipeline="p-1", pipeline_version="v-2", experiment="e",
                                                        namespace="ml", service_account="trainer"))
        name = launcher.start(LAUNCH)
        assert launcher.start(LAUNCH) == name == kubeflow.runs[0]["run_id"]
        (run,) = kubeflow.runs
        assert run["display_name"] == "tidemark churn 3f9c2a1b7d4e"
        assert (run["experiment_id"], run["service_account"]) == ("e", "trainer")
        assert run["pipeline_version_reference"] == {"pipeline_id": "p-1", "pipeline_version_id": "v-2"}
        assert run["runtime_config"]["parameters"] == {
            "launch_id": LAUNCH.id, "model": "churn", "version": "7", "reason": LAUNCH.reason, "columns": "[]",
            "data_uri": "s3://t/data", "output_uri": output_of(run)}
        assert re.fullmatch(r"s3://t/out/run-[0-9a-f]{8}", output_of(run))
        launch = replace(LAUNCH, external=name)
        assert launcher.status(launch).output_uri == output_of(run)
        for word, state in ((None, "queued"), ("PENDING", "queued"), ("PAUSED", "queued"), ("RUNNING", "running"),
                            ("CANCELING", "running"), ("SUCCEEDED", "succeeded"), ("SKIPPED", "failed"), ("FAILED", "failed"),
                            ("CANCELED", "failed")):
            run["state"] = word
            assert (word, launcher.status(launch).state) == (word, state)
        launcher.cancel(launch)
        assert kubeflow.terminated == []
        run["state"] = "RUNNING"
        launcher.cancel(launch)
        assert kubeflow.terminated == [name]
        run |= {"state": "FAILED", "error": {"code": 13, "message": "step train\nfailed"}}
        assert launcher.status(launch) == JobStatus("failed", "the run is FAILED: step train failed", "", output_of(run))
        kubeflow.runs.clear()
        assert launcher.status(launch).state == "unknown"
        launcher.cancel(launch)


def test_a_pipeline_gets_the_parameters_that_it_declares() -> None:
    kubeflow = KubeflowApi(declared={"id", "out", "epochs"})
    with ContractServer(kubeflow) as server:
        named = {"id": "TIDEMARK_LAUNCH_ID", "out": "TIDEMARK_OUTPUT_URI", "epochs": "3"}
        launcher = KubeflowPipelines(config.KfpLauncher(url=server.url, pipeline="p-1", parameters=named))
        launcher.start(LAUNCH)
        assert kubeflow.runs[0]["runtime_config"]["parameters"] == {
            "id": LAUNCH.id, "out": output_of(kubeflow.runs[0], "out"), "epochs": "3"}
        wrong = KubeflowPipelines(config.KfpLauncher(url=server.url, pipeline="p-1"))
        with pytest.raises(LaunchFailed, match=r"refuses \(400\): parameter\(s\) provided are not required") as refused:
            wrong.start(LAUNCH)
        assert not refused.value.retry


def test_a_pipeline_run_of_another_service_with_the_same_name_is_not_taken_for_ours() -> None:
    kubeflow = KubeflowApi()
    with ContractServer(kubeflow) as server:
        launcher = KubeflowPipelines(config.KfpLauncher(url=server.url, pipeline="p-1"))
        other = launcher.start(replace(LAUNCH, output_uri="s3://staging/out"))
        assert launcher.start(LAUNCH) != other
        assert len(kubeflow.runs) == 2


@pytest.mark.parametrize(("parameters", "words"), [
    ({"id": "TIDEMARK_LAUNCH"}, "parameters.id: expected one of TIDEMARK_LAUNCH_ID"),
    ({"id": "TIDEMARK_LAUNCH_ID"}, "expected a parameter that gets TIDEMARK_OUTPUT_URI")])
def test_parameters_that_cannot_tell_launches_apart_are_refused_at_the_start(parameters: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        KubeflowPipelines(config.KfpLauncher(url="http://127.0.0.1:1", pipeline="p-1", parameters=parameters))


# -- webhook ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("secret", ["0123456789abcdef0123456789abcdef", "whsec_MDEyMzQ1Njc4OWFiY2RlZg=="])
def test_a_signed_event_asks_for_the_training_once_and_another_cancels_it(tmp_path: Path, secret: str) -> None:
    (tmp_path / "secret").write_text(f"{secret}\n")
    receiver = Receiver(b"0123456789abcdef" if secret.startswith("whsec_") else secret.encode())
    launch = replace(LAUNCH, output_uri=str(tmp_path / "out"))
    with ContractServer(receiver) as server:
        launcher = Webhook(config.WebhookLauncher(url=f"{server.url}/hook", secret_file=str(tmp_path / "secret")))
        assert launcher.start(launch) == launcher.start(launch) == launch.id
        assert (len(receiver.events), receiver.received) == (1, 2)
        event = receiver.events[launch.id]
        assert (event["type"], event["source"], event["subject"]) == ("dev.tidemark.retraining.requested", "tidemark", "churn")
        assert event["time"] == "2023-11-14T22:13:20Z"
        assert set(event["data"]["environment"]) == CONTRACT
        launcher.cancel(launch)
        assert receiver.events[f"{launch.id}.cancel"]["type"] == "dev.tidemark.retraining.cancelled"


def test_the_trainers_result_ends_the_launch_and_one_in_the_middle_of_being_written_does_not(tmp_path: Path) -> None:
    launch = replace(LAUNCH, output_uri=str(tmp_path))
    launcher = Webhook(config.WebhookLauncher(url="http://127.0.0.1:1/hook"))
    assert launcher.status(launch) == JobStatus("running")
    result = json.dumps({"model_uri": "m", "reference_uri": "r"})
    (tmp_path / "result.json").write_text(result[:9])
    assert launcher.status(launch) == JobStatus("running")
    (tmp_path / "result.json").write_text(result)
    assert launcher.status(launch) == JobStatus("succeeded")
    (tmp_path / "result.json").write_text("{}")
    assert [launcher.status(launch).state for _ in range(2)] == ["running", "succeeded"], "a defect that stays is for the judge"


@pytest.mark.parametrize(("answer", "expected"), [
    (said({"state": "queued"}), JobStatus("queued")),
    (said({"state": "running", "progress": "epoch 3\nof 9", "more": 1}), JobStatus("running", "", "epoch 3 of 9")),
    (said({"state": "failed", "detail": "out of memory"}), JobStatus("failed", "out of memory")),
    (said({"state": "succeeded"}), JobStatus("succeeded")),
    (Answer(202), JobStatus("running")), (Answer(200), JobStatus("succeeded"))])
def test_a_status_url_tells_how_the_training_stands(answer: Answer, expected: JobStatus, tmp_path: Path) -> None:
    receiver = Receiver()
    receiver.status = answer
    with ContractServer(receiver) as server:
        launcher = Webhook(settings_of("webhook", server.url))
        assert launcher.status(replace(LAUNCH, output_uri=str(tmp_path))) == expected
        assert server.asked[-1].path == f"/state/{LAUNCH.id}"


def test_a_job_sinks_answers_are_understood(tmp_path: Path) -> None:
    receiver, launch = Receiver(path="/ml/retrain"), replace(LAUNCH, output_uri=str(tmp_path))
    with ContractServer(receiver) as server:
        launcher = Webhook(config.WebhookLauncher(
            url=f"{server.url}/ml/retrain", cancel_event=False,
            status_url=f"{server.url}/namespaces/ml/name/retrain/sources/tidemark/ids/{{launch_id}}"))
        launcher.start(launch)
        receiver.status = Answer(400, headers={"Reason": "Failed"})
        assert launcher.status(launch).state == "failed"
        receiver.status = Answer(404)
        assert launcher.status(launch).state == "unknown"
        receiver.status = Answer(400, b"Malformed uri")
        with pytest.raises(LaunchFailed, match=r"check .*status_url") as raised:
            launcher.status(launch)
        assert raised.value.retry
        launcher.cancel(launch)
        assert receiver.received == 1, "a JobSink would start a Job for a cancellation"


def test_a_receiver_that_has_the_event_already_has_taken_it() -> None:
    with ContractServer(Receiver()) as server:
        launcher = Webhook(settings_of("webhook", server.url))
        server.misbehave(said({"error": "duplicate"}, 409))
        assert launcher.start(LAUNCH) == LAUNCH.id


def test_an_event_too_large_to_be_forwarded_is_refused_before_it_is_sent() -> None:
    with ContractServer(Receiver()) as server:
        launcher = Webhook(settings_of("webhook", server.url))
        with pytest.raises(LaunchFailed, match="at most 65,536 bytes") as raised:
            launcher.start(replace(LAUNCH, columns="x" * 70_000))
        assert not raised.value.retry
        assert server.asked == []


# -- what any of them may meet ---------------------------------------------------------------------------------------

PAGE = Answer(200, b"<html>log in</html>", {"Content-Type": "text/html"})
HUGE = Answer(200, b"[" + b" " * REPLY_BYTES + b"]", {"Content-Type": "application/json"})
#: what the server does -> (how starting ends, how following ends): True may be tried again, False never
WRONG: dict[str, tuple[Answer, bool, bool, str]] = {
    "401": (said({"detail": "expired"}, 401), True, True, r"does not accept the credentials \(401\): expired; renew"),
    "403": (said({"detail": "Forbidden"}, 403), False, True, r"does not allow this \(403\): Forbidden; give"),
    "422": (said({"detail": [{"msg": "bad"}]}, 422), False, True, r"refuses \(422\): .*bad"),
    "429": (said({"message": "slow down"}, 429, Retry_After="77"), True, True, r"asked too often \(429\)"),
    "500": (said({"message": "boom"}, 500), True, True, r"fails \(500\): boom; see its log"),
    "503": (Answer(503, b"<html>maintenance</html>"), True, True, r"fails \(503\): an HTML page"),
    "hang": (Answer(how="hang"), True, True, "no whole reply within"),
    "drip": (Answer(200, b"x" * 5000, how="drip"), True, True, "no whole reply within"),
    "close": (Answer(how="close"), True, True, "no answer from 127.0.0.1"),
    "cut": (Answer(200, b'{"run_id": "1", "state": "RUNNING"}', how="cut"), True, True, "cut in the middle"),
    "huge": (HUGE, True, True, "more than 4 MiB"),
    "redirect": (Answer(302, headers={"Location": "https://sso.example/login?state=abc"}), False, True,
                 r"redirect \(302\) to https://sso.example, which is not followed.*url"),
}


@pytest.mark.parametrize("kind", ["airflow", "kfp", "webhook"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_server_does_wrong_is_one_line_that_says_whether_it_is_tried_again(
        kind: str, wrong: str, tmp_path: Path) -> None:
    answer, start_again, follow_again, words = WRONG[wrong]
    launch = replace(LAUNCH, output_uri=str(tmp_path))
    with ContractServer(api_of(kind)) as server:
        launcher: Launcher = launcher_for(settings_of(kind, server.url))
        launcher.start(launch)
        door_of(launcher).seconds = 0.3
        calls: list[tuple[Callable[[Launch], object], bool]] = [(launcher.start, start_again), (launcher.status, follow_again)]
        for call, again in calls:
            if kind == "webhook" and call == launcher.status and wrong in ("hang", "drip"):
                continue                            # the same door, whose seconds are its own there
            if kind == "kfp" and call == launcher.start:
                again = follow_again if wrong != "redirect" else True   # a start begins with a look
            server.misbehave(answer)
            begun = time.monotonic()
            with pytest.raises(LaunchFailed, match=words) as raised:
                call(replace(launch, external="") if call == launcher.start else launch)
            assert time.monotonic() - begun < 3
            assert raised.value.retry is again
            assert "\n" not in str(raised.value)
            assert "state=abc" not in str(raised.value)
            if wrong == "429":
                assert raised.value.after == 77.0
            server.bad.clear()
        assert server.complaints == []


@pytest.mark.parametrize("kind", ["airflow", "kfp"])
def test_a_page_in_place_of_a_document_is_never_a_started_job(kind: str) -> None:
    with ContractServer(api_of(kind)) as server:
        launcher = launcher_for(settings_of(kind, server.url))
        for call in (launcher.start, launcher.status):
            server.misbehave(PAGE)
            with pytest.raises(LaunchFailed, match=r"expected a JSON object, got 19 bytes of text/html; .*login page") as raised:
                call(LAUNCH)
            assert raised.value.retry


@pytest.mark.parametrize("kind", ["airflow", "kfp", "webhook"])
def test_what_does_not_exist_is_refused_for_good_when_it_is_started(kind: str) -> None:
    with ContractServer(api_of(kind)) as server:
        launcher = launcher_for(settings_of(kind, server.url))
        server.misbehave(*([said({})] if kind == "kfp" else []), said({"detail": "no such thing"}, 404))
        with pytest.raises(LaunchFailed, match=r"refuses \(404\): no such thing; check retrain\.launcher") as raised:
            launcher.start(LAUNCH)
        assert not raised.value.retry


@pytest.mark.parametrize("kind", ["airflow", "kfp", "webhook"])
def test_a_server_that_is_down_is_tried_again_and_named_by_its_host_alone(kind: str) -> None:
    port = closed_port()
    launcher = launcher_for(settings_of(kind, f"http://127.0.0.1:{port}/secret-path"))
    with pytest.raises(LaunchFailed, match=rf"no answer from 127\.0\.0\.1:{port} \(Connection refused\)") as raised:
        launcher.start(LAUNCH)
    assert raised.value.retry
    assert "secret-path" not in str(raised.value)


def test_a_date_in_retry_after_is_understood() -> None:
    with ContractServer(AirflowApi()) as server:
        launcher = Airflow(config.AirflowLauncher(url=server.url, dag="retrain/churn"))
        for value, low, high in ((formatdate(time.time() + 60, usegmt=True), 50, 61), ("soon", 0, 0), ("-5", 0, 0),
                                 ("Wed, 99 Foo", 0, 0)):
            server.misbehave(said({}, 503, Retry_After=value))
            with pytest.raises(LaunchFailed) as raised:
                launcher.start(LAUNCH)
            assert low <= raised.value.after <= high
