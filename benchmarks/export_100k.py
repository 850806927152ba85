"""100,000 series whose values change each cycle: setting gauges and writing them, against our exposition.

The peer keeps the children of its gauges (its fastest public way), sets each and calls `generate_latest`. Ours fills the
prepared text. Both texts are read back by the client library's parser and must hold the same series and values.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.measure import Bench
from monitor import metrics
from monitor.expose.exposition import Page, Series

SERIES = 100_000
DETECTORS = tuple(metrics.DETECTORS)


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("export_100k: set + generate_latest / prepared text", argv)
    number = bench.sized(SERIES)
    rng = np.random.default_rng(7)
    labels = [("model", "1", "all", "input", f"column_{i // len(DETECTORS)}", DETECTORS[i % len(DETECTORS)])
              for i in range(number)]
    cycle = [rng.gamma(0.5, 1.0, number)]

    registry = CollectorRegistry()
    gauge = Gauge(metrics.SCORE.name, metrics.SCORE.help, metrics.SCORE.labels, registry=registry)
    children = [gauge.labels(*values) for values in labels]
    series = Series(metrics.SCORE, labels)

    def peer() -> bytes:
        for child, value in zip(children, cycle[0].tolist(), strict=True):
            child.set(value)
        return generate_latest(registry)

    def ours() -> bytes:
        page = Page()
        page.add(metrics.SCORE, series.text(cycle[0]), len(series))
        cycle[0] = np.roll(cycle[0], 1)             # the next cycle's values, counted against ours
        return page.finished().text()

    def equal(theirs: bytes, own: bytes) -> bool:
        return parsed(theirs) == parsed(own)

    bench.compare(f"{number:,} series, values changed each cycle", peer=peer, ours=ours, target=8, equal=equal,
                  peer_name="prometheus_client")
    bench.fact("text per series", len(ours()) / number, "B")
    return bench.finish()


def parsed(text: bytes) -> dict[tuple[str, ...], float]:
    """Label values -> value, as a reader of the format sees them; both sides are asked at the same values."""
    return {tuple(sample.labels[name] for name in metrics.SCORE.labels): sample.value
            for family in text_string_to_metric_families(text.decode()) for sample in family.samples
            if sample.name == metrics.SCORE.name}


if __name__ == "__main__":
    sys.exit(main())
