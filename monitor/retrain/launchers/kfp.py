"""The launcher that trains in a run of a Kubeflow pipeline, through the REST API v2beta1 of Kubeflow Pipelines 2.

    start    look for a run of this launch's display name, else POST one with the trainer's contract as parameters
    status   GET the run: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELING, CANCELED, PAUSED; end its doubles
    cancel   POST runs/{run_id}:terminate, of the run and of its doubles

Kubeflow makes a run's id itself, takes two runs of one name, and may store a run long after the request for it was cut
off. So nobody can keep it from storing a second run of a launch; what holds is this:

 1. Every request names a folder of its own for the output, `<output>/run-<8 hex digits>`. Two runs never write to one
    place, and what is judged is the folder of the run that is followed: `status` says which.
 2. One run is followed: the oldest that a start finds, or the one it made; its id is in the outbox from then on, however
    late, and with whatever time of creation, others appear.
 3. Every look lists the runs of the launch's name and terminates all others that still wait or run, then archives them.
    `retrain.strays` goes on looking for a day after the training is over, when all that still runs is terminated.

A double is known by the launch's id and output among its parameters, so that another service's run of the same name is
left alone. One that cannot be terminated is told as progress, and tried again; it holds up nothing. A run that is gone is
`unknown`, never a success.

A pipeline takes only parameters that it declares: `parameters` says which of its own gets which variable of the
contract (a value that begins with TIDEMARK_) or which fixed text. Cost: two requests per look. Neighbours: `rest` (the one
door), `retrain.launch` (who retries).
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from typing import Any, Literal
from urllib.parse import quote

from monitor.config import KfpLauncher
from monitor.errors import ConfigError, LaunchFailed, one_line
from monitor.flow import JobStatus, Launch
from monitor.retrain.launchers import trainer_environment
from monitor.retrain.launchers.rest import WORDS_MAX, Door

log = logging.getLogger(__name__)

RUNS = "/apis/v2beta1/runs"
#: Kubeflow's word -> ours. A skipped run trained nothing; a run that is being cancelled still holds its GPU.
STATES: dict[str, Literal["queued", "running", "succeeded", "failed"]] = {
    "": "queued", "RUNTIME_STATE_UNSPECIFIED": "queued", "PENDING": "queued", "PAUSED": "queued", "RUNNING": "running",
    "CANCELING": "running", "SUCCEEDED": "succeeded", "SKIPPED": "failed", "FAILED": "failed", "CANCELED": "failed"}
#: Kubeflow's words for a run that will do nothing more, and those whose run need not be terminated.
ENDED = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
ENDING = ENDED | {"CANCELING"}
FOUND_MAX = 100
_OWN_FOLDER = re.compile(r"/run-[0-9a-f]{8}$")
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
        """Start the run, or find the oldest that an earlier call of this launch started; its run_id."""
        if found := self._runs(launch):
            return str(_followed(found)["run_id"])
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
        """What Kubeflow says of the run, and where it leaves its output; `unknown` when it is gone."""
        run = self._run(launch)
        words = self._end_doubles(launch, str(run["run_id"]) if run else launch.external)
        if run is None:
            return JobStatus("unknown", f"run {launch.external or display_name(launch)} is gone: deleted, or never made")
        word = str(run.get("state") or "")
        state = STATES.get(word)
        if state is None:
            raise LaunchFailed(f"{self._door.what}: {self._door.host}: expected a state such as RUNNING or SUCCEEDED, got "
                               f"{word[:40]!r}; is this version known?", retry=True)
        detail = _detail(word, run) if state == "failed" or word == "PAUSED" else ""
        return JobStatus(state, detail, words, self._output_of(run) if _is_own(self._output_of(run), launch) else "")

    def cancel(self, launch: Launch) -> None:
        """Terminate the run and its doubles; one that has ended or is gone is no error."""
        run = self._run(launch)
        if run is not None and str(run.get("state") or "") not in ENDED:
            self._terminate(run)
        self._end_doubles(launch, str(run["run_id"]) if run else launch.external)

    def _parameters(self, launch: Launch) -> dict[str, str]:
        """What the pipeline is given: the variables of the contract, with a folder for the output that no other run has."""
        told = trainer_environment(launch)
        told["TIDEMARK_OUTPUT_URI"] = f"{_shared(launch.output_uri)}/run-{secrets.token_hex(4)}"
        return {name: told.get(value, value) for name, value in self._settings.parameters.items()}

    def _run(self, launch: Launch) -> dict[str, Any] | None:
        """The document of the run that is followed, by its id where we know it, else by its name."""
        if not launch.external:
            found = self._runs(launch)
            return _followed(found) if found else None
        reply = self._door.call("GET", f"{RUNS}/{quote(launch.external, safe='')}", expected=(200, 404), patient=True)
        if reply.status == 404:
            return None
        return reply.document() | {"run_id": launch.external}

    def _runs(self, launch: Launch) -> list[dict[str, Any]]:
        """Every run that was started for this launch, oldest first."""
        predicate = {"key": "display_name", "operation": "EQUALS", "string_value": display_name(launch)}
        query = {"filter": json.dumps({"predicates": [predicate]}), "page_size": str(FOUND_MAX), "sort_by": "created_at asc"}
        place = {"namespace": self._settings.namespace, "experiment_id": self._settings.experiment}
        query |= {name: value for name, value in place.items() if value}
        runs = self._door.call("GET", RUNS, query=query, patient=True).document().get("runs") or []
        found = [run for run in (runs if isinstance(runs, list) else []) if isinstance(run, dict)
                 and run.get("display_name") == display_name(launch) and isinstance(run.get("run_id"), str)
                 and self._is_of(run, launch)]
        # The server sorts, too; among runs of one second the id decides, so that everybody takes the same.
        return sorted(found, key=lambda run: (str(run.get("created_at") or ""), run["run_id"]))

    def _is_of(self, run: dict[str, Any], launch: Launch) -> bool:
        """Whether a run is of this launch, and not of another service's of the same id: the same model, version, episode."""
        given = _given(run)
        ids = [name for name, value in self._settings.parameters.items() if value == "TIDEMARK_LAUNCH_ID"]
        return all(given.get(name) == launch.id for name in ids) and _is_own(self._output_of(run), launch)

    def _output_of(self, run: dict[str, Any]) -> str:
        """The folder that a run was given for its output; "" where it does not say."""
        names = [name for name, value in self._settings.parameters.items() if value == "TIDEMARK_OUTPUT_URI"]
        return str(_given(run).get(names[0]) or "")

    def _end_doubles(self, launch: Launch, followed: str) -> str:
        """Terminate, then archive, every run of the launch but the one that is followed; words where that does not work."""
        try:
            doubles = [run for run in self._runs(launch) if run["run_id"] != followed]
            for run in doubles:
                if str(run.get("state") or "") not in ENDING:
                    self._terminate(run)
                    log.warning("Second run of a launch is being ended.", extra={
                        "launch": launch.id, "model": launch.model, "run": run["run_id"], "followed": followed})
                elif run.get("state") in ENDED and run.get("storage_state") != "ARCHIVED":
                    self._door.call("POST", f"{RUNS}/{quote(run['run_id'], safe='')}:archive", expected=(200, 404), patient=True)
        except LaunchFailed as error:               # the run that is followed is not to blame, nor held up
            return one_line(f"second runs of this launch cannot be looked for and ended: {error}")[:WORDS_MAX]
        return ""

    def _terminate(self, run: dict[str, Any]) -> None:
        self._door.call("POST", f"{RUNS}/{quote(str(run['run_id']), safe='')}:terminate", expected=(200, 404), patient=True)


