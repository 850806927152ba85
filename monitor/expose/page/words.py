"""Numbers and times as the page writes them: few digits, the unit beside them, times in UTC.

Scores and effects have two decimals, as on the dashboards; a number that does not exist is a dash. Times are event time
unless the page says otherwise.
"""

from __future__ import annotations

import math
import time
from urllib.parse import quote

from monitor.expose.page.html import Markup, element

#: What stands where there is no number.
NONE = "–"
_MINUS = "−"


def decimals(value: float | None, places: int = 2) -> str:
    """A number with so many decimals; a dash where there is none.

    >>> decimals(3.14159), decimals(float("nan")), decimals(-0.5, 1)
    ('3.14', '–', '−0.5')
    """
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    return f"{value:,.{places}f}".replace("-", _MINUS)


def signed(value: float | None, places: int = 3) -> str:
    """A difference, with its sign.

    >>> signed(0.0123), signed(-2.0, 1)
    ('+0.012', '−2.0')
    """
    text = decimals(value, places)
    return text if text[0] in f"{_MINUS}∞{NONE}" else f"+{text}"


def share(value: float) -> str:
    """A share of events in per cent.

    >>> share(0.5), share(0.00012), share(0.0), share(float("nan"))
    ('50.0 %', '0.012 %', '0 %', '–')
    """
    if math.isnan(value):
        return NONE
    if value == 0:
        return "0 %"
    return f"{value * 100:.1f} %" if value >= 0.001 else f"{value * 100:.2g} %"


def count(value: float) -> str:
    """A whole number with its thousands apart.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{int(value):,}"


def counted(value: int, word: str) -> str:
    """A number with its noun.

    >>> counted(1, "pane"), counted(6400, "event")
    ('1 pane', '6,400 events')
    """
    return f"{value:,} {word}{'' if value == 1 else 's'}"


def lasting(seconds: float) -> str:
    """A length of time in its one or two largest units.

    >>> lasting(42), lasting(150), lasting(7260), lasting(200000)
    ('42 s', '2 min 30 s', '2 h 1 min', '2 d 7 h')
    """
    left = max(0, round(seconds))
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    for place, (name, size) in enumerate(units):
        if left >= size or size == 1:
            text = f"{left // size} {name}"
            if place + 1 < len(units) and (rest := left % size // units[place + 1][1]):
                text += f" {rest} {units[place + 1][0]}"
            return text
    return "0 s"


def address_of(model: str) -> str:
    """Where a model's page is.

    >>> address_of("a/b c")
    '/models/a%2Fb%20c'
    """
    return f"/models/{quote(model, safe='', errors='replace')}"


def instant(seconds: float | None) -> Markup:
    """A moment with date and zone, readable for programs; a dash where there is none."""
    if seconds is None or not 0 < seconds < 2**37:
        return Markup(NONE)
    moment = time.gmtime(seconds)
    return element("time", time.strftime("%Y-%m-%d %H:%M:%S UTC", moment), datetime=time.strftime("%Y-%m-%dT%H:%M:%SZ", moment))


def tick(seconds: float, *, dated: bool, span: float) -> str:
    """A moment on a time axis: as exact as the axis is long."""
    form = ("%d %b " if dated else "") + ("%H:%M:%S" if span < 1800 else "%H:%M")
    return time.strftime(form, time.gmtime(min(max(seconds, 0.0), 2.0**37)))
