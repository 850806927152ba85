"""What people ask of the trigger over HTTP: fire, approve, reject, reset; and the trail of what they asked.

    POST /api/v1/triggers                        {"model", "why", "key", "force", "dry_run"}: ask for a launch
    POST /api/v1/triggers/{launch}/approve       let a proposed launch go on; {"why"} may come with it
    POST /api/v1/triggers/{launch}/reject        end it
    POST /api/v1/monitors/{model}/breaker/reset  the launches that brought nothing no longer count
    POST /api/v1/monitors/{model}/rollback       take the model back to {"version"}, or to the one before
    GET  /api/v1/decisions, /api/v1/audit        every answer of the trigger; what people and programs asked

Everything that changes something needs the token and is only noted here: the loop does it, stores it, and replies. So
200 means that it is done and survives a kill; 409 that it was not done, with the reason; 202 that the loop is busy and
will do it. A request for a launch carries a key, its own or one that is given back: sent again with the same key, after
a connection that broke say, it is the same request and never a second launch.

Neighbours: `inbox` holds what was asked, `monitor.pipeline` answers, `api` serves these routes beside its own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from monitor.decisions import Decision, Entry, Limit
from monitor.documents import read_json
from monitor.expose import views
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import ACTIONS, Asked, Inbox, Reply

Act = Callable[[Request, "Body"], Response]
#: Who asks where only the token is known.
TOKEN = "token"


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What comes with a request; all of it may be left out of an answer to a proposal.

    model : whose retraining is asked for             why     : words for the audit trail, at most 1,000 characters
    key   : the same key launches once for ever       force   : set the limits of the policy aside
    dry_run : only say what the answer would be       by      : who asks, where the token does not tell people apart
    version : of a roll-back: where to; empty for the version before
    """

    model: str = ""
    why: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    key: Annotated[str, msgspec.Meta(max_length=200)] = ""
    by: Annotated[str, msgspec.Meta(max_length=100)] = ""
    force: bool = False
    dry_run: bool = False
    version: Annotated[str, msgspec.Meta(max_length=63)] = ""


class Answer(msgspec.Struct):
    """What came of a request.

    done   : whether it was done (or would be, in a dry run); null where the loop has not come to it yet
    reason : of a `no` to a request for a launch          until : event time from which the answer may be another
    limits : how each limit of the model's policy stands
    """

    action: str
    done: bool | None
    words: str
    launch: str = ""
    model: str = ""
    state: str = ""
    key: str = ""
    reason: str = ""
    until: float | None = None
    limits: tuple[Limit, ...] = ()


class Decisions(msgspec.Struct):
    """The trigger's answers to severe alarms and to who asked, newest first."""

    decisions: list[Decision]


class Audit(msgspec.Struct):
    """What people and programs asked, newest first."""

    audit: list[Entry]


def routes(exporter: Exporter, inbox: Inbox | None) -> list[Route]:
    """The routes above; without an inbox (no token is configured) nothing may be changed."""

    # Bodies are awaited on the event loop, answers waited for in its threads: none can hold up a probe.
    def fire(request: Request, body: Body) -> Response:
        if not body.model:
            return _fault("model: expected a model, got none; name one", 400, _models(exporter))
        if fault := _unknown(exporter, body.model):
            return fault
        key = body.key or secrets.token_hex(8)
        return _ask(inbox, Asked("fire", model=body.model, by=_by(body), why=body.why, key=key, at=time.time(), force=body.force,
                                 dry_run=body.dry_run))

    def answered(request: Request, body: Body) -> Response:
        launch, action = request.path_params["launch"], request.path_params["action"]
        launches = {known.id: known.state for known in exporter.published.service.launches}
        if action not in ACTIONS:
            return _fault(f"no answer named {action[:40]!r}", 404, list(ACTIONS))
        if launch not in launches:
            return _fault(f"no launch {launch[:40]!r}", 404, [name for name, state in launches.items() if state == "proposed"])
        if launches[launch] != "proposed":
            return _fault(f"launch {launch} is {launches[launch].replace('_', ' ')}, no longer proposed", 409)
        return _ask(inbox, Asked(ACTIONS[action], launch, by=_by(body), why=body.why, at=time.time()))

    def reset(request: Request, body: Body) -> Response:
        model = request.path_params["model"]
        if fault := _unknown(exporter, model):
            return fault
        return _ask(inbox, Asked("reset", model=model, by=_by(body), why=body.why, at=time.time()))

    def roll_back(request: Request, body: Body) -> Response:
        model = request.path_params["model"]
        if fault := _unknown(exporter, model):
            return fault
        return _ask(inbox, Asked("rollback", model=model, by=_by(body), why=body.why, at=time.time(), version=body.version))

    def decisions(request: Request) -> Response:
        return _json(Decisions(list(reversed(exporter.published.service.decided))))

    def audit(request: Request) -> Response:
        return _json(Audit(list(reversed(exporter.published.service.audit))))

    return [
        Route("/api/v1/triggers", _guarded(inbox, fire), methods=["POST"]),
        Route("/api/v1/triggers/{launch}/{action}", _guarded(inbox, answered), methods=["POST"]),
        Route("/api/v1/monitors/{model}/breaker/reset", _guarded(inbox, reset), methods=["POST"]),
        Route("/api/v1/monitors/{model}/rollback", _guarded(inbox, roll_back), methods=["POST"]),
        Route("/api/v1/decisions", decisions), Route("/api/v1/audit", audit),
    ]


