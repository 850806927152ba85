"""The shadow: a challenger that was better on held-back events answers beside the champion, on live ones, before it takes over.

    judged, better -> serving is told to log the challenger's answers in `retrain.shadow.prediction`
                   -> captured events with a label and both answers are compared, by the same metric as the held-back ones
                   -> better: promoted      worse: refused      not yet known: go on, until `hours` are over, then refused

It is looked at when `events_min` labelled events are there, and at twice, four times ... as many, each time at the first so
many in event time; a last time when `hours` are over. Looking often at an interval that misses in 5 % of cases would let a
challenger in that is no better, sooner or later: so the looks share the 5 %, a half, a sixth, a twelfth ... of it each
(1 / ((j + 1)(j + 2)), which sums to 1), and all of them together miss in at most 5 %.

The launch stays `judged`; its progress says how far the shadow is. `shadow_at` (the launch's own time) and `shadow_since`
(event time) are saved before serving is told, and telling is repeated without effect: a restart goes on where it was. Serving
is told that the shadow is over before the verdict is saved.

Cost: nothing while no launch is in shadow; then the captured events since it began are read once a minute, three columns of
them. Neighbours: `launch` asks before it promotes, `promotions` tell serving, `state.capture` gives the events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from monitor import config
from monitor.errors import LaunchFailed
from monitor.flow import Launch
from monitor.retrain.challenger import Verdict, compare, seed_of
from monitor.retrain.holdout import answers_of
from monitor.retrain.outputs import ContractBroken
from monitor.retrain.promotions import PromotionWaits
from monitor.retrain.quality_metrics import NotComparable

#: How often the captured events are read for one launch.
LOOK_SECONDS = 60.0
#: All looks together miss the truth in at most this share of shadows.
MISSES = 0.05


@runtime_checkable
class Serving(Protocol):
    """A promotion that can also ask for answers in shadow; asked for the same launch again it changes nothing more."""

    def shadow(self, launch: Launch, column: str) -> None:
        """Let serving log the answers of the launch's challenger in a column of its events; LaunchFailed for a failed call."""

    def shadow_over(self, launch: Launch) -> None:
        """Let serving stop that."""


@dataclass(frozen=True, slots=True)
class Watching:
    """Which columns of a model's events are compared."""

    label: str
    champion: str
    challenger: str


@dataclass(slots=True)
class Shadows:
    """The shadow periods of all models.

    columns : by model, for those that have a shadow configured
    events  : (model, event time in ms, names) -> the captured events from then on, a pyarrow table
    newest  : the latest captured event time of a model in ms, -1 before the first
    """

    columns: Mapping[str, Watching]
    events: Callable[[str, int, list[str]], Any]
    newest: Callable[[str], int]
    _looked: dict[str, tuple[float, int, str]] = field(default_factory=dict)    # launch -> when, looks done, words

    def begins(self, launch: Launch, now: float) -> Launch | None:
        """The launch with the time from which on it is compared; None where it has none to go through, or is in it."""
        if launch.model not in self.columns or launch.shadow_at or launch.verdict != "better":
            return None
        return replace(launch, shadow_at=now, shadow_since=self.newest(launch.model) / 1000)

    def look(self, launch: Launch, policy: config.Retrain, serving: object, now: float) -> Launch | None:
        """One turn of a launch that is in shadow: what it has become, or None when it is through.

        Raises PromotionWaits while nothing is decided; LaunchFailed(retry=True) when serving cannot be told.
        """
        if not launch.shadow_at or launch.shadow_verdict:
            return None
        assert isinstance(serving, Serving), "checked at start"
        when, looks, words = self._looked.get(launch.id, (None, 0, ""))
        if when is not None and 0 <= now - when < LOOK_SECONDS:
            raise PromotionWaits(words)
        serving.shadow(launch, self.columns[launch.model].challenger)
        verdict, looks, words = self._compared(launch, policy, looks, now)
        if verdict is None:
            self._looked[launch.id] = now, looks, words
            raise PromotionWaits(words)
        serving.shadow_over(launch)
        self._looked.pop(launch.id, None)
        detail = f"in shadow: {verdict.detail}; on held-back events: {launch.detail}"
        if verdict.champion is None:                # nothing that could be compared: the held-back figures stay
            return replace(launch, shadow_verdict="not yet known", verdict="not yet known", detail=detail, progress="")
        return replace(launch, shadow_verdict=verdict.verdict, verdict=verdict.verdict, detail=detail, progress="",
                       champion=verdict.champion, challenger=verdict.challenger, difference=verdict.difference,
                       difference_lower=verdict.lower, difference_upper=verdict.upper)

    def ends(self, launch: Launch, serving: object) -> None:
        """A launch that ended otherwise while it was in shadow: serving must not go on."""
        if launch.shadow_at and not launch.shadow_verdict and isinstance(serving, Serving):
            serving.shadow_over(launch)
            self._looked.pop(launch.id, None)

    def _compared(self, launch: Launch, policy: config.Retrain, looks: int, now: float) -> tuple[Verdict | None, int, str]:
        """(the verdict, if there is one now, looks done, words for people)."""
        shadow, columns = policy.shadow, self.columns[launch.model]
        assert shadow is not None, "begins() asked"
        table = self._answered(launch, columns)
        events, hours = table.num_rows, (now - launch.shadow_at) / 3600
        words = (f"in shadow: {events:,} of {shadow.events_min:,} labelled events with both answers, "
                 f"{hours:.1f} of {shadow.hours:g} hours")
        is_over = hours >= shadow.hours
        while shadow.events_min << looks <= events:
            verdict = self._verdict(launch, policy, table.slice(0, shadow.events_min << looks), looks)
            looks += 1
            if verdict.verdict != "not yet known":
                return verdict, looks, words
            words = f"{words}; {verdict.detail}"
        if not is_over:
            return None, looks, words
        if not events:
            return Verdict(policy.metric, None, None, None, None, None, 0, "not yet known",
                           f"no labelled event with an answer in {columns.challenger!r} in {shadow.hours:g} hours; "
                           "does serving log it, and do labels come?"), looks, words
        return self._verdict(launch, policy, table, looks), looks, words

    def _answered(self, launch: Launch, columns: Watching) -> Any:
        """The events that can be compared, in the order of (time, id)."""
        names = [columns.label, columns.champion, columns.challenger]
        try:
            table = self.events(launch.model, int(launch.shadow_since * 1000) + 1, names)
        except OSError as error:
            raise LaunchFailed(f"retrain.capture_uri: captured events cannot be read: {error}", retry=True) from None
        return table.drop_null().sort_by([("timestamp", "ascending"), ("id", "ascending")])

    def _verdict(self, launch: Launch, policy: config.Retrain, table: Any, look: int) -> Verdict:
        columns = self.columns[launch.model]
        assert policy.shadow is not None, "begins() asked"
        try:
            answers = answers_of(table[columns.label], table[columns.champion], table[columns.challenger],
                                 where=f"captured events (columns {columns.label}, {columns.champion}, {columns.challenger})")
            return compare(answers, metric=policy.metric, events_min=policy.shadow.events_min, seed=seed_of(launch),
                           min_improvement=policy.min_improvement, positive_label=policy.positive_label,
                           interval=policy.metric_interval,
                           confidence=1 - MISSES / ((look + 1) * (look + 2)), setting="retrain.shadow.events_min")
        except (ContractBroken, NotComparable) as error:
            return Verdict(policy.metric, None, None, None, None, None, table.num_rows, "not yet known", str(error))
