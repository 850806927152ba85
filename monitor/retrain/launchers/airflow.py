"""The launcher that trains in a run of an Airflow DAG, through the stable REST API: v2 of Airflow 3, v1 of Airflow 2.

    start    POST dags/{dag}/dagRuns with a dag_run_id made from the launch; 409 means that the id is taken: a run with
             our conf is this launch, another one is an error
    status   GET the run: queued, running, success, failed; of a failed run the tasks that failed, of a queued one
             whether its DAG is paused, where we may look
    cancel   PATCH the run to failed, unless it has ended

What holds: `start` of one launch, however often and from wherever, is one run, because Airflow keeps dag_run_id unique
within a DAG, for as long as the run is not deleted. A run that is gone is `unknown`, never a success. A paused DAG
takes runs and leaves them queued for ever: the detail says so, and the launch's queue timeout ends it.

The trainer finds its contract in the run's conf, under the names of its environment (`{{ dag_run.conf[...] }}`).
Airflow 3 gives a token for name and password (POST /auth/token), which is asked for anew when it is no longer taken;
Airflow 2 takes name and password with every request. Cost: one request per look, two of a run that waits or failed.
Neighbours: `rest` (the one door), `retrain.launch` (who retries).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal
from urllib.parse import quote

from monitor.config import AirflowLauncher
from monitor.errors import ConfigError, LaunchFailed, one_line
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers import trainer_environment
from monitor.retrain.launchers.rest import Door, Refused, Reply

#: Airflow's word -> ours; there are no others of a DAG run.
STATES: dict[str, Literal["queued", "running", "succeeded", "failed"]] = {
    "queued": "queued", "running": "running", "success": "succeeded", "failed": "failed"}
#: Task instances that are looked at to name those that failed.
TASKS_MAX = 100
NAMED_MAX = 5


class Airflow:
    """A `monitor.flow.Launcher` that runs a DAG for each launch."""

    name = "airflow"

    def __init__(self, settings: AirflowLauncher, *, path: str = "retrain.launcher") -> None:
        self._settings, self._path = settings, path
        self._door = Door(settings, path=path, what="Airflow")
        if not settings.dag.isprintable() or settings.dag != settings.dag.strip():
            raise ConfigError(f"{path}.dag: expected the id of a DAG, got {settings.dag!r}; mend it")
        self._dag = f"/api/{settings.api}/dags/{quote(settings.dag, safe='')}"
        self._runs = f"{self._dag}/dagRuns"
        self._token = ""                            # of Airflow 3, for name and password; forgotten at a restart

    def start(self, launch: Launch) -> str:
        """Start the run, or find the one that an earlier call of this launch started; its dag_run_id."""
        name = run_id(launch)
        body: dict[str, Any] = {"dag_run_id": name, "conf": self._conf(launch),
                                "note": f"tidemark retrains {launch.model} {launch.version}"}
        if self._settings.api == "v2":
            body["logical_date"] = None             # required, and null makes it clash with no other run
        reply = self._call("POST", self._runs, body=body, expected=(200, 201, 409))
        if reply.status == 409:
            self._require_same(name, launch)
        else:
            reply.document()                        # a login page answers 200, too
        return name

    def status(self, launch: Launch) -> JobStatus:
        """What Airflow says of the run; `unknown` when it is gone."""
        name = launch.external or run_id(launch)
        run = self._run(name)
        if run is None:
            return JobStatus("unknown", f"run {name} of DAG {self._settings.dag} is gone: deleted, or never made")
        if not _is_of(run, launch):
            return JobStatus("unknown", f"run {name} of DAG {self._settings.dag} belongs to another launch")
        state = STATES.get(str(run.get("state")))
        if state is None:
            raise LaunchFailed(f"{self._door.what}: {self._door.host}: expected a run that is {', '.join(STATES)}, got "
                               f"{str(run.get('state'))[:40]!r}; is this version of Airflow known?", retry=True)
        if state == "failed":
            return JobStatus(state, self._failed_tasks(name))
        if state == "queued":
            return JobStatus(state, self._why_queued())
        return JobStatus(state)

    def cancel(self, launch: Launch) -> None:
        """Set the run to failed, which ends its tasks; one that has ended or is gone stays as it is."""
        name = launch.external or run_id(launch)
        run = self._run(name)
        if run is None or not _is_of(run, launch) or run.get("state") in ("success", "failed"):
            return
        self._call("PATCH", f"{self._runs}/{quote(name, safe='')}", body={"state": "failed"}, expected=(200, 404), patient=True)

    def look(self) -> str:
        """What can be known of the DAG without running it, in words; LaunchFailed where it cannot be had."""
        dag = self._call("GET", self._dag).document()
        return f"DAG {self._settings.dag} can be read" + ("; it is paused, so runs would wait" if dag.get("is_paused") else "")

    def _conf(self, launch: Launch) -> dict[str, str]:
        return self._settings.environment | trainer_environment(launch)

    def _run(self, name: str) -> dict[str, Any] | None:
        """The run's document; None where there is none."""
        reply = self._call("GET", f"{self._runs}/{quote(name, safe='')}", expected=(200, 404), patient=True)
        return None if reply.status == 404 else reply.document()

    def _require_same(self, name: str, launch: Launch) -> None:
        """The id was taken: return if it is this launch's run, raise if not."""
        run = self._run(name)
        if run is None:
            raise LaunchFailed(f"Airflow: {self._door.host}: run {name} was deleted just now; try again", retry=True)
        if not _is_of(run, launch):
            raise LaunchFailed(f"Airflow: run {name} of DAG {self._settings.dag} belongs to another launch (another service "
                               "with the same model, perhaps); delete it or use another DAG")

    def _failed_tasks(self, name: str) -> str:
        """Which tasks failed, where they may be listed: it only makes the detail better."""
        try:
            reply = self._call("GET", f"{self._runs}/{quote(name, safe='')}/taskInstances", query={"limit": str(TASKS_MAX)})
            tasks = reply.document().get("task_instances")
        except LaunchFailed:
            tasks = None
        failed = [str(task.get("task_id", ""))[:80] for task in tasks or () if isinstance(task, dict)
                  and task.get("state") == "failed"]
        named = f"; task {', '.join(failed[:NAMED_MAX])}" if failed else ""
        return one_line(f"run {name} of DAG {self._settings.dag} failed{named}; its log in Airflow says why")

    def _why_queued(self) -> str:
        """What a queued run waits for, where we may know."""
        try:
            dag = self._call("GET", self._dag).document()
        except LaunchFailed:
            return ""
        return f"DAG {self._settings.dag} is paused: unpause it in Airflow" if dag.get("is_paused") is True else ""

    def _call(self, method: str, target: str, *, query: dict[str, str] | None = None, body: object = None,
              expected: Collection[int] = (200,), patient: bool = False) -> Reply:
        """One request as whoever we are to Airflow; a token that is no longer taken is renewed once."""
        login = self._door.basic() if self._settings.api == "v2" else None
        if login is None:
            return self._door.call(method, target, query=query, body=body, expected=expected, patient=patient)
        is_new = not self._token
        for _ in range(2):
            self._token = self._token or self._login(*login)
            try:
                return self._door.call(method, target, query=query, body=body, expected=expected, patient=patient,
                                       authorization=f"Bearer {self._token}")
            except Refused as error:
                if error.status != 401:
                    raise
                self._token, refusal = "", error
                if is_new:
                    break
                is_new = True
        raise refusal

    def _login(self, username: str, password: str) -> str:
        """A token for name and password, from Airflow 3's auth manager."""
        reply = self._door.call("POST", "/auth/token", body={"username": username, "password": password},
                                authorization="", expected=(200, 201))
        token = reply.document().get("access_token")
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise LaunchFailed(f"{reply.host}: expected an access_token from /auth/token, got none; does its auth manager give "
                               f"tokens for passwords? else use {self._path}.token_file", retry=True)
        return token


def run_id(launch: Launch) -> str:
    """The run's id: the model for people, the launch for us; letters that Airflow allows by default."""
    return f"tidemark__{launch.model}__{launch.id}"


def _is_of(run: dict[str, Any], launch: Launch) -> bool:
    """Whether a run was started for this launch, and not by another service for one of the same id."""
    conf = run.get("conf")
    return isinstance(conf, dict) and (conf.get("TIDEMARK_LAUNCH_ID"), conf.get("TIDEMARK_OUTPUT_URI")) == (
        launch.id, launch.output_uri)
