"""`tidemark run -c FILE`: the service.

SIGTERM and SIGINT end it after the batch in hand: everything is committed, the source is left, exit code 0; while it is
still starting (waiting for a broker, say) they end it at once. SIGHUP reads the configuration again: a sound one is taken
over by building the service anew on the same state; one that is broken, or that cannot be built or read its first batch,
is reported and the old one goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from types import FrameType

from monitor.config import Config, is_loopback, known_hosts, listen_address, load
from monitor.errors import ReferenceMismatch, TidemarkError, one_line
from monitor.expose.alert_sender import sender
from monitor.expose.api import Server, application, read_token
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Inbox
from monitor.expose.page.routes import routes as page_routes
from monitor.expose.report import routes as report_routes
from monitor.expose.tls import Certificates
from monitor.ingest.collector import settle
from monitor.pipeline import Stages
from monitor.replicas import Replica
from monitor.service import build
from monitor.sizing import memory_warning
from monitor.watched import watched

log = logging.getLogger("tidemark")

#: Attributes that every log record has; whatever else it carries is the line's data.
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark run`."""
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--log-json", action="store_true", help="one JSON object per log line")


def run(args: argparse.Namespace) -> int:
    """Serve until told to end."""
    config = load(args.config)
    log_to_stderr(config.service.log_level, as_json=args.log_json)
    if warning := memory_warning(config):
        log.warning("More memory is allowed than there is.", extra={"reason": warning})
    exporter = Exporter(config.limits.series)
    token = read_token(config.service.token_file) if config.service.token_file else None
    inbox = Inbox()
    pages = [*page_routes(exporter, reports=True), *report_routes(exporter)]
    host, port = listen_address(config.service.listen)
    certificates = Certificates(config.service.tls) if config.service.tls is not None else None
    app = application(exporter, token, inbox=inbox, more=pages, hosts=known_hosts(config.service))
    server = Server(app, host, port, certificates)
    if not is_loopback(host) and (token is None or certificates is None):
        log.warning("The port is open to other machines.", extra={"lacking": [key for key, given in (
            ("service.token_file", token), ("service.tls", certificates)) if given is None]})
    alerts = sender(config, exporter)
    signals = Signals()
    try:
        server.start()
        if alerts is not None:
            alerts.start()
        log.info("Listening.", extra={"address": f"{server.host}:{server.port}"})
        _watch(args.config, config, exporter, inbox, signals)
    except _Ended:
        log.info("Ended before the start was done.")
    finally:
        if alerts is not None:
            alerts.stop()
        inbox.close()
        server.stop()
    return 0


def _watch(path: str, config: Config, exporter: Exporter, inbox: Inbox, signals: Signals) -> None:
    """Build and run; again after every SIGHUP, until the source or somebody ends it."""
    fallback: Config | None = None                  # what ran before `config`, until that has read and committed a batch
    while True:
        stages: Stages | Replica | None = None
        try:
            stages = (build(config, exporter=exporter, inbox=inbox) if config.service.replicas is None
                      else Replica(config, exporter=exporter, inbox=inbox))
            signals.stages = stages
            log.info("Watching.", extra={"models": [monitor.model for monitor in config.monitors]})
            settle()
            if not signals.ending and not signals.reload:
                stages.run()
        except (TidemarkError, ReferenceMismatch) as error:
            if fallback is None or (stages is not None and stages.committed_at is not None):
                raise
            log.error("Configuration not taken over.", extra={"error": str(error)})
            config, fallback = fallback, None
            continue
        finally:
            signals.stages = None
            if stages is not None:
                stages.close()
        assert stages is not None
        if signals.ending or not signals.reload:
            log.info("Ended.", extra={"offsets": {
                f"{topic}:{partition}": offset for (topic, partition), offset in sorted(stages.stored_offsets().items())}})
            return
        signals.reload = False
        old, config = config, _reloaded(path, config)
        fallback = None if config is old else old


class _Ended(BaseException):
    """Raised by a signal while there is no loop yet that could be told to stop."""


class Signals:
    """Signal handlers only set flags; the loop acts on them."""

    def __init__(self) -> None:
        self.stages: Stages | Replica | None = None
        self.reload = False
        self.ending = False
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGHUP, self._reload)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.stages is not None:
            self.stages.stop()
        elif not self.ending:                       # a second one must not cut the orderly end short
            self.ending = True
            raise _Ended
        self.ending = True

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self.reload = True
        if self.stages is not None:
            self.stages.stop()


def _reloaded(path: str, old: Config) -> Config:
    """The configuration as it is now, or the old one when the new one is not sound."""
    try:
        config = load(path)
        watched(config)
    except (TidemarkError, ReferenceMismatch) as error:
        log.error("Configuration not taken over.", extra={"error": str(error)})
        return old
    late = [name for name in ("listen", "token_file", "tls", "hosts", "log_level")
            if getattr(config.service, name) != getattr(old.service, name)]
    if config.limits.series != old.limits.series:
        late.append("limits.series")
    if config.alertmanager != old.alertmanager:
        late.append("alertmanager")
    if late:
        log.warning("Some changes take effect at the next start.", extra={"keys": late})
    log.info("Configuration read.", extra={"path": path})
    return config


def log_to_stderr(level: str, *, as_json: bool) -> None:
    """A fixed sentence plus data, one line each, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("kafka", "uvicorn", "urllib3", "kubernetes"):
        logging.getLogger(noisy).setLevel("ERROR" if level != "DEBUG" else "DEBUG")


class _Line(logging.Formatter):
    """`2026-01-31T12:00:00Z INFO Alarm raised. model=m episode=1`, or the same as JSON."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the data hold."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        data = {key: value for key, value in vars(record).items() if key not in _PLAIN}
        text = record.getMessage()
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps({"at": at, "level": record.levelname, "text": text, **data}, default=str)
        words = " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in data.items())
        return one_line(f"{at} {record.levelname} {text} {words}".rstrip())
