"""What a scrape says against what the catalogue says, both ways: of a test's exporter or of the whole service."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from monitor.metrics import CATALOGUE, FOREIGN_PREFIXES

_HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def differences(scrape: str, *, complete: bool = False) -> list[str]:
    """Every way in which names, types, help texts and label sets differ; empty if none does.

    complete : every family has a series, the ones that need a cause (a launch) too; otherwise those that a running
               service always has
    """
    found: list[str] = []
    lines = [line.split(" ", 3) for line in scrape.splitlines() if line.startswith("# ")]
    shown = {line[2]: line[3] for line in lines if line[1] == "TYPE"}
    helped = {line[2]: line[3] for line in lines if line[1] == "HELP"}
    for name, kind in shown.items():
        if name not in CATALOGUE and not name.startswith(FOREIGN_PREFIXES):
            found.append(f"{name} is shown but not in the catalogue")
        elif name in CATALOGUE and kind != CATALOGUE[name].type:
            found.append(f"{name} is shown as {kind}, the catalogue says {CATALOGUE[name].type}")
        elif name in CATALOGUE and helped.get(name) != CATALOGUE[name].help:
            found.append(f"{name} has another help text than the catalogue")
    found += [f"{name} is in the catalogue but not shown" for name in CATALOGUE if name not in shown]

    with_series = set()
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            name = sample.name
            if name not in CATALOGUE:
                part = next((part for part in _HISTOGRAM_PARTS if name.endswith(part)), "")
                name = name.removesuffix(part)
            if name.startswith(FOREIGN_PREFIXES):
                continue
            if name not in CATALOGUE:
                found.append(f"{sample.name} has a series but is not in the catalogue")
                continue
            with_series.add(name)
            labels = set(sample.labels) - ({"le"} if CATALOGUE[name].kind == "histogram" else set())
            if labels != set(CATALOGUE[name].labels):
                found.append(f"{sample.name} has the labels {sorted(labels)}, the catalogue says "
                             f"{sorted(CATALOGUE[name].labels)}")
    found += [f"{metric.name} has no series" for metric in CATALOGUE.values()
              if metric.name not in with_series and (complete or metric.always)]
    return sorted(set(found))


def series_of(scrape: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Name and labels -> value of every series of ours; a repeated one is an error, as it is for Prometheus."""
    series: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            if sample.name.startswith("tidemark_"):
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in series, f"twice: {key}"
                series[key] = sample.value
    return series
