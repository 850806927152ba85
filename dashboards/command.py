"""`tidemark render [-c FILE] -o FOLDER`: rules and dashboards as files, the rules with the limits of a configuration.

    rules.yaml            for `rule_files` of a Prometheus            dashboards/*.json     for Grafana, as they are
    prometheusrule.yaml   the same rules for the Prometheus operator

The command table of `monitor.cli` names this module as text and imports it only when asked, as it does with every command:
the layers stay as they are, and the service never loads what people look at. Nothing is started, and nothing outside the
configuration and the folder is read or written. Rendering twice writes the same bytes.
"""

from __future__ import annotations

import argparse
import re
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from dashboards.rules import Settings
from dashboards.rules_alerts import alerts
from dashboards.rules_files import prometheus_rule, text
from monitor.config import load
from monitor.errors import ConfigError

_NOTE = "Rendered by `tidemark render`; change the configuration and render again."
#: What a Prometheus label may be called.
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: Labels that the rules themselves set.
_OWN = ("severity", "alertname", "tidemark_action")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark render`."""
    known = Settings()
    parser.add_argument("-c", "--config", metavar="FILE", help="the configuration; without it all models have default limits")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where to write; it is made if it is not there")
    parser.add_argument("--job", default=known.job, help="the `job` label of the service in Prometheus (%(default)s)")
    parser.add_argument("--service-url", default=known.service_url, metavar="URL", help="where people reach it (%(default)s)")
    parser.add_argument("--grafana-url", default=known.grafana_url, metavar="URL", help="where they reach Grafana (%(default)s)")
    parser.add_argument("--runbooks-url", default=known.runbooks_url, metavar="URL",
                        help="folder of the runbook pages (%(default)s)")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE",
                        help="a label of every alert, for your routing; may be repeated")
    parser.add_argument("--operator-label", action="append", default=[], metavar="NAME=VALUE",
                        help="a label of the PrometheusRule, which your Prometheus selects it by; may be repeated")
    parser.add_argument("--observed", action="store_true",
                        help="alert, with severity info, on further detectors, which decide nothing")
    parser.add_argument("--retrain-label", action="store_true",
                        help="give TidemarkSevereDrift the label by which Alertmanager routes it back to tidemark as a trigger")


def run(args: argparse.Namespace) -> int:
    """Write the files and say which; 0."""
    said = {
        "job": _text(args.job, "--job"), "service_url": _url(args.service_url, "--service-url"),
        "grafana_url": _url(args.grafana_url, "--grafana-url"), "runbooks_url": _url(args.runbooks_url, "--runbooks-url"),
        "labels": _labels(args.label), "observed": args.observed, "retrain_label": args.retrain_label}
    settings = Settings(**said) if args.config is None else Settings.of(load(args.config), **said)
    operator = dict(_pair(pair, "--operator-label", re.compile(r"[A-Za-z0-9./_-]+")) for pair in args.operator_label)
    files = {"rules.yaml": text(settings, _NOTE), "prometheusrule.yaml": prometheus_rule(settings, _NOTE, operator)}
    generated = resources.files("dashboards") / "generated"
    files |= {f"dashboards/{page.name}": page.read_text(encoding="utf-8")
              for page in (generated.iterdir() if generated.is_dir() else ()) if page.name.endswith(".json")}
    folder = Path(args.output)
    try:
        for name, content in sorted(files.items()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8", newline="\n")
            print(f"rendered {folder / name}")
    except OSError as error:
        raise ConfigError(f"-o: expected a folder to write in, got {args.output!r}: {error.strerror}; give another") from None
    print(f"{len(alerts(settings))} alerts for "
          + (", ".join(one.model for one in settings.limits) if settings.limits else "any model")
          + "; check them with `promtool check rules`.")
    return 0


def _url(text: str, flag: str) -> str:
    """An address that templates may be put behind: http or https, no spaces, no braces."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or re.search(r"[\s{}\"'`?#]", text):
        raise ConfigError(f"{flag}: expected an address such as https://grafana.example, got {text!r}; mend it")
    return text.rstrip("/")


def _text(text: str, flag: str) -> str:
    if not text or not text.isprintable():
        raise ConfigError(f"{flag}: expected some text, got {text!r}; mend it")
    return text


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = dict(_pair(pair, "--label", _LABEL) for pair in pairs)
    for name in labels:
        if name in _OWN:
            raise ConfigError(f"--label: expected a label of your own, got {name!r}, which the rules set; take another name")
    return labels


def _pair(pair: str, flag: str, names: re.Pattern[str]) -> tuple[str, str]:
    """NAME=VALUE; a value that Prometheus would take for a template is refused."""
    name, equals, value = pair.partition("=")
    if not equals or not names.fullmatch(name) or "{{" in value:
        raise ConfigError(f"{flag}: expected NAME=VALUE such as team=platform, got {pair!r}; mend it")
    return name, value
