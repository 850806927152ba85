"""What Airflow's and Kubeflow's APIs, and a receiver of signed events, take and answer, as their documents say; strict.

Airflow: airflow-client 3.2.1 (TriggerDAGRunPostBody, DAGRunPatchBody, DAGRunResponse) for v2, its 2.10 documents for v1.
Kubeflow Pipelines: kfp-server-api 2.17 (V2beta1Run, RunService). Events: CloudEvents 1.0 in structured mode, signed as
Standard Webhooks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from typing import Any

from tests.contract_server import Answer, Asked, said

CONTRACT = {"TIDEMARK_LAUNCH_ID", "TIDEMARK_MODEL", "TIDEMARK_VERSION", "TIDEMARK_REASON", "TIDEMARK_COLUMNS",
            "TIDEMARK_DATA_URI", "TIDEMARK_OUTPUT_URI"}


class AirflowApi:
    """One DAG `retrain/churn` (a slash in a DAG's id must be quoted), its runs, and a user with a password or a token."""

    def __init__(self, api: str = "v2", *, token: str = "", user: tuple[str, str] = ("", "")) -> None:
        self.api, self.token, self.user = api, token, user
        self.runs: dict[str, dict[str, Any]] = {}
        self.tasks: list[dict[str, Any]] = []
        self.is_paused = False
        self.logins = 0

    def __call__(self, asked: Asked) -> Answer:
        if asked.path == "/auth/token":
            return self.log_in(asked)
        if not self.knows(asked):
            return said({"detail": "Invalid JWT token"}, 401)
        root = f"/api/{self.api}/dags/retrain%2Fchurn"
        if asked.path == root and asked.method == "GET":
            return said({"dag_id": "retrain/churn", "is_paused": self.is_paused})
        if asked.path == f"{root}/dagRuns":
            assert asked.method == "POST"
            return self.trigger(asked.document)
        name, _, rest = asked.path.removeprefix(f"{root}/dagRuns/").partition("/")
        if not asked.path.startswith(f"{root}/dagRuns/") or name not in self.runs:
            return said({"detail": "The DagRun was not found"}, 404)
        if rest == "taskInstances":
            assert asked.method == "GET"
            assert asked.query == {"limit": "100"}
            return said({"task_instances": self.tasks, "total_entries": len(self.tasks)})
        assert rest == ""
        if asked.method == "PATCH":
            assert set(asked.document) <= {"state", "note"}
            assert asked.document["state"] in {"queued", "success", "failed"}
            self.runs[name]["state"] = asked.document["state"]
        else:
            assert asked.method == "GET"
        return said(self.runs[name])

    def trigger(self, body: dict[str, Any]) -> Answer:
        allowed = {"dag_run_id", "logical_date", "conf", "note", "data_interval_start", "data_interval_end"}
        allowed |= {"run_after", "partition_key"} if self.api == "v2" else set()
        if set(body) - allowed or (self.api == "v2" and "logical_date" not in body):
            return said({"detail": [{"type": "extra_forbidden", "loc": ["body"], "msg": "not permitted"}]}, 422)
        assert re.fullmatch(r"[A-Za-z0-9_.~:+-]+", body["dag_run_id"])
        assert set(body["conf"]) >= CONTRACT
        assert all(isinstance(value, str) for value in body["conf"].values())
        if body["dag_run_id"] in self.runs:
            return said({"detail": f"DAGRun with dag_run_id: '{body['dag_run_id']}' already exists"}, 409)
        run = {"dag_run_id": body["dag_run_id"], "dag_id": "retrain/churn", "conf": body["conf"], "state": "queued",
               "logical_date": body.get("logical_date"), "run_type": "manual", "note": body.get("note")}
        self.runs[body["dag_run_id"]] = run
        return said(run)

    def log_in(self, asked: Asked) -> Answer:
        assert self.api == "v2", "Airflow 2 has no /auth/token"
        assert asked.method == "POST"
        assert "authorization" not in asked.headers
        self.logins += 1
        if asked.document != {"username": self.user[0], "password": self.user[1]}:
            return said({"detail": "Invalid credentials"}, 401)
        self.token = f"jwt-{self.logins}"
        return said({"access_token": self.token}, 201)

    def knows(self, asked: Asked) -> bool:
        given = asked.headers.get("authorization", "")
        if self.user[0] and self.api == "v1":
            return given == f"Basic {base64.b64encode(':'.join(self.user).encode()).decode()}"
        return not (self.token or self.user[0]) or given == f"Bearer {self.token}"


class KubeflowApi:
    """One pipeline `p-1`; its runs in the order they were stored.

    cut  : so many of the next requests to create are cut off unanswered and kept in `late`, until `store_late`
    seen : called with what has just been asked, before it is carried out
    """

    def __init__(self, *, declared: set[str] | None = None) -> None:
        self.runs: list[dict[str, Any]] = []
        self.declared = declared or {"launch_id", "model", "version", "reason", "columns", "data_uri", "output_uri"}
        self.terminated: list[str] = []
        self.cut, self.late = 0, list[dict[str, Any]]()
        self.seen: Callable[[Asked], None] = lambda _: None

    def __call__(self, asked: Asked) -> Answer:
        root = "/apis/v2beta1/runs"
        self.seen(asked)
        if asked.path == root and asked.method == "POST":
            if self.cut:
                self.cut -= 1
                self.late.append(asked.document)
                return Answer(how="close")
            return self.create(asked.document)
        if asked.path == root:
            assert asked.method == "GET"
            assert set(asked.query) <= {"namespace", "experiment_id", "page_token", "page_size", "sort_by", "filter"}
            assert asked.query["sort_by"] == "created_at asc"
            (predicate,) = json.loads(asked.query["filter"])["predicates"]
            assert predicate["operation"] == "EQUALS"
            assert predicate["key"] in {"display_name", "name"}
            found = [run for run in self.runs if run["display_name"] == predicate["string_value"]]
            found.sort(key=lambda run: str(run["created_at"]))
            return said({"runs": found, "total_size": len(found)} if found else {})
        name, _, verb = asked.path.removeprefix(f"{root}/").partition(":")
        assert (asked.method, verb) in {("GET", ""), ("POST", "terminate"), ("POST", "archive")}
        found = [run for run in self.runs if run["run_id"] == name]
        if not found:
            return said({"error": "ResourceNotFoundError", "code": 5, "message": f"Run {name} not found"}, 404)
        if verb == "terminate":
            self.terminated.append(found[0]["run_id"])
            if found[0].get("state") in {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}:
                return said({"error": "FailedPrecondition", "code": 9, "message": "run has ended"}, 400)
            found[0]["state"] = "CANCELING"
            return said({})
        if verb == "archive":
            found[0]["storage_state"] = "ARCHIVED"
            return said({})
        return said(found[0])

    def create(self, body: dict[str, Any], created_at: str = "") -> Answer:
        assert set(body) <= {"display_name", "description", "experiment_id", "pipeline_version_reference", "runtime_config",
                             "service_account", "pipeline_spec"}
        assert set(body["pipeline_version_reference"]) <= {"pipeline_id", "pipeline_version_id"}
        if body["pipeline_version_reference"]["pipeline_id"] != "p-1":
            return said({"error": "NotFound", "code": 5, "message": "Pipeline not found"}, 404)
        parameters = body["runtime_config"]["parameters"]
        if set(parameters) - self.declared:
            surplus = ", ".join(set(parameters) - self.declared)
            return said({"error": "InvalidInputError", "code": 3,
                         "message": f"parameter(s) provided are not required by pipeline: {surplus}"}, 400)
        run = {**body, "run_id": f"00000000-0000-4000-8000-{len(self.runs):012d}", "storage_state": "AVAILABLE",
               "created_at": created_at or f"2026-01-31T12:00:{len(self.runs):02d}Z"}
        self.runs.append(run)
        return said(run)

    def store_late(self, created_at: str = "") -> None:
        """Carry out the requests that were cut off."""
        while self.late:
            self.create(self.late.pop(0), created_at)


class Receiver:
    """Takes signed events, once each."""

    def __init__(self, secret: bytes = b"", path: str = "/hook") -> None:
        self.secret, self.path = secret, path
        self.events: dict[str, dict[str, Any]] = {}
        self.received = 0
        self.status = Answer(202)

    def __call__(self, asked: Asked) -> Answer:
        if asked.method == "GET":
            return self.status
        assert (asked.method, asked.path) == ("POST", self.path)
        assert asked.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
        event = asked.document
        assert set(event) == {"specversion", "type", "source", "id", "subject", "time", "datacontenttype", "data"}
        assert event["specversion"] == "1.0"
        assert event["datacontenttype"] == "application/json"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["time"])
        assert all(isinstance(event[name], str) and event[name] for name in ("type", "source", "id", "subject"))
        assert asked.headers["idempotency-key"] == event["id"]
        if self.secret:
            name, at = asked.headers["webhook-id"], asked.headers["webhook-timestamp"]
            assert name == event["id"]
            assert abs(time.time() - int(at)) < 300
            digest = hmac.new(self.secret, f"{name}.{at}.".encode() + asked.body, hashlib.sha256).digest()
            assert asked.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
        else:
            assert "webhook-signature" not in asked.headers
        self.received += 1
        self.events.setdefault(event["id"], event)
        assert self.events[event["id"]] == event, "the same id, another event"
        return Answer(202)
