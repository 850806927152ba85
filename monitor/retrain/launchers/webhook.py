"""The launcher that asks whatever takes a CloudEvent to train: a webhook of one's own, a broker, Knative's JobSink.

    start    one signed event `dev.tidemark.retraining.requested`, whose id is the launch's: sent again it is the same
             request, and a receiver that answers 409 to one it has is understood
    status   what the trainer left in the output folder: result.json is its last step, so it is done; besides, where
             `status_url` is set, what that says
    cancel   one event `dev.tidemark.retraining.cancelled` with an id of its own, unless `cancel_event` is off

Without a status_url nobody tells us of a failure: the launch then ends at its deadline. `status_url` may hold
{launch_id}; it answers either JSON {"state": "queued" | "running" | "succeeded" | "failed", "detail", "progress"}, or as a
JobSink does, by the status alone: 200 complete, 202 not yet, 400 with the header `Reason: Failed`, 404 unknown.

A result.json that is not whole when it is first seen is looked at again before the trainer is judged by it: not every
store writes in one step. A JobSink starts a Job for every event, so `cancel_event` must be off there and the Job have its
own activeDeadlineSeconds. Cost: one request and one look into the output folder per poll. Neighbours: `rest`,
`retrain.cloudevent` (the event and its signature), `retrain.challenger` (who reads the result).
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

import msgspec

from monitor.config import RestServer, WebhookLauncher
from monitor.documents import read_json
from monitor.errors import ConfigError, LaunchFailed, one_line
from monitor.flow import JobStatus, Launch
from monitor.retrain import challenger
from monitor.retrain.cloudevent import Sender
from monitor.retrain.launchers import trainer_environment
from monitor.retrain.launchers.rest import WORDS_MAX, Door, checked_url, said

REQUESTED, CANCELLED = "dev.tidemark.retraining.requested", "dev.tidemark.retraining.cancelled"
PLACE = "{launch_id}"


class Told(msgspec.Struct, frozen=True):
    """What a status_url answers; further keys are let through."""

    state: Literal["queued", "running", "succeeded", "failed"]
    detail: str = ""
    progress: str = ""


class Webhook:
    """A `monitor.flow.Launcher` that sends an event for each launch."""

    name = "webhook"

    def __init__(self, settings: WebhookLauncher, *, path: str = "retrain.launcher") -> None:
        self._settings, self._path = settings, path
        self._sender = Sender(settings, secret_file=settings.secret_file, source=settings.source, path=path, what="webhook")
        if settings.status_url is not None:
            url = checked_url(settings.status_url, f"{path}.status_url")
            has_secret = settings.token_file is not None or settings.username is not None
            if has_secret and url.netloc != self._sender.door.host:
                raise ConfigError(f"{path}.status_url: expected the host of url, because the credentials are sent to both, got "
                                  "another; use one host")
        self._broken: dict[str, str] = {}           # launch id -> the defect of result.json when it was last seen

    def start(self, launch: Launch) -> str:
        """Send the request; the event's id."""
        self._sender.send(REQUESTED, launch.id, launch.model, _at(launch), {
            "launch_id": launch.id, "model": launch.model, "version": launch.version,
            "deadline_hours": self._settings.deadline_hours,
            "environment": self._settings.environment | trainer_environment(launch)})
        return launch.id

    def status(self, launch: Launch) -> JobStatus:
        """What the trainer left, and what `status_url` says."""
        has_result = self._has_result(launch)
        if has_result:
            return JobStatus("succeeded")
        if self._settings.status_url is None:
            return JobStatus("running")
        return self._told(launch, self._settings.status_url)

    def cancel(self, launch: Launch) -> None:
        """Send the cancellation, where the receiver knows one; that it knows no such request is no error."""
        if self._settings.cancel_event:
            self._sender.send(CANCELLED, f"{launch.id}.cancel", launch.model, _at(launch),
                              {"launch_id": launch.id, "model": launch.model, "version": launch.version},
                              also=(404, 410), patient=True)

    def _has_result(self, launch: Launch) -> bool:
        """Whether the trainer has taken its last step. A defect that stays over two looks is its author's, not the disk's."""
        try:
            found = challenger.read_result(launch) is not None
        except challenger.ContractBroken as error:
            before = self._broken.get(launch.id)
            self._broken = {launch.id: str(error)} | {key: value for key, value in self._broken.items() if key != launch.id}
            return before == str(error)
        self._broken.pop(launch.id, None)
        return found

    def _told(self, launch: Launch, url: str) -> JobStatus:
        """What the status URL answers: JSON of ours, or a status alone."""
        place = url.replace(PLACE, quote(launch.id, safe=""))
        try:
            door = Door(_at_url(self._settings, place), path=self._path, what="status_url")
        except ConfigError as error:                # a file that was there at the start
            raise LaunchFailed(str(error), retry=True) from None
        reply = door.call("GET", "", expected=(200, 202, 400, 404), patient=True)
        reason = reply.headers.get("reason", "")
        if reply.status == 404:
            return JobStatus("unknown", f"{reply.host} knows no launch {launch.id}")
        if reply.status == 400:
            if reason.lower() == "failed":
                return JobStatus("failed", f"{reply.host} says that the training failed")
            raise LaunchFailed(f"{reply.host} refuses (400): {said(reply.content)[:WORDS_MAX]}; check {self._path}.status_url",
                               retry=True)
        if not reply.content.strip():
            return JobStatus("succeeded" if reply.status == 200 else "running")
        try:
            told = read_json(reply.content, Told)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LaunchFailed(f"{reply.host}: expected JSON with a state of queued, running, succeeded or failed, got: "
                               f"{one_line(str(error))[:WORDS_MAX]}; mend the receiver", retry=True) from None
        return JobStatus(told.state, _line(told.detail), _line(told.progress))


def _at_url(server: RestServer, url: str) -> RestServer:
    """The same credentials for another URL of the same host."""
    return RestServer(url=url, token_file=server.token_file, username=server.username, password_file=server.password_file,
                      ca_file=server.ca_file)


def _at(launch: Launch) -> float:
    """When it was asked for: of the step that led here, so that a repeated event is the same."""
    return next((at for state, at in launch.steps if state == "submitted"), launch.steps[-1][1] if launch.steps else 0.0)


def _line(text: str) -> str:
    return one_line(" ".join(text.split()))[:WORDS_MAX]
