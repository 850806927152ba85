"""Brings what is open to Alertmanager's own API, for those without Prometheus' rules.

    exporter.published -> Desk -> one sheet of alerts -> a courier per Alertmanager -> POST /api/v2/alerts

One thread looks at the latest snapshot twice a second and writes a new sheet when an alert began or ended, and every
`resend_seconds`, because an Alertmanager takes an alert that is not told again for over. A courier per address brings
the latest sheet, whole, and no other: what it missed while its Alertmanager was away it never needs. So every
Alertmanager of a cluster gets every alert, none waits for another, and nothing grows. Each sheet is brought even when it
is empty: a wrong address or token shows before the first alarm.

Invariants. The loop is never waited for nor made to wait: both sides read and write one reference. A firing alert ends
by itself after three times `resend_seconds`, should nobody tell it again: this process being killed included. A failure
is told once, when it begins, when it changes and when it is over; each post is counted (`tidemark_alert_posts_total`).
Neighbours: `alert_desk` says what fires, `alert_door` posts it, `monitor.commands.run` starts and stops the sender.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from monitor.alert_limits import Limits
from monitor.config import Config
from monitor.config_alerts import Alertmanager
from monitor.expose.alert_desk import Desk, Told
from monitor.expose.alert_door import CALL_SECONDS, DeliveryFailed, Door, context_of, credentials
from monitor.expose.alert_facts import Links
from monitor.expose.exporter import Exporter
from monitor.flow import Clock

log = logging.getLogger("tidemark")

#: Seconds between two looks at what is shown: far below a pane, and a look costs microseconds.
LOOK_SECONDS = 0.5
#: A firing alert is over for Alertmanager after so many times `resend_seconds` without a word.
LAPSE = 3.0
#: Alerts in one post, as Prometheus has it: a proxy before an Alertmanager bounds bodies.
BATCH = 64
#: Pauses after a failure: doubling from the first to the last.
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 1.0, 30.0
@dataclass(frozen=True, slots=True)
class Sheet:
    """Everything that is to be told at one moment, as it is posted: JSON arrays of at most BATCH alerts."""

    number: int
    bodies: tuple[bytes, ...]


def sheet(number: int, told: Sequence[Told], now: float, lapse_seconds: float, source: str = "") -> Sheet:
    """The alerts as Alertmanager's API v2 takes them.

    lapse_seconds : after it a firing alert that is not told again is over      source : address that says where they come from
    """
    alerts = [{"labels": one.labels, "annotations": one.annotations, "startsAt": written(one.starts_at),
               "endsAt": written(one.ends_at if one.ends_at is not None else now + lapse_seconds),
               **({"generatorURL": source} if source else {})} for one in told]
    batches = [alerts[start:start + BATCH] for start in range(0, len(alerts), BATCH)] or [[]]
    return Sheet(number, tuple(map(msgspec.json.encode, batches)))


def written(seconds: float) -> str:
    """A time as RFC 3339, to the millisecond.

    >>> written(0.25)
    '1970-01-01T00:00:00.250Z'
    """
    whole, milliseconds = divmod(int(seconds * 1_000), 1_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03}Z"


class AlertSender:
    """Sends what fires to every configured Alertmanager, in threads of its own.

    settings : with at least one address        desk : what fires        ConfigError where a file of `settings` cannot be used
    """

    def __init__(self, settings: Alertmanager, exporter: Exporter, desk: Desk, *, source: str = "", clock: Clock = time.time,
                 monotonic: Callable[[], float] = time.monotonic, look_seconds: float = LOOK_SECONDS) -> None:
        self._exporter, self._desk, self._source = exporter, desk, source
        self._clock, self._monotonic = clock, monotonic
        self._look_seconds, self._resend_seconds = look_seconds, settings.resend_seconds
        self._turn = threading.Condition()
        self._sheet: Sheet | None = None
        self._stopping = threading.Event()
        credentials(settings)                       # what cannot be used is told before anything starts
        context = context_of(settings)
        self._couriers = [Courier(Door(url.rstrip("/"), settings, context), self) for url in settings.urls]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Send from now on."""
        self._threads = [threading.Thread(target=self._look, name="alerts", daemon=True),
                         *(threading.Thread(target=courier.run, name="alerts-courier", daemon=True)
                           for courier in self._couriers)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send no more; an alert that fires is over for Alertmanager in three times `resend_seconds`. Safe to call twice."""
        self._stopping.set()
        with self._turn:
            self._turn.notify_all()
        for courier in self._couriers:
            courier.door.cut()
        for thread in self._threads:
            thread.join(CALL_SECONDS)
        self._threads = []

    def posts(self) -> Mapping[tuple[str, str], int]:
        """Posts by (address, outcome), from 0."""
        return {(courier.door.url, outcome): count for courier in self._couriers for outcome, count in courier.posts.items()}

    def ends_within(self, seconds: float = 0.0) -> bool:
        """Wait so long, or until the sender stops; whether it does."""
        return self._stopping.wait(seconds)

    def next(self, known: int, until: float | None) -> Sheet | None:
        """The latest sheet, waited for while it is the known one, at most until a monotonic time."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopping.is_set() or (self._sheet is not None and self._sheet.number != known),
                                None if until is None else max(0.0, until - self._monotonic()))
            return self._sheet

    def _look(self) -> None:
        try:
            self._write_sheets()
        except Exception:                           # a defect of ours: what fires is over for Alertmanager soon, the log says why
            log.exception("Alerts are no longer sent.")
            raise

    def _write_sheets(self) -> None:
        number, due = 0, -1.0
        while not self._stopping.wait(self._look_seconds):
            published = self._exporter.published
            changed = self._desk.look(published, self._clock())
            if published.service.ready and (changed or self._monotonic() >= due):
                number, due = number + 1, self._monotonic() + self._resend_seconds
                now = self._clock()
                made = sheet(number, self._desk.told(), now, LAPSE * self._resend_seconds, self._source)
                with self._turn:
                    self._sheet = made
                    self._turn.notify_all()


