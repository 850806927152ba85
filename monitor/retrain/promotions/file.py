"""Promotion by one small JSON file that the serving code watches.

    {model, version, model_uri, reference_uri, launch_id, previous_version, promoted_at, cause,
     champion, challenger, difference: [lower, upper]}

The file is written beside its place, flushed to disk and renamed over it: a reader sees the old or the new, whole. A file
that already names this launch is left as it is, so its `promoted_at` and its inode do not change. `cause` is `better`, or
`rollback` for a model that is taken back; then the figures are null.

While a challenger is in shadow (`retrain.shadow`), a second file beside it, `champion.shadow.json` for `champion.json`, says
the same of it, with `stage: shadow` and the `column` in which its answers are to be logged; it is removed at the end.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from monitor.config import FilePromotion
from monitor.errors import LaunchFailed
from monitor.flow import Launch
from monitor.retrain.promotions import told

PROMOTION_BYTES_MAX = 1 << 20             # of our own file, read back


class File:
    """A `Promotion` by file; done as soon as it is written."""

    def __init__(self, settings: FilePromotion) -> None:
        self._place = Path(settings.path)

    def promote(self, launch: Launch, now: float) -> str:
        """Write the file, unless it names this launch; LaunchFailed(retry=True) when it cannot be read or written now."""
        before = _content(self._place)
        if before.get("launch_id") == launch.id:
            uri = before.get("previous_model_uri")
        else:
            # Whoever deploys by hand may have written the file: it then names the model that it replaces.
            uri = before.get("model_uri") if before.get("version") == launch.version else None
            uri = uri if isinstance(uri, str) else ""
            _write(self._place, {**told(launch), "previous_model_uri": uri, "promoted_at": now})
        return uri if isinstance(uri, str) else ""

    def shadow(self, launch: Launch, column: str) -> None:
        """Write champion.shadow.json beside champion.json: answer with this model, too, and log it in that column."""
        place = self._place.with_name(f"{self._place.stem}.shadow{self._place.suffix}")
        if _content(place).get("launch_id") != launch.id:
            _write(place, {**told(launch), "stage": "shadow", "column": column})

    def shadow_over(self, launch: Launch) -> None:
        """Remove that file, where it is of this launch."""
        place = self._place.with_name(f"{self._place.stem}.shadow{self._place.suffix}")
        if _content(place).get("launch_id") == launch.id:
            try:
                place.unlink(missing_ok=True)
            except OSError as error:
                raise LaunchFailed(f"retrain.promote.path: {place} cannot be removed: {error.strerror}", retry=True) from None


def _content(path: Path) -> dict[str, object]:
    """What the promotion file holds now; nothing where there is no file or it is not ours to keep."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(PROMOTION_BYTES_MAX))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    except OSError as error:
        raise LaunchFailed(f"retrain.promote.path: {path} cannot be read: {error.strerror}", retry=True) from None
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, object]) -> None:
    """Replace the file in one step that survives a power cut: flush the new one, rename it, flush the folder."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        # Tried again even where it is forbidden: hours of training are behind us, and people can mend a folder.
        raise LaunchFailed(f"retrain.promote.path: {path} cannot be written: {error.strerror}", retry=True) from None
