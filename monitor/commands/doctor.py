"""`tidemark doctor -c FILE`: is everything that the configuration names there, and with which rights?

One line per check: ok or not, what was tried, what to do. Exit code 1 when something is not. Nothing is started, written
or trained: a folder is asked for its rights, a cluster for a Job that does not exist.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from monitor.commands.shared import print_json
from monitor.config import (
    AirflowLauncher,
    Alertmanager,
    Config,
    FilePromotion,
    KfpLauncher,
    KServePromotion,
    KubernetesLauncher,
    LocalLauncher,
    Monitor,
    WebhookLauncher,
    WebhookPromotion,
    listen_address,
    load,
    state_path,
)
from monitor.errors import ConfigError, ReferenceMismatch, StateInUse, TidemarkError, one_line
from monitor.expose.alert_door import Door, context_of
from monitor.expose.api import Server, application, read_token
from monitor.expose.exporter import Exporter
from monitor.flow import Launch
from monitor.ingest import librdkafka
from monitor.ingest.kafka import probe
from monitor.ingest.state_probe import probe_replicas
from monitor.replicas import refuse_unsupported
from monitor.retrain.launchers import launcher_for
from monitor.retrain.launchers.airflow import Airflow
from monitor.retrain.launchers.kfp import KubeflowPipelines
from monitor.retrain.launchers.kubernetes import KubernetesJobs
from monitor.retrain.promotions import promotion_for
from monitor.retrain.promotions.kserve import KServe
from monitor.state.store import Store
from monitor.watched import watched

Check = tuple[str, bool, str]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark doctor`."""
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print every check."""
    config = load(args.config)
    checks = list(_checks(config))
    if args.json:
        print_json([{"check": name, "ok": ok, "text": text} for name, ok, text in checks])
    else:
        for name, ok, text in checks:
            print(f"{'ok  ' if ok else 'FAIL'} {one_line(f'{name}: {text}')}")
    return 0 if all(ok for _, ok, _ in checks) else 1


def _checks(config: Config) -> Iterator[Check]:
    """One after the other, the cheap ones first; one that fails ends none of the others."""
    service = config.service
    yield _tried("references", lambda: f"{len(watched(config))} loaded")
    yield (state := _tried("state", lambda: _state(config)))
    is_running = state[2].endswith("running service")
    if not is_running:                              # a running service has its address itself
        yield _tried("listen", lambda: _listen(config))
    if (token := service.token_file) is not None:
        yield _tried("token", lambda: f"{token} holds a token of {len(read_token(token))} characters")
    kind, _, place = service.dead_letters.partition(":")
    if kind == "file":
        yield _tried("dead letters", lambda: _writable("service.dead_letters", Path(place).parent))
    for url in config.alertmanager.urls:
        yield _tried(f"alertmanager {url}", lambda url=url: _alertmanager(url, config.alertmanager))  # type: ignore[misc]
    for index, monitor in enumerate(config.monitors):
        yield from _retraining(f"monitors[{index}].retrain", monitor)
    for path in config.files.paths:
        yield _tried(f"file {path}", lambda path=path: _readable("files.paths", path))  # type: ignore[misc]
    if config.kafka.bootstrap_servers:
        topics = {monitor.topic for monitor in config.monitors} | ({place} if kind == "topic" else set())
        yield from (librdkafka.probe if config.kafka.transport == "librdkafka" else probe)(config.kafka, sorted(topics))
    if (replicas := service.replicas) is not None:
        yield _tried("replicas configuration", lambda: _sharing(config))
        yield from probe_replicas(config.kafka, replicas, sorted({monitor.topic for monitor in config.monitors}), promotes=any(
            monitor.retrain is not None and monitor.retrain.promote is not None for monitor in config.monitors))


def _retraining(where: str, monitor: Monitor) -> Iterator[Check]:
    retrain = monitor.retrain
    if retrain is None:
        return
    launcher = retrain.launcher
    if isinstance(launcher, LocalLauncher):
        yield _tried(f"launcher of {monitor.model}", lambda: _command(f"{where}.launcher.command", launcher.command[0]))
    elif isinstance(launcher, KubernetesLauncher):
        yield _tried(f"launcher of {monitor.model}", lambda: _cluster(f"{where}.launcher", launcher, retrain.capture_uri))
    else:
        yield _tried(f"launcher of {monitor.model}", lambda: _server(f"{where}.launcher", launcher))
    if "://" not in retrain.capture_uri:
        yield _tried(f"captured events of {monitor.model}", lambda: _writable(f"{where}.capture_uri", Path(retrain.capture_uri)))
    if (promote := retrain.promote) is not None:
        yield _tried(f"promotion of {monitor.model}", lambda: _promotion(f"{where}.promote", promote))


def _sharing(config: Config) -> str:
    refuse_unsupported(config)
    return "everything that it asks for can be shared"


def _alertmanager(url: str, settings: Alertmanager) -> str:
    """Whether it takes an empty list of alerts from us."""
    Door(url.rstrip("/"), settings, context_of(settings)).post(b"[]")
    return "it takes our alerts"


def _tried(name: str, check: Callable[[], str]) -> Check:
    try:
        return name, True, check()
    except (TidemarkError, ReferenceMismatch) as error:
        return name, False, str(error)


def _state(config: Config) -> str:
    path = state_path(config.service.state)
    if not path.exists():
        _writable("service.state", path.parent)
        return f"{path} does not exist yet; the first start makes it"
    try:
        Store(path).close()
    except StateInUse:
        return f"{path} is held by a running service"
    return f"{path} can be read and written"


def _listen(config: Config) -> str:
    server = Server(application(Exporter(1)), *listen_address(config.service.listen))
    server.start()
    server.stop()
    return f"{config.service.listen} is free"


def _writable(where: str, folder: Path) -> str:
    """The folder, or the nearest one above it that exists and in which it will be made."""
    folder = folder.absolute()
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{where}: expected a folder that can be written, got {nearest}; mend its rights or the path")
    return f"{folder} can be written" if folder == nearest else f"{folder} does not exist yet; it will be made"


def _readable(where: str, path: str) -> str:
    if not Path(path).is_file() or not os.access(path, os.R_OK):
        raise ConfigError(f"{where}: expected a file that can be read, got {path}; mend the path or its rights")
    return "can be read"


def _command(where: str, program: str) -> str:
    if program == "{python}":
        return "runs this Python"
    if (found := shutil.which(program)) is None:
        raise ConfigError(f"{where}: expected a program on PATH, got {program!r}; give its path")
    return f"runs {found}"


def _server(where: str, launcher: AirflowLauncher | KfpLauncher | WebhookLauncher) -> str:
    """Ask for a run that does not exist. A webhook is not asked anything: an event would start a training."""
    made = launcher_for(launcher, path=where)
    if isinstance(made, Airflow):
        return made.look()
    if isinstance(made, KubeflowPipelines):
        made.status(Launch(id="0" * 12, model="doctor", version="0", episode=0, launcher=made.name, state="submitted",
                           reason="{}", steps=()))
        return "runs can be listed"
    return "its files can be read; it is not asked, because an event would start a training"


def _promotion(where: str, promote: FilePromotion | WebhookPromotion | KServePromotion) -> str:
    """Look at what would be changed, and change nothing."""
    if isinstance(promote, FilePromotion):
        return _writable(f"{where}.path", Path(promote.path).parent)
    made = promotion_for(promote, path=where)
    if isinstance(made, KServe):
        return made.look()
    return "its files can be read; it is not asked, because an event would deploy a model"


def _cluster(where: str, launcher: KubernetesLauncher, capture_uri: str) -> str:
    """Ask for a training that does not exist, then send one as a dry run: rights, admission and validation answer."""
    nobody = Launch(id="0" * 12, model="doctor", version="0", episode=0, launcher="kubernetes", state="submitted",
                    reason="{}", steps=())
    jobs = KubernetesJobs(launcher, capture_uri=capture_uri, path=where)
    jobs.status(nobody)
    jobs.rehearse(nobody)
    return f"a {launcher.kind} can be made and read in namespace {launcher.namespace}"
