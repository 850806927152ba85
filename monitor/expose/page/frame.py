"""What every page has: head, way home, freshness, the loud line where the service cannot be trusted, footer.

A page looks again by itself every FRESH_SECONDS: with scripts without losing the reader's place, without them by loading
anew; `live=off` in the address stops both. Neighbours: `fleet` and `model` fill it, `routes` sends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from monitor.expose.api import STALLED_SECONDS
from monitor.expose.page.html import Child, Markup, document, element
from monitor.expose.page.style import FRESH_SECONDS, SCRIPT, STYLE_NAME
from monitor.expose.page.words import instant, lasting
from monitor.expose.snapshot import Published

_ICON = ("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'%3E%3Cpath "
         "d='M2 9c4-5 6 5 10 0s6 5 10 0M2 16c4-5 6 5 10 0s6 5 10 0' fill='none' stroke='%232f6fd0' "
         "stroke-width='2.6'/%3E%3C/svg%3E")
_SIGN = element("svg", element("path", d="M1 5c3.6-5 5.4 5 9 0s5.4 5 9 0M1 11c3.6-5 5.4 5 9 0s5.4 5 9 0", fill="none",
                               stroke="currentColor", stroke_width="2"), viewBox="0 0 20 15", aria_hidden="true")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address asks for, checked by `routes`; unknown things were left out.

    state, words : which models (fleet)        column, version, segment : what is looked at (model)
    page   : from 1                            live : whether the page looks again by itself
    silent : seconds since the loop last showed something; None before the first time
    reports : whether `/reports` is served
    """

    path: str
    state: str = ""
    words: str = ""
    column: str = ""
    version: str = ""
    segment: str = ""
    page: int = 1
    live: bool = True
    silent: float | None = None
    reports: bool = False

    def link(self, **changes: str | int) -> str:
        """This address with some parameters changed; one that is empty, or page 1, is left out."""
        values: dict[str, str | int] = {
            "state": self.state, "q": self.words, "column": self.column, "version": self.version, "segment": self.segment,
            "page": self.page, "live": "" if self.live else "off"}
        kept = {name: value for name, value in (values | changes).items() if value not in ("", 1)}
        return f"{self.path}?{urlencode(kept, errors='replace')}" if kept else self.path


def page(title: str, asked: Asked, published: Published, *body: Child) -> bytes:
    """A whole page."""
    service = published.service
    seen = element("p", "As of ", instant(service.checkpoint) if service.checkpoint else "the start", " · ",
                   element("a", "pause" if asked.live else "follow", href=asked.link(live="off" if asked.live else "")),
                   class_="when")
    head = [
        element("meta", charset="utf-8"), element("title", title),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href=Markup(_ICON)), element("link", rel="stylesheet", href=f"/style.css?{STYLE_NAME}"),
        element("noscript", element("meta", http_equiv="refresh", content=2 * FRESH_SECONDS)) if asked.live else None,
    ]
    return document(lang="en", head=head, body=[
        element("a", "Skip to the content", href="#main", class_="skip"),
        element("header", element("a", _SIGN, "tidemark", href="/", class_="home"),
                element("nav", element("a", "Models", href="/", aria_current="page" if asked.path == "/" else None),
                        element("a", "Reports", href="/reports") if asked.reports else None, aria_label="Pages"), seen),
        element("main", _warning(asked, published), *body, id="main", tabindex="-1"),
        element("footer", "The same numbers for programs: ", element("a", "metrics", href="/metrics"), ", ",
                element("a", "API", href="/openapi.json"), ". Times are event time in UTC unless they say otherwise."),
        element("script", Markup(SCRIPT)) if asked.live else None,
    ])


def _warning(asked: Asked, published: Published) -> Markup | None:
    """Why what stands here may be old or nothing; None where all is well."""
    service = published.service
    if asked.silent is not None and asked.silent > STALLED_SECONDS:
        words = f"The service stands still: nothing was shown for {lasting(asked.silent)}. What stands here is that old."
    elif not service.ready:
        words = f"Not ready: {service.reason}"
    else:
        return None
    return element("p", element("span", words, class_="chip red"), role="status")


def pager(asked: Asked, number: int, size: int, what: str) -> Markup | None:
    """Links to the other pages of a long list; None where there is one."""
    pages = -(-number // size)
    if pages <= 1:
        return None
    shown = sorted({1, pages, *(place for place in range(asked.page - 2, asked.page + 3) if 1 <= place <= pages)})
    links = [element("li", element("a", place, href=asked.link(page=place), aria_current="page" if place == asked.page else None))
             for place in shown]
    return element("nav", element("ul", links, class_="choice"), aria_label=f"Pages of {what}")


def tile(words: str, value: str, *, hue: str = "", href: str = "", current: bool = False) -> Markup:
    """One number, large, with what it is; coloured where it says that something is wrong."""
    parts = (element("b", value), element("span", words))
    kind = (f"tile on {hue}" if hue else "tile") + (" word" if value[:1].isalpha() else "")
    if href:
        return element("li", element("a", *parts, class_=kind, href=href, aria_current="true" if current else None))
    return element("li", element("div", *parts, class_=kind))
