"""The watching side of the demo: the service of `tidemark run` in a thread, and what the director may ask of it.

All of the service lives in that one thread, for a connection to SQLite belongs to the one that opened it. The director
hears of every decided pane through a queue and reads ledger and alarms, which are only ever replaced whole.
Neighbours: `main` directs, `broker` is what the service reads from.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from monitor import config as configuration
from monitor.demo.broker import API_VERSION
from monitor.errors import TidemarkError
from monitor.flow import Alarm, Evaluation, Launch

if TYPE_CHECKING:
    from monitor.pipeline import Stages


class DemoFailed(TidemarkError):
    """The loop did not close; the text says what did not happen."""


@dataclass
class Watching:
    """The service in its thread.

    decided : every decided pane, for the director          failure : what ended the thread, if anything did
    """

    config: configuration.Config
    decided: queue.SimpleQueue[Evaluation] = field(default_factory=queue.SimpleQueue)
    stages: Stages | None = None
    failure: BaseException | None = None
    address: str = ""
    _ready: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Build and run the service; returns when it reads the topic."""
        self._thread = threading.Thread(target=self._run, name="tidemark", daemon=True)
        self._thread.start()
        self._ready.wait(30)
        self.check()

    def check(self) -> None:
        """Raise what ended the thread."""
        if self.failure is not None:
            raise DemoFailed(f"the service ended: {type(self.failure).__name__}: {self.failure}") from self.failure

    def stop(self) -> None:
        """Commit and end, and with us a training that still runs."""
        if self.stages is not None:
            self.stages.stop()
            self._thread.join(15)
            launch = self.launch()
            if launch is not None and launch.state in ("submitted", "running"):
                self.stages.retraining.launchers[launch.model].cancel(launch)

    def launch(self) -> Launch | None:
        """The newest launch."""
        return next(reversed(list(self.stages.trigger.ledger.launches.values())), None) if self.stages else None

    def alarms(self) -> list[Alarm]:
        """Every alarm so far; also the clearing at a cut-over, which no pane decided."""
        return list(self.stages.alarms) if self.stages else []

    def lag(self) -> int:
        """Events in the topic that are not yet read."""
        return sum(self.stages.source.lag().values()) if self.stages else 0

    def _run(self) -> None:
        """All of the service lives in this thread: a connection to SQLite belongs to the one that opened it."""
        from monitor.expose.api import Server, application
        from monitor.expose.exporter import Exporter
        from monitor.expose.page.routes import routes as page_routes
        from monitor.expose.report import routes as report_routes
        from monitor.ingest.kafka import KafkaSource
        from monitor.service import build

        server = None
        try:
            exporter = Exporter(self.config.limits.series)
            pages = [*page_routes(exporter, reports=True), *report_routes(exporter)]
            server = Server(application(exporter, more=pages), *configuration.listen_address(self.config.service.listen))
            server.start()
            self.address = f"http://{server.host}:{server.port}/"
            source = KafkaSource(self.config.kafka, [monitor.topic for monitor in self.config.monitors], api_version=API_VERSION)
            self.stages = build(self.config, source=source, exporter=exporter, on_evaluation=self.decided.put)
            self._ready.set()
            try:
                self.stages.run()
            finally:
                self.stages.close()
        except BaseException as error:                   # the director ends the demo with it
            self.failure = error
        finally:
            self._ready.set()
            if server is not None:
                server.stop()
