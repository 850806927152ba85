"""A topic with broken events costs no more than a clean one, and every broken event is counted with its reason.

The peer is our own decoder on clean events. The broken ones are of every kind that the decoder's tests pin, but for NaN
literals, which are no defect and cost a second reading. They stand evenly among the good ones, which come in parts of a
thousand, about what a poll brings of one partition.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from benchmarks.events import MODEL, messages, stream_schema
from benchmarks.measure import Bench
from monitor.config import Kafka, Limits
from monitor.flow import Part, Rows
from monitor.ingest.columns_json import scan_of
from monitor.ingest.decode import Decoder
from monitor.ingest.source import records

EVENTS = 10_000
SHARES = (0.0001, 0.01, 0.1)
AT_MOST = 1.15
PART_EVENTS = 1_000


def poison(good: bytes) -> list[tuple[bytes | None, str]]:
    """One broken event of every kind, and the reason it must be refused for."""
    number = good[good.index(b'"n00": ') + 7:good.index(b', "n01"')]

    def with_number(text: bytes) -> bytes:
        return good.replace(b'"n00": ' + number, b'"n00": ' + text, 1)

    time = good[good.index(b'"ts": ') + 6:good.index(b', "model"')]
    return [
        (good[:-20], "json"), (with_number(b"Infinity"), "json"), (with_number(b"1e400"), "json"), (good + good, "json"),
        (with_number(b"true"), "type"), (with_number(b'"3"'), "type"), (b"null", "type"), (None, "tombstone"),
        (good.replace(b"level-", b"level\xff", 1), "encoding"), (b"\xef\xbb\xbf" + good, "encoding"),
        (good.replace(b"level-", b"\\ud800", 1), "encoding"),
        (good.replace(time, b"17000000000000000000000", 1), "timestamp"), (good.replace(time, b"null", 1), "timestamp"),
        (good[:-1] + b', "deep": ' + b"[" * 1_500 + b"]" * 1_500 + b"}", "depth"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("decode_poison: ours with broken events / ours on clean ones", argv, repeat=15)
    clean = list(messages(20, bench.sized(EVENTS, 100)))
    decoder = Decoder(MODEL, stream_schema(20), Limits())
    compiled = Decoder(MODEL, stream_schema(20), Limits(), scan=scan_of(Kafka(decoder="columns")))
    kinds = poison(next(value for value in clean if b'"n00": null' not in value and b"level-" in value))
    clean_parts = parts_of(clean)
    for share in SHARES:
        bad = max(1, round(len(clean) * share))
        values: list[bytes | None] = list(clean)
        expected: Counter[str] = Counter()
        for i in range(bad):
            value, reason = kinds[i % len(kinds)]
            values[i * len(values) // bad] = value
            expected[reason] += 1
        parts = parts_of(values)

        def counted(_: object, found: list[Rows], expected: Counter[str] = expected, events: int = len(values)) -> bool:
            return (Counter(refusal.reason for rows in found for refusal in rows.refusals) == expected
                    and sum(map(len, found)) + expected.total() == events)

        bench.compare_at_most(f"{bad} of {len(clean)} broken, columns / msgspec on clean ones",
                              easy=lambda: [decoder.decode(part) for part in clean_parts],
                              hard=lambda parts=parts: compiled.decode_all(parts),  # type: ignore[misc]
                              at_most=1.0, equal=counted, names=("clean", "broken"))
        bench.compare_at_most(f"{bad} of {len(clean)} broken", easy=lambda: [decoder.decode(part) for part in clean_parts],
                              hard=lambda parts=parts: [decoder.decode(part) for part in parts],  # type: ignore[misc]
                              at_most=AT_MOST, equal=counted, names=("clean", "broken"))
    return bench.finish()


def parts_of(values: Sequence[bytes | None]) -> list[Part]:
    """The values as a source brings them."""
    return [records("t", 0, values[i:i + PART_EVENTS], first_offset=i) for i in range(0, len(values), PART_EVENTS)]


if __name__ == "__main__":
    sys.exit(main())
