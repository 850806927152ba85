"""`/reports` and `/reports/{alarm}`: the report that alerts and dashboards link to, at every moment of its life.

    /reports                        the alarms that are known, the newest first
    /reports/NAME                   our half, around evidently's; `latest` as the episode leads to the newest one
    /reports/NAME/evidently         evidently's document alone, which the page above shows in a frame

A link never leads to nothing: while evidently's half is being made the page says so and looks again; where there is none
it says why; where the files are gone, what the service still knows of the alarm is shown.

Guards. The name in the address is never a path: `report_shelf` turns it into a file name that cannot leave its folder, and
an alarm that is neither known nor on the shelf is a 404. Reports hold sampled rows, so where the API asks for a token
they do, too (`monitor.expose.api`, as a bearer or as a password). Each page says by its Content-Security-Policy what it may
load: ours nothing but its own frame, evidently's its inline scripts, with no origin, storage, form or connection, since
category values of strangers stand in it. Neighbours: `report_page` words it, `report_maker` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from monitor.expose.exporter import Exporter
from monitor.expose.report_facts import ENDING, Facts, episode_of, report_name, told
from monitor.expose.report_page import instant, listing, nothing, page
from monitor.expose.report_shelf import Shelf
from monitor.expose.snapshot import ServiceSnapshot

#: Of our own pages: nothing but inline style, and the frame below them.
OWN_POLICY = ("default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
              "frame-ancestors 'none'")
#: Of evidently's document: it runs what it brought, and reaches nobody.
THEIR_POLICY = ("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
                "connect-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts")
#: Names that a page of an unknown report offers, and that the list has.
_KNOWN, _LISTED = 10, 200


def routes(exporter: Exporter) -> list[Route]:
    """What to give to `api.application(..., more=...)`. Endpoints are plain functions: files are read in a thread of a pool."""

    def index(request: Request) -> Response:
        service = exporter.published.service
        return _page(listing((_address(name), name, words) for name, words in _known(service)[:_LISTED]))

    def one(request: Request) -> Response:
        service, name = exporter.published.service, request.path_params["alarm"]
        if name.endswith("-latest"):
            newest = _newest(service, name)
            if newest is not None:
                return RedirectResponse(_address(newest), 302)
        facts = _facts(service, name)
        if facts is None:
            return _absent(service, name)
        frame = ""
        if facts.state == "made" and _shelf(service, facts.name, ".html") is not None:
            frame = (f'<iframe title="Report of evidently" sandbox="allow-scripts" loading="lazy" '
                     f'src="{_address(facts.name)}/evidently"></iframe>')
        return _page(page(facts, service.launches, frame=frame))

    def theirs(request: Request) -> Response:
        service, name = exporter.published.service, request.path_params["alarm"]
        found = _shelf(service, name, ".html")
        try:
            content = None if found is None else found.read_bytes()
        except OSError:                             # it made room for a newer one just now
            content = None
        if content is None:
            return _absent(service, name)
        return HTMLResponse(content, headers={"content-security-policy": THEIR_POLICY, "x-frame-options": "SAMEORIGIN"})

    return [Route("/reports", index), Route("/reports/{alarm:path}/evidently", theirs), Route("/reports/{alarm:path}", one)]


def _facts(service: ServiceSnapshot, name: str) -> Facts | None:
    """Our half with what is known by now: the file's, else what the service knows of the alarm; None for no such alarm."""
    changes = episode_of(service.alarms, name)
    kept = None if service.reports is None else Shelf(service.reports, 1).facts(name)
    if kept is not None and kept.name == name:
        return kept
    alarm = told(changes) or (changes[-1] if changes else None)
    if alarm is None:
        return None
    return Facts(name, alarm, changes, why="nothing is kept of this alarm but what is said above")


def _shelf(service: ServiceSnapshot, name: str, suffix: str) -> Path | None:
    """The path of a file of a report, where it is there and the report is of that name."""
    if service.reports is None:
        return None
    shelf = Shelf(service.reports, 1)
    path, facts = shelf.path(name, suffix), shelf.facts(name)
    return path if facts is not None and facts.name == name and path.is_file() else None


def _known(service: ServiceSnapshot) -> list[tuple[str, str]]:
    """(name, in words) of every report that can be asked for, the newest first."""
    found: dict[str, tuple[float, str]] = {}
    shelf = () if service.reports is None else Shelf(service.reports, 1).all()
    kept = [(facts.name, facts.changes[-1]) for facts in shelf]
    for name, alarm in (*kept, *((report_name(one), one) for one in service.alarms)):
        words = ", ".join(mover.column for mover in alarm.movers[:3]) or alarm.words
        found[name] = alarm.at, f"{alarm.state} {instant(alarm.at)} {words}"
    return [(name, words) for name, (_, words) in sorted(found.items(), key=lambda item: -item[1][0])]


def _newest(service: ServiceSnapshot, name: str) -> str | None:
    """The newest report of the model, version and kind that a name without an episode asks for."""
    head = name.removesuffix("latest")
    numbers = [(int(other.removeprefix(head)), other) for other, _ in _known(service)
               if other.startswith(head) and other.removeprefix(head).isascii() and other.removeprefix(head).isdigit()]
    return max(numbers)[1] if numbers else None


def _absent(service: ServiceSnapshot, name: str) -> Response:
    why = ("The service has not loaded its state yet." if not service.ready else
           "No such alarm is known: it may be older than what is kept (`reports.keep`), or the address is not whole."
           if ENDING.search(name) else
           "Expected MODEL-VERSION-WORD-EPISODE, the word being drift, quality, wrong_type or volume.")
    known: Sequence[tuple[str, str]] = [(_address(other), other) for other, _ in _known(service)[:_KNOWN]]
    return _page(nothing(name, why, known), 404 if service.ready else 503)


def _address(name: str) -> str:
    return f"/reports/{quote(name)}"


def _page(html: str, status: int = 200) -> Response:
    return HTMLResponse(html.encode("utf-8", "replace"), status, {"content-security-policy": OWN_POLICY})
