"""HTML and SVG as nested calls: a text is escaped because it is a text, markup is a type of its own.

`element("p", "a < b", name="x")` gives `<p name="x">a &lt; b</p>`. Whatever comes from data or configuration reaches a
page through here as `str` and is escaped with its control characters replaced; only what `element` itself made is
`Markup`. So there is no place at which escaping could be forgotten. Cost: about 1 us an element.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

__all__ = ["Child", "Markup", "document", "element", "join", "plain"]

#: Elements that have no end tag in HTML.
_VOID = frozenset(("meta", "link", "input", "br"))
#: Characters that no HTML document may hold, and those that turn the direction of what follows.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Finished markup; `str + Markup` is a text again."""

    __slots__ = ()


Child = Markup | str | int | Iterable["Child"] | None


def plain(text: str) -> str:
    """A text as it may stand in a document: what cannot be seen, or cannot be encoded, is one replacement character."""
    return _UNSEEN.sub("�", text)


def join(children: Child) -> Markup:
    """Children one after the other; None is nothing."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(escape(plain(children)))
    if isinstance(children, int):
        return Markup(str(children))
    return Markup("".join(map(join, children)))


def element(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """One element. Attributes: `_` in a name is `-`, a last `_` is left out; True is the name alone; None, False: absent.

    >>> element("a", "x & y", href="/?q=\\"", class_="link")
    '<a href="/?q=&quot;" class="link">x &amp; y</a>'
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(plain(str(value)))}"')
    parts.append(">")
    if name in _VOID:
        return Markup("".join(parts))
    return Markup(f"{''.join(parts)}{join(children)}</{name}>")


def document(*, lang: str, head: Child, body: Child) -> bytes:
    """A whole page, UTF-8."""
    return ("<!doctype html>\n" + element("html", element("head", head), element("body", body), lang=lang)).encode()