def _followed(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several runs of one launch, oldest first, the one to follow: the oldest that was not ended before it was done."""
    return next((run for run in runs if run.get("state") not in ("CANCELED", "CANCELING", "SKIPPED")), runs[0])


def _given(run: dict[str, Any]) -> dict[str, Any]:
    settings = run.get("runtime_config")
    given = settings.get("parameters") if isinstance(settings, dict) else None
    return given if isinstance(given, dict) else {}


def _shared(output_uri: str) -> str:
    """The launch's output folder, in which each run has one of its own.

    >>> _shared("s3://c/launches/3f9c2a1b7d4e/output/run-0a1b2c3d")
    's3://c/launches/3f9c2a1b7d4e/output'
    """
    return _OWN_FOLDER.sub("", output_uri.rstrip("/"))


def _is_own(output_uri: str, launch: Launch) -> bool:
    return bool(output_uri) and _shared(output_uri) == _shared(launch.output_uri)


def display_name(launch: Launch) -> str:
    """The run's name: the model for people, the launch for us."""
    return f"tidemark {launch.model} {launch.id}"


def _detail(word: str, run: dict[str, Any]) -> str:
    error = run.get("error")
    words = str(error.get("message") or "") if isinstance(error, dict) else str(error or "")
    return one_line(": ".join(filter(None, [f"the run is {word}", " ".join(words.split())[:WORDS_MAX]])))
