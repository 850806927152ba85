"""What one value of an event becomes, whichever format it came in: the rules that JSON and columnar files share.

    kind       accepted                                        becomes
    numeric    a finite number                                 float64; NaN where missing
    category   text, a whole or broken number, true or false   its text: 3 and 3.0 are "3", true is "true"
    boolean    true, false, 0, 1, "true", "false"              "true" or "false"
    embedding  a list of as many finite numbers as the         float64 (n, length); NaN throughout where missing
               reference's vectors have
    text       as category                                     its text
    time       seconds or milliseconds since 1970, or RFC 3339 whole milliseconds since 1970, up to a day from now

`null` and an absent key are missing; so is NaN. A vector with one missing entry is missing, for the rest of it has no
place. A number that stands where text is expected is common (0/1
predictions, ids), text where a number is expected is a producer's defect: the first is taken, the second refused.
3.0 is "3" because pandas turns whole numbers into broken ones as soon as one of them is missing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

#: Event times are below 2**33 seconds, 2242-03-16: beyond it stands a unit mistaken for another, not a time.
TIME_LIMIT_SECONDS = 2**33
TIME_LIMIT_MS = TIME_LIMIT_SECONDS * 1000
#: How far ahead of the wall clock an event time may be. One event of next year would close every pane until then, and
#: all that follows would be late; a day leaves room for time zones that were mistaken and for replayed simulations.
FUTURE_SECONDS = 86_400.0
#: The refusal's words.
NO_TIME = "no event time between 1970 and a day from now"

#: What a boolean may be. True == 1 and False == 0 as keys, too.
TRUTH: dict[object, str | None] = {True: "true", False: "false", "true": "true", "false": "false", None: None}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def category_text(value: object) -> str | None:
    """The category that a JSON value names; None where missing.

    >>> [category_text(value) for value in ("a", 3, 3.0, 2.5, True, None)]
    ['a', '3', '3', '2.5', 'true', None]
    """
    if value is None or type(value) is str:
        return value
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, float):
        if value != value:
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return str(value)


def milliseconds(time: datetime) -> int:
    """Whole milliseconds since 1970 of a time; one without an offset is taken as UTC.

    >>> milliseconds(datetime(2024, 1, 1))
    1704067200000
    """
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return (time - _EPOCH) // _MILLISECOND