#: path -> (summary, type of the answer) of what is only read, for the OpenAPI document.
READ: dict[str, tuple[str, type]] = {
    "/api/v1/decisions": ("The trigger's answers to severe alarms and to who asked, newest first.", Decisions),
    "/api/v1/audit": ("What people and programs asked of the trigger, newest first.", Audit),
}
#: path -> summary of what changes something.
CHANGED: dict[str, str] = {
    "/api/v1/triggers": "Ask for a launch; with the same key again it is the same request.",
    "/api/v1/triggers/{launch}/{action}": "Approve or reject a proposed launch.",
    "/api/v1/monitors/{model}/breaker/reset": "Let the breaker close: the launches that brought nothing no longer count.",
    "/api/v1/monitors/{model}/rollback": "Take the model back to an earlier version, by the promotion that is configured.",
}


def _guarded(inbox: Inbox | None, act: Act) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that reads the body and then acts in a thread; refused where nothing may be changed."""

    async def endpoint(request: Request) -> Response:
        if inbox is None:
            return _fault("changing something needs a token: set service.token_file", 403)
        raw = await request.body()
        try:
            body = read_json(raw, Body) if raw.strip() else Body()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _fault(f"body: expected JSON with {', '.join(Body.__struct_fields__)}, got: {error}", 400)
        return await run_in_threadpool(act, request, body)

    return endpoint


def _ask(inbox: Inbox | None, asked: Asked) -> Response:
    """Note it for the loop and wait for what comes of it."""
    assert inbox is not None
    reply = inbox.ask(asked)
    if reply is False:
        return _fault("too many answers wait for the loop; try again", 503)
    if not isinstance(reply, Reply):
        return _json(Answer(asked.action, None, "noted; the loop is busy and will act on it", asked.launch, asked.model,
                            key=asked.key), 202)
    answer = Answer(asked.action, reply.taken, reply.words, reply.launch or asked.launch, asked.model, reply.state, asked.key,
                    reply.reason, reply.until or None, reply.limits)
    return _json(answer, 200 if reply.taken or asked.dry_run else 409)


def _by(body: Body) -> str:
    """Who asks: the holder of the token, with the name that was given."""
    return f"{TOKEN}:{body.by}" if body.by else TOKEN


def _models(exporter: Exporter) -> list[str]:
    return [status.model for status in exporter.published.service.monitors]


def _unknown(exporter: Exporter, model: str) -> Response | None:
    """The answer to a request about a model that is not watched, or not yet."""
    service = exporter.published.service
    if not service.ready:
        return _fault(f"not ready: {service.reason}", 503)
    known = _models(exporter)
    return None if model in known else _fault(f"no monitor of a model named {model[:80]!r}", 404, known)


def _fault(error: str, status: int, known: Sequence[str] = ()) -> Response:
    return _json(views.Fault(error, list(known)), status)


def _json(answer: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")
