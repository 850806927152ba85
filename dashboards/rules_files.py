"""The files that Prometheus reads: the rules as a rule file, and as a manifest for the Prometheus operator.

`dashboards/generated/rules.yaml` and `deploy/prometheus/prometheusrule.yaml` are those of the default settings, checked in
and compared; `tidemark render` writes those of a configuration. Neighbours: `rules`, `rules_alerts`; `command` and `render`
write what comes from here.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from dashboards.rules import Settings, recordings
from dashboards.rules_alerts import alerts


def document(settings: Settings) -> dict[str, object]:
    """The rule file as a value."""
    return {"groups": [
        {"name": "tidemark.recordings", "rules": [one.rule() for one in recordings(settings)]},
        {"name": "tidemark.alerts", "rules": [one.rule(settings) for one in alerts(settings)]},
    ]}


def text(settings: Settings, note: str = "") -> str:
    """The rule file for Prometheus."""
    return _yaml(document(settings), note)


def prometheus_rule(settings: Settings, note: str = "", labels: Mapping[str, str] | None = None) -> str:
    """The same rules as a manifest for the Prometheus operator; `labels` are those that its Prometheus selects by."""
    own = {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/part-of": "tidemark", **(labels or {})}
    return _yaml({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
        "metadata": {"name": "tidemark", "namespace": "tidemark", "labels": own}, "spec": document(settings)}, note)


def pages() -> dict[str, str]:
    """What is checked in of it: path from the repository's root -> text."""
    note = "Rendered by `make render` from dashboards/rules.py and its neighbours; change it there."
    return {"dashboards/generated/rules.yaml": text(Settings(), note),
            "deploy/prometheus/prometheusrule.yaml": prometheus_rule(Settings(), note)}


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which writes expressions of several lines as they stand and never names a repeated value by an anchor."""

    def ignore_aliases(self, data: object) -> bool:
        """Always: a rule file is read by people."""
        return True


_Dumper.add_representer(str, lambda dumper, value: dumper.represent_scalar(
    "tag:yaml.org,2002:str", value, style="|" if "\n" in value else None))


def _yaml(value: object, note: str) -> str:
    head = f"# {note}\n" if note else ""
    return head + yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
