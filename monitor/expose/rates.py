"""How often one address may do what costs something: change what is, or offer a token that is none.

    rates = Rates()
    rates.wait("changes", "192.0.2.7")        0.0: go on; else the seconds after which it may

Each address has a bucket per kind of act that holds MOST acts and is refilled within a minute. An IPv6 address counts by its
first 64 bits, which one machine has to itself. Only the connection's own address counts: what a header says of another
may be invented. At most ADDRESSES are remembered, the latest; who was forgotten begins with a full bucket, which is
why an act that is refused is refused before it is looked at.

Whoever holds the token could ask for launches without end, and the inbox would bound them; this keeps one client that
went wild from using it up for the others, and a guesser from guessing. Reads are not counted: they are bounded by
connections. Cost: a few µs per act that counts. Neighbours: `guard` asks.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal

Act = Literal["changes", "failures"]
#: Acts of one address in a minute. A person clicks, an Alertmanager groups: both are far below. A wrong token is a mistake
#: that repeats itself until somebody looks, or a guess.
MOST: Mapping[Act, int] = {"changes": 60, "failures": 10}
ADDRESSES = 1_024
_MINUTE = 60.0


class Rates:
    """The buckets of every address; used by one thread."""

    def __init__(self, most: Mapping[Act, int] = MOST, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._most, self._monotonic = dict(most), monotonic
        self._left: OrderedDict[tuple[Act, str], tuple[float, float]] = OrderedDict()      # acts left, and when that was so

    def wait(self, act: Act, address: str, *, take: bool = True) -> float:
        """Seconds after which the address may do this, 0 where it may now; then, with `take`, it has done so."""
        key, now, most = (act, _place(address)), self._monotonic(), self._most[act]
        left, at = self._left.pop(key, (float(most), now))
        left = min(most, left + (now - at) * most / _MINUTE)
        may = left >= 1
        self._left[key] = (left - 1 if may and take else left, now)
        while len(self._left) > ADDRESSES:
            self._left.popitem(last=False)
        return 0.0 if may else (1 - left) * _MINUTE / most


def _place(address: str) -> str:
    """What counts as one client."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(known, ipaddress.IPv6Address):
        return str(known.ipv4_mapped or ipaddress.ip_network((known, 64), strict=False))
    return str(known)
