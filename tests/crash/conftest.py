"""What all tests of crashes share: no reports are made beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from monitor.expose.report_maker import Maker


@pytest.fixture(scope="module", autouse=True)
def no_evidently() -> Iterator[None]:
    """Rows for reports are kept in the state, as ever; but evidently's own process, 2 s of a processor each, is not begun.

    A service that is built a hundred times on the same alarm would begin it a hundred times, to kill it at once. It ends with
    each module: in the same process, tests of other folders have reports made.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Maker, "_begin", lambda maker, name, model: None)
        yield
