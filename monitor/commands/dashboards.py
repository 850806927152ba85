"""`tidemark dashboards push -c FILE`: folder, data source, the four dashboards and the marks of what happened, in Grafana.

Safe to repeat, and meant to be: from a CronJob or after a deployment. The dashboards are the JSON that the package
carries; the marks (alarms, launches, verdicts, promotions) come from the running service's API. What is given by a flag
comes before what the configuration's `grafana` says; with `--url` and `--token-file` alone no configuration is needed,
and then no marks are written unless `--service` says where the service is. Neighbours: `grafana` (writes), `story`.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from monitor.commands.grafana import Grafana, checked_url
from monitor.commands.shared import print_json
from monitor.commands.story import Mark, marks
from monitor.config import Config, listen_address, load
from monitor.config import Grafana as Settings
from monitor.errors import ConfigError, TidemarkError, one_line
from monitor.expose.api import read_token
from monitor.expose.views import Alarms, Triggers

#: In the order in which they are written; `fleet` is what the others lead back to.
NAMES = ("fleet", "model", "retraining", "service")
FOLDER_UID, DATASOURCE_UID = "tidemark", "tidemark-prometheus"
SECONDS = 10.0
#: The service keeps a hundred alarms and launches of weeks: far below.
ANSWER_BYTES = 64 << 20

T = TypeVar("T")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark dashboards`."""
    parser.add_argument("action", choices=("push",), help="what to do")
    parser.add_argument("-c", "--config", metavar="FILE", help="the configuration: its `grafana` and where the service listens")
    parser.add_argument("--url", help="Grafana's address (default: grafana.url)")
    parser.add_argument("--token-file", metavar="FILE", help="file with Grafana's token (default: grafana.token_file)")
    parser.add_argument("--ca-file", metavar="FILE", help="certificates to check Grafana's against (default: grafana.ca_file)")
    parser.add_argument("--prometheus-url", metavar="URL", help="Prometheus as Grafana reaches it; makes a data source "
                        "(default: grafana.prometheus_url; none: a data source that is there is used)")
    parser.add_argument("--service-url", metavar="URL", help="the service as people reach it, for links (default: "
                        "grafana.service_url)")
    parser.add_argument("--folder", metavar="TITLE", help="title of the folder, if it is made (default: grafana.folder)")
    parser.add_argument("--service", metavar="URL", help="the running service (default: service.listen of the configuration)")
    parser.add_argument("--service-token-file", metavar="FILE", help="file with its token (default: service.token_file)")
    parser.add_argument("--no-annotations", action="store_true", help="write no marks: the service need not run")
    parser.add_argument("--json", action="store_true", help="for programs")


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of each part: created, updated or unchanged."""

    url: str
    folder: str
    datasource: str | None
    dashboards: dict[str, str]
    annotations: dict[str, int] | None


def run(args: argparse.Namespace) -> int:
    """Push; 0 when everything is there."""
    config = load(args.config) if args.config else None
    settings = _settings(args, config)
    found = None if args.no_annotations else _story(args, config)
    pushed = push(settings, found)
    if args.json:
        print_json(asdict(pushed))
        return 0
    print(f"folder {settings.folder}: {pushed.folder}")
    print(f"data source {DATASOURCE_UID}: {pushed.datasource}" if pushed.datasource is not None else
          "data source: none made, the dashboards use one that is there (--prometheus-url makes one)")
    for name, outcome in pushed.dashboards.items():
        print(f"{pushed.url}/d/tidemark-{name}: {outcome}")
    if pushed.annotations is None:
        print("annotations: none written" + ("" if args.no_annotations else " (--service or -c says where the service is)"))
    else:
        print("annotations: " + ", ".join(f"{count} {outcome}" for outcome, count in pushed.annotations.items()))
    return 0


def push(settings: Settings, story: list[Mark] | None) -> Pushed:
    """Write everything to the Grafana that `settings` names (`url` and `token_file` are given)."""
    assert settings.url is not None
    assert settings.token_file is not None
    token = _token(settings.token_file, "grafana.token_file")
    grafana = Grafana(settings.url, token, ca_file=settings.ca_file, where="grafana.url")
    for name in ("prometheus_url", "service_url"):
        if (address := getattr(settings, name)) is not None:
            checked_url(address, f"grafana.{name}")
    try:
        folder, datasource = grafana.folder(FOLDER_UID, settings.folder), None
        if settings.prometheus_url is not None:
            datasource = grafana.datasource(DATASOURCE_UID, "tidemark Prometheus", settings.prometheus_url)
        message = f"tidemark {_own_version()}"
        saved = {name: grafana.dashboard(tree, FOLDER_UID, message) for name, tree in trees(settings.service_url).items()}
        marked = None if story is None else grafana.marks(story)
    finally:
        grafana.close()
    return Pushed(grafana.url, folder, datasource, {name: str(outcome) for name, outcome in saved.items()},
                  None if marked is None else {str(outcome): count for outcome, count in marked.items()})


def trees(service_url: str | None = None) -> dict[str, dict[str, Any]]:
    """The dashboards that the package carries, with the service's address in the variable that they have for it."""
    folder = files("dashboards") / "generated"
    try:
        found = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}
    except (OSError, ValueError) as error:
        raise TidemarkError(f"{folder}: expected the dashboards {', '.join(NAMES)}, got {one_line(str(error))}; install again"
                            ) from None
    for tree in found.values():
        for variable in tree["templating"]["list"]:
            if variable["name"] == "service" and service_url is not None:
                variable["query"] = service_url.rstrip("/")
    return found


