"""What can be asked for: `/`, `/models/{model}` and the style; everything else of the page is in them.

As open as `/metrics`, whose numbers it shows: nothing can be changed by it, and no address of data or of a model is in
it. Every answer has the page's own policy (`style.POLICY`): nothing is loaded from elsewhere, no script but our own.
What stands in an address is cut to what the page knows; an unknown model is a page that names those that there are.
Pages are made in a pool of threads: none of them holds up a probe or the loop. Neighbours: `expose.api` serves them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from monitor.expose.exporter import Exporter
from monitor.expose.page.fleet import fleet
from monitor.expose.page.frame import Asked, page
from monitor.expose.page.html import element
from monitor.expose.page.model import model
from monitor.expose.page.style import POLICY, STYLE
from monitor.expose.page.words import address_of
from monitor.expose.snapshot import Published
from monitor.metrics import STATES

_CHOICES = (*STATES, "faults", "cannot", "retraining")
#: Longest name or word that is looked for; what is longer names nothing that there is.
_TEXT = 200
_PAGES = 1000
_NAMED = 100


def routes(exporter: Exporter, *, reports: bool = False,
           monotonic: Callable[[], float] = time.monotonic) -> list[Route]:
    """The page's routes, for `application(..., more=routes(exporter))`.

    reports : whether `/reports` is served, too, so that alarms link theirs
    """

    def all_models(request: Request) -> Response:
        published = exporter.published
        return _html(fleet(published, _asked(request, published, monotonic, reports=reports)))

    def one_model(request: Request) -> Response:
        published, name = exporter.published, request.path_params["model"]
        asked = _asked(request, published, monotonic, reports=reports)
        made = model(published, asked, name)
        return _html(made) if made is not None else _html(_unknown(published, asked, name), 404)

    async def style(request: Request) -> Response:
        return Response(STYLE, media_type="text/css", headers={"cache-control": "public, max-age=86400"})

    return [Route("/", all_models), Route("/models/{model:path}", one_model), Route("/style.css", style)]


def _html(made: bytes, status: int = 200) -> Response:
    return Response(made, status, {"content-security-policy": POLICY}, media_type="text/html; charset=utf-8")


def _asked(request: Request, published: Published, monotonic: Callable[[], float], *,
           reports: bool) -> Asked:
    values = {name: value[:_TEXT] for name, value in request.query_params.items()}
    number = values.get("page", "1")
    return Asked(
        quote(request.scope["path"], errors="replace"),
        state=values.get("state", "") if values.get("state") in _CHOICES else "", words=values.get("q", ""),
        column=values.get("column", ""), version=values.get("version", ""), segment=values.get("segment", ""),
        page=min(max(int(number), 1), _PAGES) if number.isascii() and number.isdigit() and len(number) < 6 else 1,
        live=values.get("live") != "off", silent=None if published.at is None else monotonic() - published.at, reports=reports)


def _unknown(published: Published, asked: Asked, name: str) -> bytes:
    names = [status.model for status in published.service.monitors]
    links = [element("li", element("a", known, href=address_of(known))) for known in names[:_NAMED]]
    return page("No such model · tidemark", asked, published, element("h1", "No such model"),
                element("p", f"No monitor watches a model named “{name[:80]}”. There are:"), element("ul", links),
                element("p", element("a", "All models", href="/")))
