"""A short id of the way a request took through the scoring code, to be logged with the event and watched by tidemark.

    route = Route()
    features = store.get(user) or route.passed("feature-store-miss", defaults)
    with route.node("model-b"):                     # noted as `model-b!` when it raises
        answer = model_b(features)
    event["route"] = route.text                     # feature-store-miss>model-b; route.id is ten hex digits of it

A route is the nodes in the order they were passed. The same nodes in the same order have the same text and the same id
in every process and on every machine; another order is another route. Only what a programmer wrote is a node's name:
never a user, a key or a number of the request, or every request would have a route of its own.

Bounds: 12 nodes of 32 characters each (a loop is noted as `node*`, what is beyond the twelfth as `...`), and
`max_routes` different routes per process, beyond which the text is `other`. Standard library only; 2 us a request.
Command line: reads one JSON event per line with `nodes`, writes it with `route` in their place.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
NODES, NAME_CHARACTERS, MAX_ROUTES = 12, 32, 10_000
_seen: set[str] = set()


class Route:
    """The nodes that one request passes; make one per request."""

    def __init__(self, nodes: Iterable[str] = (), *, max_routes: int = MAX_ROUTES) -> None:
        self._nodes: list[str] = []
        self._max_routes = max_routes
        for node in nodes:
            self.passed(node)

    def passed(self, node: str, value: T | None = None) -> T | None:
        """Note a node; `value` is given back, so that the call can stand inside an expression."""
        name = re.sub(r"[^A-Za-z0-9._:!-]+", "-", node)[:NAME_CHARACTERS] or "unnamed"
        if self._nodes and self._nodes[-1].removesuffix("*") == name:
            self._nodes[-1] = f"{name}*"
        elif len(self._nodes) < NODES:
            self._nodes.append(name)
        elif self._nodes[-1] != "...":
            self._nodes[-1] = "..."
        return value

    @contextmanager
    def node(self, name: str) -> Iterator[None]:
        """Note a node when it was passed, with `!` behind its name when it raised."""
        try:
            yield
        except BaseException:
            self.passed(f"{name[:NAME_CHARACTERS - 1]}!")
            raise
        self.passed(name)

    @property
    def text(self) -> str:
        """The route for people and for the column of role `path`: `features>model-a>fallback`."""
        text = ">".join(self._nodes) or "none"
        if text not in _seen:
            if len(_seen) >= self._max_routes:
                return "other"
            _seen.add(text)
        return text

    @property
    def id(self) -> str:
        """Ten hex digits of the text's hash, for logs where bytes are dear."""
        return hashlib.blake2b(self.text.encode(), digest_size=5).hexdigest()


def of_seldon(request_path: dict[str, str], routing: dict[str, int] | None = None) -> Route:
    """The route in Seldon's `meta`: the nodes of `requestPath` in their order, with the branch that `routing` chose."""
    routing = routing or {}
    return Route(f"{node}:{routing[node]}" if node in routing else node for node in request_path)


def main() -> None:
    """Events with `nodes` in, events with `route` out, one JSON document per line."""
    for line in sys.stdin:
        event = json.loads(line)
        event["route"] = Route(event.pop("nodes")).text
        print(json.dumps(event))


if __name__ == "__main__":
    main()
