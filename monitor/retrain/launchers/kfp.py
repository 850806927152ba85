"""The launcher that trains in a run of a Kubeflow pipeline, through the REST API v2beta1 of Kubeflow Pipelines 2.

    start    look for a run of this launch's display name, else POST one with the trainer's contract as parameters
    status   GET the run: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELING, CANCELED, PAUSED
    cancel   POST runs/{run_id}:terminate

Kubeflow takes no id from its caller, so a start that is repeated after a crash finds its run by its display name, which
holds the launch's id, and its parameters. What holds: started twice, one after the other, it is one run. What does not:
if a POST was cut off and the server takes longer to store the run than the 5 seconds until we ask again, there are two;
the first by creation time is then the one that is followed. A run that is gone is `unknown`, never a success.

A pipeline takes only parameters that it declares: `parameters` says which of its own gets which variable of the
contract (a value that begins with TIDEMARK_) or which fixed text. Cost: one request per look. Neighbours: `rest` (the one
door), `retrain.launch` (who retries).
"""

from __future__ import annotations

import json
from typing import Any, Literal
from urllib.parse import quote

from monitor.config import KfpLauncher
from monitor.errors import ConfigError, LaunchFailed, one_line
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers import trainer_environment
from monitor.retrain.launchers.rest import WORDS_MAX, Door

RUNS = "/apis/v2beta1/runs"
#: Kubeflow's word -> ours. A skipped run trained nothing; a run that is being cancelled still holds its GPU.
STATES: dict[str, Literal["queued", "running", "succeeded", "failed"]] = {
    "": "queued", "RUNTIME_STATE_UNSPECIFIED": "queued", "PENDING": "queued", "PAUSED": "queued", "RUNNING": "running",
    "CANCELING": "running", "SUCCEEDED": "succeeded", "SKIPPED": "failed", "FAILED": "failed", "CANCELED": "failed"}
FOUND_MAX = 10
#: What a launch is told apart by; each must reach the pipeline.
NEEDED = ("TIDEMARK_LAUNCH_ID", "TIDEMARK_OUTPUT_URI")


class KubeflowPipelines:
    """A `monitor.flow.Launcher` that runs a pipeline for each launch."""

    name = "kfp"

    def __init__(self, settings: KfpLauncher, *, path: str = "retrain.launcher") -> None:
        self._settings, self._path = settings, path
        self._door = Door(settings, path=path, what="Kubeflow Pipelines")
        nobody = Launch("0" * 12, "m", "0", 0, self.name, "submitted", "{}", ())
        known = trainer_environment(nobody)
        for name, value in settings.parameters.items():
            if value.startswith("TIDEMARK_") and value not in known:
                raise ConfigError(f"{path}.parameters.{name}: expected one of {', '.join(known)} or a fixed text, got "
                                  f"{value!r}; mend it")
        for variable in NEEDED:
            if variable not in settings.parameters.values():
                raise ConfigError(f"{path}.parameters: expected a parameter that gets {variable}, got none; add one, and "
                                  "declare it in the pipeline")

    def start(self, launch: Launch) -> str:
        """Start the run, or find the one that an earlier call of this launch started; its run_id."""
        if (found := self._found(launch)) is not None:
            return str(found["run_id"])
        version = {"pipeline_id": self._settings.pipeline, "pipeline_version_id": self._settings.pipeline_version}
        body: dict[str, Any] = {
            "display_name": display_name(launch), "description": f"tidemark retrains {launch.model} {launch.version}",
            "experiment_id": self._settings.experiment, "service_account": self._settings.service_account,
            "pipeline_version_reference": {name: value for name, value in version.items() if value},
            "runtime_config": {"parameters": self._parameters(launch)}}
        run = self._door.call("POST", RUNS, body={name: value for name, value in body.items() if value}).document()
        if not isinstance(run.get("run_id"), str) or not run["run_id"]:
            raise LaunchFailed(f"{self._door.what}: {self._door.host}: expected a run with its run_id, got none; does something "
                               "else answer in its place?", retry=True)
        return str(run["run_id"])

    def status(self, launch: Launch) -> JobStatus:
        """What Kubeflow says of the run; `unknown` when it is gone."""
        run = self._run(launch)
        if run is None:
            return JobStatus("unknown", f"run {launch.external or display_name(launch)} is gone: deleted, or never made")
        word = str(run.get("state") or "")
        state = STATES.get(word)
        if state is None:
            raise LaunchFailed(f"{self._door.what}: {self._door.host}: expected a state such as RUNNING or SUCCEEDED, got "
                               f"{word[:40]!r}; is this version known?", retry=True)
        return JobStatus(state, _detail(word, run) if state == "failed" or word == "PAUSED" else "")

    def cancel(self, launch: Launch) -> None:
        """Terminate the run; one that has ended or is gone is no error."""
        run = self._run(launch)
        if run is None or STATES.get(str(run.get("state") or "")) in ("succeeded", "failed"):
            return
        self._door.call("POST", f"{RUNS}/{quote(str(run['run_id']), safe='')}:terminate", expected=(200, 404), patient=True)

    def _parameters(self, launch: Launch) -> dict[str, str]:
        told = trainer_environment(launch)
        return {name: told.get(value, value) for name, value in self._settings.parameters.items()}

    def _run(self, launch: Launch) -> dict[str, Any] | None:
        """The run's document, by its id where we know it, else by its name."""
        if not launch.external:
            return self._found(launch)
        reply = self._door.call("GET", f"{RUNS}/{quote(launch.external, safe='')}", expected=(200, 404), patient=True)
        if reply.status == 404:
            return None
        return reply.document() | {"run_id": launch.external}

    def _found(self, launch: Launch) -> dict[str, Any] | None:
        """The first run that was started for this launch; None where there is none."""
        predicate = {"key": "display_name", "operation": "EQUALS", "string_value": display_name(launch)}
        query = {"filter": json.dumps({"predicates": [predicate]}), "page_size": str(FOUND_MAX), "sort_by": "created_at asc"}
        place = {"namespace": self._settings.namespace, "experiment_id": self._settings.experiment}
        query |= {name: value for name, value in place.items() if value}
        runs = self._door.call("GET", RUNS, query=query, patient=True).document().get("runs") or []
        wanted = self._parameters(launch)
        for run in runs if isinstance(runs, list) else []:
            if isinstance(run, dict) and run.get("display_name") == display_name(launch) and isinstance(run.get("run_id"), str):
                config = run.get("runtime_config")
                given = config.get("parameters") if isinstance(config, dict) else None
                # Another service may have a launch of the same id: of the same model, version and episode.
                if isinstance(given, dict) and all(given.get(name) == wanted[name] for name in self._identity()):
                    return run
        return None

    def _identity(self) -> list[str]:
        return [name for name, value in self._settings.parameters.items() if value in NEEDED]


def display_name(launch: Launch) -> str:
    """The run's name: the model for people, the launch for us."""
    return f"tidemark {launch.model} {launch.id}"


def _detail(word: str, run: dict[str, Any]) -> str:
    error = run.get("error")
    words = str(error.get("message") or "") if isinstance(error, dict) else str(error or "")
    return one_line(": ".join(filter(None, [f"the run is {word}", " ".join(words.split())[:WORDS_MAX]])))
