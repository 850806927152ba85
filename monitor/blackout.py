"""Hours in which no launch is decided: periods of the week in the local time of a place.

A period begins at `start` on each of its days and ends at the next `end`, which lies on the following day where it is not
later than the start: `22:00` to `06:00` from Monday is over on Tuesday. 00:00 to 24:00 is the whole day. Everything is
local time by the rules of the time zone: when clocks go forward a period loses the hour that does not exist, and when they
go back it has the hour that comes twice both times.

    periods(configured, where) the periods of a configuration; ConfigError for what is no time, no place, or never free
    is_within(periods, at)     whether event time `at` (seconds since 1970) lies in one of them
    ends(periods, at)          when the blackout that holds at `at` is over; None where it never is

Idea: a period is a list of stretches of absolute time, one for each day on which it begins; only their two ends are local.
Whether a week has a free moment at all is asked of a winter and of a summer week, before anything starts.

Cost: a few conversions per period, asked for severe alarms only. Neighbours: `config_retrain` has the fields,
`config` checks them at the start, `retrain.limits` asks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones

from monitor.config_retrain import Blackout
from monitor.errors import ConfigError

DAY_MINUTES = 24 * 60
#: Days by their names in a configuration, in the order of `date.weekday`.
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
#: A blackout that is not over within so many days repeats every week, and is never over.
_LOOKED_DAYS = 9
#: A Monday in the winter and one in the summer of either half of the world, at midnight UTC.
_WEEKS = (datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 7, 6, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Period:
    """One period: the days on which it begins (0 is Monday), local minutes since midnight, and where.

    end : beyond `start` on the same day, else on the next one; 1440 is midnight at the day's end
    """

    days: frozenset[int]
    start: int
    end: int
    zone: tzinfo

    @property
    def over_midnight(self) -> bool:
        """Whether it ends on the day after the one on which it began."""
        return self.end <= self.start


def periods(configured: Sequence[Blackout], where: str) -> tuple[Period, ...]:
    """The periods of `retrain.blackout`; `where` is its path in the configuration."""
    found = tuple(_period(one, f"{where}[{index}]") for index, one in enumerate(configured))
    if covers_always(found):
        raise ConfigError(f"{where}: expected hours of the week that are left free, got none; nothing would ever be launched: "
                          "shorten a period, or remove `retrain`")
    return found


def _period(one: Blackout, where: str) -> Period:
    times = []
    for key, given in (("from", one.start), ("to", one.end)):
        minute = minutes(given)
        if minute is None:
            raise ConfigError(f"{where}.{key}: expected a time of day from \"00:00\" to \"24:00\", got {given!r}; "
                              "write it so, in quotes")
        times.append(minute)
    start, end = times
    if start == end or (start, end) == (DAY_MINUTES, 0):
        raise ConfigError(f"{where}.to: expected another time than `from`, got {one.end!r}; for whole days write "
                          "from: \"00:00\", to: \"24:00\"")
    return Period(frozenset(map(DAYS.index, one.days)), start, end, _zone(one.time_zone, f"{where}.time_zone"))


def _zone(name: str, where: str) -> tzinfo:
    if name == "UTC":                               # known without a list of time zones
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):         # unknown; not a name at all; a folder of zones
        known = available_timezones()
        if not known:
            raise ConfigError(f"{where}: expected time zones on this machine, found none; install tzdata") from None
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise ConfigError(f"{where}: expected a time zone such as Europe/Zurich or UTC, got {name[:60]!r}; "
                          + (f"did you mean {near[0]}?" if near else "see the IANA list of time zones")) from None


def is_within(periods: Sequence[Period], at: float) -> bool:
    """Whether event time `at` lies in one of the periods; its start does, its end does not."""
    return any(start <= at < end for period in periods for start, end in _stretches(period, at))


def ends(periods: Sequence[Period], at: float) -> float | None:
    """The first moment from `at` on that lies in none of the periods, seconds since 1970; None where there is none."""
    moment, horizon = at, at + _LOOKED_DAYS * 86_400
    stretches = sorted(one for period in periods for one in _stretches(period, at, _LOOKED_DAYS))
    for start, end in stretches:
        if start <= moment < end:
            moment = end
    return moment if moment < horizon else None


def covers_always(periods: Sequence[Period]) -> bool:
    """Whether a whole week, in winter or in summer, has no free moment."""
    return any(ends(periods, week.timestamp()) is None for week in _WEEKS)


def minutes(text: str | int) -> int | None:
    """Minutes since midnight of `HH:MM`, 0 to 1440; None where it is no time of day.

    YAML reads 22:00 without quotes as a number in base 60, which is just these minutes.

    >>> minutes("06:30"), minutes("24:00"), minutes(1320), minutes("24:01"), minutes("6.30")
    (390, 1440, 1320, None, None)
    """
    if isinstance(text, int):
        return text if 0 <= text <= DAY_MINUTES else None
    hours, colon, rest = text.partition(":")
    if not (colon and hours.isdecimal() and hours.isascii() and len(hours) <= 2
            and rest.isdecimal() and rest.isascii() and len(rest) == 2 and int(rest) < 60):
        return None
    whole = int(hours) * 60 + int(rest)
    return whole if whole <= DAY_MINUTES else None


def _stretches(period: Period, at: float, days: int = 1) -> Iterator[tuple[float, float]]:
    """The stretches of time of one period that begin from the day before `at`'s on, `days` after it at most.

    An hour that comes twice lies in a stretch both times; a time that does not exist is when the clocks go forward.
    """
    today = datetime.fromtimestamp(at, period.zone).date()
    for shift in range(-1, days + 1):
        day = today + timedelta(days=shift)
        if day.weekday() in period.days:
            last = day + timedelta(days=1) if period.over_midnight else day
            yield _instant(day, period.start, period.zone, fold=0), _instant(last, period.end, period.zone, fold=1)


def _instant(day: date, minute: int, zone: tzinfo, *, fold: int) -> float:
    """A local time of a day, seconds since 1970; of the two that an hour which comes twice has, the `fold`-th."""
    local = datetime(day.year, day.month, day.day) + timedelta(minutes=minute)          # 24:00 is the next day's 00:00
    early, late = (local.replace(tzinfo=zone, fold=turn).timestamp() for turn in (0, 1))
    if early <= late:                               # once as a rule, or twice
        return (early, late)[fold]
    low, high = late, early                         # not at all: the moment between them at which the clocks change
    before = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if datetime.fromtimestamp(middle, zone).utcoffset() == before else (low, middle)
    return high
