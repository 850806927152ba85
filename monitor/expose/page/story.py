"""Alarms, the trigger's answers and launches in words: since when, which columns, how far, how sure, what was done.

Every change of a decision is an alarm of its own; raised, severe and cleared of one episode are one story. What was
answered and launched is found by model, version and episode. Whatever names things comes from data and is escaped by
`html`. Neighbours: `model` shows one model's stories, `fleet` the latest of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from monitor.decisions import Decision
from monitor.expose.page.draw import Mark, interval
from monitor.expose.page.html import Markup, element
from monitor.expose.page.style import LAUNCH_HUES
from monitor.expose.page.words import counted, decimals, instant, lasting, signed
from monitor.expose.report_facts import report_name
from monitor.expose.snapshot import ServiceSnapshot
from monitor.flow import FINAL_STATES, Alarm, Launch, effect_text
from monitor.metrics import DECISION_REASONS

#: Columns that a story names; the rest are counted.
_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class Episode:
    """One alarm from its raising to its clearing: its changes, oldest first."""

    changes: tuple[Alarm, ...]

    @property
    def first(self) -> Alarm:
        """The oldest change that is known."""
        return self.changes[0]

    @property
    def last(self) -> Alarm:
        """The newest change."""
        return self.changes[-1]

    @property
    def told(self) -> Alarm:
        """The newest change that says what moved; a clearing does not."""
        return next((alarm for alarm in reversed(self.changes) if alarm.state != "cleared"), self.last)

    @property
    def is_open(self) -> bool:
        """Whether it still stands."""
        return self.last.state != "cleared"

    @property
    def is_severe(self) -> bool:
        """Whether it came to be worth a retraining."""
        return any(alarm.state == "severe" for alarm in self.changes)

    @property
    def hue(self) -> str:
        """Grey once it is over, else the colour of its state."""
        return "grey" if not self.is_open else "red" if self.is_severe else "orange"


def episodes(alarms: Iterable[Alarm]) -> list[Episode]:
    """The episodes of alarms in any order, the one that changed last first."""
    found: dict[tuple[object, ...], list[Alarm]] = {}
    for alarm in alarms:
        key = (alarm.model, alarm.version, alarm.segment, alarm.kind, alarm.cause, alarm.episode)
        found.setdefault(key, []).append(alarm)
    told = [Episode(tuple(sorted(changes, key=lambda one: one.at))) for changes in found.values()]
    return sorted(told, key=lambda episode: (-episode.last.at, episode.first.episode))


def episode_name(episode: Episode) -> str:
    """What an episode is called."""
    kind = "drift" if episode.first.kind == "drift" else "data"
    return f"{'Severe ' + kind if episode.is_severe else kind.capitalize()} alarm {episode.first.episode}"


def episode_story(episode: Episode, service: ServiceSnapshot, now: float | None, *, reports: bool) -> Markup:
    """One alarm with all that is known of it and of what was done about it.

    now : event time up to which the model was judged        reports : whether `/reports` is served
    """
    first, told, last = episode.first, episode.told, episode.last
    rises = [alarm.since for alarm in episode.changes if alarm.since > 0]
    since = min(rises) if rises else first.at
    until = (now if episode.is_open else last.at) or last.at
    lines = [(first.at, _raised(first))] if first.state != "cleared" else []
    if told is not first and told.state == "severe":
        lines.append((told.at, f"severe: surely beyond retrain.above, {decimals(told.severe_score)} of a retraining's evidence"))
    answers = [one for one in service.decided if first.kind == "drift"
               and (one.model, one.version, one.episode) == (first.model, first.version, first.episode)]
    lines += [(one.at, _answer(one)) for one in answers]
    if not episode.is_open:
        lines.append((last.at, f"cleared: {last.words or last.reason or 'quiet'}"))
    launches = [launch for launch in service.launches if first.kind == "drift"
                and (launch.model, launch.version, launch.episode) == (first.model, first.version, first.episode)]
    return element(
        "article",
        element("div", element("h3", episode_name(episode)), chip("open" if episode.is_open else "over", episode.hue),
                element("span", f"version {first.version}", class_="sub"),
                element("span", f"for {lasting(until - since)}", class_="sub"), class_="row"),
        element("p", told.words) if told.words else None,
        _movers(told),
        element("ol", [element("li", instant(at), element("span", words)) for at, words in lines], class_="story"),
        [element("p", "Retraining ", element("a", launch.id, href=f"#launch-{launch.id}"), f": {_state(launch.state)}")
         for launch in launches],
        element("p", element("a", "Report of the alarm's window", href=f"/reports/{quote(report_name(first), errors='replace')}"))
        if reports else None,
        class_="episode")


def _raised(alarm: Alarm) -> str:
    words = f"raised with {decimals(alarm.score)} of an alarm's evidence"
    if alarm.window_panes:
        words += f", in {counted(alarm.window_panes, 'pane')} of {counted(alarm.window_events, 'event')}"
    return words + ("" if alarm.reference_adequate else "; the reference is inadequate")


def _answer(answer: Decision) -> str:
    words = "a retraining is worth it" if answer.outcome == "launch" else (
        f"no retraining ({answer.reason.replace('_', ' ')}): {DECISION_REASONS.get(answer.reason, answer.reason)}")
    return f"{words}, asked by {answer.by}" if answer.by else words


def _movers(alarm: Alarm) -> Markup | None:
    if not alarm.movers:
        return None
    items = [element("li", element("b", mover.column, class_="name"), f" ({mover.role}): ",
                     effect_text(mover.what, mover.effect, mover.lower, mover.upper, mover.unit),
                     f", evidence {decimals(mover.evidence)}", f"; {mover.words}" if mover.words else None)
             for mover in alarm.movers[:_COLUMNS]]
    if len(alarm.movers) > _COLUMNS:
        items.append(element("li", f"and {counted(len(alarm.movers) - _COLUMNS, 'column')} more"))
    return element("ul", items)


def chip(words: str, hue: str) -> Markup:
    """A word on its colour."""
    return element("span", words, class_=f"chip {hue}")


def _state(state: str) -> str:
    return state.replace("_", " ")


# ---- launches ---------------------------------------------------------------------------------------------------------

def launch_story(launch: Launch, metric: str) -> Markup:
    """One launch: its steps with their times (of the clock on the wall), the verdict and what it rests on."""
    return element(
        "article",
        element("div", element("h3", f"Launch {launch.id}"), chip(_state(launch.state), LAUNCH_HUES.get(launch.state, "grey")),
                element("span", f"by {launch.launcher}, for {_asked_by(launch)}", class_="sub"),
                class_="row"),
        _verdict(launch, metric),
        element("p", launch.progress) if launch.progress and launch.state not in FINAL_STATES else None,
        element("p", launch.detail, class_="note") if launch.detail else None,
        element("ol", [element("li", instant(at), element("span", _step(launch, state))) for state, at in launch.steps],
                class_="story"),
        class_="episode", id=f"launch-{launch.id}")


def _asked_by(launch: Launch) -> str:
    if not launch.by:
        return f"alarm {launch.episode} of version {launch.version}"
    return f"version {launch.version}, asked by {launch.by}" + (f": {launch.why}" if launch.why else "")


def _step(launch: Launch, state: str) -> str:
    if state == "judged" and launch.verdict:
        return f"judged: {launch.verdict}"
    if state == "promoted" and launch.new_version:
        return f"promoted: version {launch.new_version} takes the place of {launch.version}"
    return _state(state)


def _verdict(launch: Launch, metric: str) -> Markup | None:
    """Champion against challenger, and their difference with its interval."""
    if launch.champion is None or launch.challenger is None:
        return None
    rows = [("Champion", decimals(launch.champion, 4)), ("Challenger", decimals(launch.challenger, 4))]
    parts: list[Markup] = []
    for name, value in rows:
        parts += [element("dt", name), element("dd", f"{value} {metric}")]
    lower, upper = launch.difference_lower, launch.difference_upper
    if launch.difference is not None and lower is not None and upper is not None:
        reach = max(abs(lower), abs(upper), 1e-9) * 1.1
        parts += [element("dt", "Difference"),
                  element("dd", f"{signed(launch.difference, 4)} [{signed(lower, 4)}, {signed(upper, 4)}]",
                          interval(lower, launch.difference, upper, -reach, reach))]
    return element("dl", parts)


# ---- marks on the time axis -------------------------------------------------------------------------------------------

_ALARM_HUES = {"raised": "orange", "severe": "red", "cleared": "green"}


def marks(alarms: Sequence[Alarm], launches: Sequence[Launch], start: float) -> list[Mark]:
    """What happened since `start`, in event time: alarms above the line, launches and new references below it."""
    found = [Mark(alarm.at, _ALARM_HUES[alarm.state], f"{'Drift' if alarm.kind == 'drift' else 'Data'} alarm "
                  f"{alarm.episode}: {alarm.state}", above=True) for alarm in alarms if alarm.at >= start]
    for launch in launches:
        if launch.decided_at >= start:
            found.append(Mark(launch.decided_at, "purple", f"Launch {launch.id} decided", above=False))
        if launch.cut_over_at >= start and launch.cut_over_at > 0:
            found.append(Mark(launch.cut_over_at, "blue", f"Judged by the reference of version {launch.new_version} from here",
                              above=False))
    return sorted(found)
