"""Python's garbage collector beside a stream of events: told to let be what lives as long as the process.

Idea: the collector finds unused objects that refer to each other in circles. Taking events in makes none, but it makes two
objects per message, and by the number of new objects the collector decides when to walk all the others: some 300,000 of
libraries and configuration, over and over, 130 ms a time. So, once everything is built, what is there is set apart
(`gc.freeze`), and the collector looks at new objects only after more of them than one poll brings. It stays on: a circle
that a request or a failure leaves behind is found, somewhat later.

Invariant: nothing that could be freed when `settle` is called is set apart; calling it again, after the service was built
anew, frees the old one.

Cost: one full collection (0.1-0.3 s) at every call. Gain, per event of 20 features: 0.4-2.5 us of 6-8 on the fast transport,
3 of 30 on the default one. Memory: circles of up to `YOUNG_OBJECTS` objects wait to be found.
Neighbours: `commands.run` calls it between building and reading; `benchmarks/end_to_end` measures the service with it.
"""

from __future__ import annotations

import gc

#: New objects after which the young ones are looked at: two per message of the largest poll, and as many again.
YOUNG_OBJECTS = 50_000


def settle() -> None:
    """Free what can be freed, set apart what is left, and look at new objects seldom."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