def sender(config: Config, exporter: Exporter, *, clock: Clock = time.time) -> AlertSender | None:
    """The sender that a configuration asks for, told of in what the exporter shows; None where it names no Alertmanager."""
    settings = config.alertmanager
    if not settings.urls:
        return None
    service, grafana, runbooks = (address.rstrip("/") if address else "" for address in (
        settings.service_url or config.grafana.service_url, settings.grafana_url or config.grafana.url, settings.runbooks_url))
    desk = Desk({monitor.model: Limits.of(monitor) for monitor in config.monitors}, Links(service, grafana, runbooks),
                settings.labels, retrain_label=settings.retrain_label, started=clock(),
                shared=config.service.replicas is not None)
    made = AlertSender(settings, exporter, desk, source=service, clock=clock)
    exporter.alert_posts = made.posts
    return made


class Courier:
    """Brings the latest sheet to one Alertmanager, again and again until it is taken."""

    def __init__(self, door: Door, sender: AlertSender) -> None:
        self.door, self.posts = door, {"taken": 0, "failed": 0}
        self._sender = sender
        self._failure = ""                          # what was last told of it; "" while it takes alerts

    def run(self) -> None:
        """Until the sender stops: bring each new sheet, and the latest one again after a failure."""
        known, pause = 0, 0.0
        while not self._sender.ends_within():
            if pause and self._sender.ends_within(pause):
                return
            latest = self._sender.next(known, None)
            if latest is None or self._sender.ends_within():
                return
            try:
                for body in latest.bodies:
                    self.door.post(body)
                    self.posts = self.posts | {"taken": self.posts["taken"] + 1}
            except DeliveryFailed as error:
                if self._sender.ends_within():
                    return
                self.posts = self.posts | {"failed": self.posts["failed"] + 1}
                self._note(str(error))
                pause = min(max(PAUSE_SECONDS_MIN, 2 * pause), PAUSE_SECONDS_MAX)
                known = 0                           # the latest one, which may be this
                continue
            self._note("")
            known, pause = latest.number, 0.0

    def _note(self, failure: str) -> None:
        """Tell a failure once: when it begins, changes or is over."""
        if failure == self._failure:
            return
        if failure:
            log.error("Alerts not taken.", extra={"alertmanager": self.door.url, "error": failure})
        else:
            log.info("Alerts taken again.", extra={"alertmanager": self.door.url})
        self._failure = failure