def _settings(args: argparse.Namespace, config: Config | None) -> Settings:
    """Flags before the configuration; ConfigError where nothing says which Grafana."""
    given = {name: getattr(args, name) for name in ("url", "token_file", "ca_file", "prometheus_url", "service_url", "folder")}
    settings = msgspec.structs.replace(config.grafana if config is not None else Settings(),
                                       **{name: value for name, value in given.items() if value is not None})
    for name, flag in (("url", "--url"), ("token_file", "--token-file")):
        if getattr(settings, name) is None:
            raise ConfigError(f"grafana.{name}: expected a value, got none; set it in the configuration or give {flag}")
    return settings


def _story(args: argparse.Namespace, config: Config | None) -> list[Mark] | None:
    """The marks of what the running service tells; None where nothing says where it is."""
    token_file = args.service_token_file or (config.service.token_file if config is not None else None)
    if args.service is not None:
        checked_url(args.service, "--service")
        base = args.service.rstrip("/")
    elif config is not None:
        host, port = listen_address(config.service.listen)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)    # one that listens everywhere is asked on this machine
        base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    else:
        return None
    token = read_token(token_file) if token_file is not None else None
    alarms, launches = _read(base, "/api/v1/alarms", token, Alarms), _read(base, "/api/v1/triggers", token, Triggers)
    return marks(alarms.alarms, launches.triggers)


def _read(base: str, path: str, token: str | None, kind: type[T]) -> T:
    """One answer of the running service."""
    request = urllib.request.Request(base + path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return msgspec.json.decode(answer.read(ANSWER_BYTES), type=kind)
    except urllib.error.HTTPError as error:
        why = "its token; give --service-token-file" if error.code == 401 else "tidemark; is this its address?"
        raise TidemarkError(f"{base}{path}: expected an answer of the service, got {error.code}; it wants {why}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise TidemarkError(f"{base}: expected the running service there, got {one_line(str(reason))}; is it running? "
                            "(--no-annotations pushes without it)") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise TidemarkError(f"{base}{path}: expected tidemark's answer, got something else ({one_line(str(error))[:120]}); is "
                            "this its address, and of the same version?") from None


def _token(path: str, where: str) -> str:
    """A token of Grafana, blanks around it removed."""
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{where}: expected a file with Grafana's token, got {path!r} ({why}); write one") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: expected a file with one token and nothing else, got {path!r} with "
                          f"{'nothing' if not token else 'blanks or other characters'} in it; write it anew")
    return token


def _own_version() -> str:
    try:
        return version("tidemark")
    except PackageNotFoundError:
        return "(not installed)"
