"""Arrays in, numbers out: whether a stream still looks like its reference, and how far it moved.

    values --Reference.profile--> Profile (counts) --Ring--> windows of 1, 2, 4 ... 128 panes --Scan--> Scores

`tables` takes dicts, pandas and pyarrow as they come, `binning` turns values into bins, `profile` holds their counts and
the laws of adding them, `reference` is what "no drift" means and the file it lives in, `scan` decides, `distances` and
`tests` describe, `synthetic` makes seeded streams to try all of it on. The one invariant: everything is a function of
counts under one reference, so the order of events, the batches they came in and the workers that counted them cannot
change a result.

numpy and scipy only; nothing here knows of Kafka, files other than the reference's, clocks or the service. The names
below are what a notebook needs, loaded when first asked for; docs/library.md shows them at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectors.profile import Profile, ReferenceMismatch
    from detectors.reference import Reference
    from detectors.rows import Column
    from detectors.scan import Scan
    from detectors.scores import Scores

__all__ = ["Column", "Profile", "Reference", "ReferenceMismatch", "Scan", "Scores"]

_MODULE_OF = {"Column": "rows", "Profile": "profile", "Reference": "reference", "ReferenceMismatch": "profile",
              "Scan": "scan", "Scores": "scores"}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'detectors' has no attribute {name!r}")
    return getattr(import_module(f"detectors.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
