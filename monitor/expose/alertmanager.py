"""The receiver: an alert that Alertmanager routes here asks for a retraining of its model.

    POST /api/v1/alertmanager     Alertmanager's webhook message, version 4; only with the token

So that whoever routes alerts decides when a model is retrained: a silence, an inhibition or a mute time holds a
retraining back, because such an alert never arrives. An alert asks when it fires, carries `tidemark_action="retrain"`
(the rules set it where they were rendered with `--retrain-label`, the service's own alerts by
`alertmanager.retrain_label`) and names a model that is watched; whatever else comes is answered with why it does not.

Asking is all that it does: the trigger answers as it answers an alarm, with its cooldown, budget and one launch in
flight. The key is fingerprint and start of the alert, which are the same in every repetition and from every member of
a cluster; the trigger launches once per key, for ever. An alert that was told no may ask again when it is repeated.

The answer comes at once, 200 with one line per alert. 503 (not ready, too many wait) makes Alertmanager try again;
every 4xx says that trying again is no use, and Alertmanager does not. Neighbours: `inbox` holds what is asked, `trigger`
decides, `api` guards and bounds the body.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from monitor.alert_words import ACTION_LABEL, ACTION_RETRAIN
from monitor.decisions import ALERTMANAGER
from monitor.documents import read_json
from monitor.errors import one_line
from monitor.expose import views
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Asked, Inbox
from monitor.expose.snapshot import Published

PATH = "/api/v1/alertmanager"
#: A message of some 500 alerts: more than there can be models, and Alertmanager's `max_alerts` bounds it, too.
BODY_BYTES = 1_048_576
#: The version of the message that every Alertmanager since 0.6 sends.
VERSION = "4"
#: Characters of an alert's name and summary that are kept as the reason.
WHY_MAX = 300


class Alert(msgspec.Struct, rename="camel"):
    """One alert of a message; fields that are not named here are ignored."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z]{1,64}\Z")]
    starts_at: Annotated[str, msgspec.Meta(pattern=r"\A[0-9TZtz:.+-]{20,40}\Z")]
    annotations: dict[str, str] = {}

    @property
    def key(self) -> str:
        """The same in every repetition of this alert, and of no other."""
        return f"{self.fingerprint}@{self.starts_at}"


class Message(msgspec.Struct, rename="camel"):
    """What Alertmanager posts; fields that are not named here are ignored."""

    version: str
    alerts: list[Alert]
    truncated_alerts: Annotated[int, msgspec.Meta(ge=0)] = 0


class Noted(msgspec.Struct):
    """What became of one alert: noted for the trigger, or why not."""

    alertname: str
    model: str
    fingerprint: str
    noted: bool
    words: str


class Received(msgspec.Struct):
    """What became of a message: its alerts in their order.

    truncated : alerts that Alertmanager left out of it (`max_alerts` of the webhook); they asked for nothing
    """

    alerts: list[Noted]
    truncated: int = 0


def routes(exporter: Exporter, inbox: Inbox | None) -> list[Route]:
    """The receiver's route; without an inbox (no token is configured) nothing may be changed."""

    async def receive(request: Request) -> Response:
        if inbox is None:
            return _fault("changing something needs a token: set service.token_file", 403)
        body = await request.body()                 # bounded in bytes and in time by the guard
        try:
            message = read_json(body, Message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _fault(f"body: expected Alertmanager's webhook message, got: {one_line(str(error))[:200]}; "
                          "point a webhook_config at this address, with no template between", 400)
        if message.version != VERSION:
            return _fault(f"version: expected {VERSION!r}, got {message.version[:40]!r}; use an Alertmanager that sends it", 400)
        published = exporter.published
        if not published.service.ready:
            return _fault(f"not ready: {published.service.reason}", 503)
        received = noted(message, published, inbox)
        return _fault("too many requests wait for the loop; try again", 503) if received is None else _json(received)

    return [Route(PATH, receive, methods=["POST"])]


def noted(message: Message, published: Published, inbox: Inbox) -> Received | None:
    """Note what asks for a launch, at most one per model; None where the inbox is full, and the message should come again."""
    launched = {launch.key: launch.id for launch in published.service.launches if launch.key}
    known = [status.model for status in published.service.monitors]
    asking: set[str] = set()
    answers = []
    for alert in message.alerts:
        name, model = alert.labels.get("alertname", ""), alert.labels.get("model", "")
        words, asks = _judged(alert, model, known, launched, asking)
        if asks:
            asking.add(model)
            why = one_line(f"{name}: {alert.annotations.get('summary', '')}".rstrip(": "))[:WHY_MAX]
            if not inbox.put(Asked("fire", model=model, by=ALERTMANAGER, why=why, key=alert.key, at=time.time())):
                return None
        answers.append(Noted(name, model, alert.fingerprint, asks, words))
    return Received(answers, message.truncated_alerts)


def _judged(alert: Alert, model: str, known: Sequence[str], launched: dict[str, str], asking: set[str]) -> tuple[str, bool]:
    """Whether one alert asks for a launch, and the words for it or against it."""
    if alert.status != "firing":
        return "it is resolved, and only one that fires asks for a launch", False
    if alert.labels.get(ACTION_LABEL) != ACTION_RETRAIN:
        return f'it has no label {ACTION_LABEL}="{ACTION_RETRAIN}"; render the rules with --retrain-label', False
    if model not in known:
        return f"no model of this name is watched: expected one of {', '.join(known[:10])}", False
    if alert.key in launched:
        return f"launch {launched[alert.key]} was decided for it before", False
    if model in asking:
        return "another alert of this model in the same message asks already", False
    return "the trigger answers it; see /api/v1/decisions", True


def _fault(error: str, status: int) -> Response:
    return _json(views.Fault(error, []), status)


def _json(answer: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")
