"""Promotion: the challenger that was judged better becomes the champion, told to the serving code by one small file.

    {model, version, model_uri, reference_uri, launch_id, previous_version, promoted_at,
     champion, challenger, difference: [lower, upper]}

Order, which a crash may cut anywhere:

 1. The new reference is read and checked against the monitor's columns. One that the monitor could not judge by refuses
    the promotion: a model whose drift nobody can see is not put in production.
 2. The file is written beside its place, flushed to disk and renamed over it: a reader sees the old or the new, whole.
 3. `launch` saves the state `promoted`. If we are killed before that, the promotion is asked for again: a file that
    already names this launch is left as it is, so its `promoted_at` and its inode do not change.
 4. The pipeline cuts over to the new reference at a recorded offset (`Ledger.cut_over`), in its own transaction.

Neighbours: `launch` calls this, `challenger` made the verdict and reads files from wherever the trainer left them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from detectors.reference import Reference, ReferenceMismatch
from monitor.config import FilePromotion
from monitor.errors import LaunchFailed, TidemarkError
from monitor.flow import Launch
from monitor.retrain.challenger import ContractBroken, read_output

REFERENCE_BYTES_MAX = 256 << 20           # far above 2,000 columns with 200 bins; a bound on what is read into memory
PROMOTION_BYTES_MAX = 1 << 20             # of our own file, read back


class PromotionRefused(TidemarkError):
    """The challenger does not become the champion; the text says why, for people."""


def promote(target: FilePromotion | None, launch: Launch, *, current: Reference, now: float) -> Reference:
    """Put a judged launch's challenger in production; returns its reference, checked, to cut over to.

    current : the reference that the monitor judges by now      now : wall-clock seconds since 1970

    Asked for the same launch again it changes nothing. Raises PromotionRefused when the verdict is not "better", when
    nothing is configured to promote with, or the new reference does not fit; LaunchFailed(retry=True) when a file
    cannot be read or written now.
    """
    if launch.verdict != "better":
        raise PromotionRefused(f"the challenger is {launch.verdict or 'not judged'}: {launch.detail}")
    reference = checked_reference(launch, current)
    if target is None:
        raise PromotionRefused(f"the challenger is better, but retrain.promote is not configured; "
                               f"deploy {launch.model_uri} by hand and set the monitor's version and reference")
    path = Path(target.path)
    if _promoted_launch(path) != launch.id:
        _write(path, {
            "model": launch.model, "version": launch.new_version, "model_uri": launch.model_uri,
            "reference_uri": launch.reference_uri, "launch_id": launch.id, "previous_version": launch.version,
            "promoted_at": now, "champion": launch.champion, "challenger": launch.challenger,
            "difference": [launch.difference_lower, launch.difference_upper],
        })
    return reference


def checked_reference(launch: Launch, current: Reference) -> Reference:
    """The challenger's reference, when it can judge what the monitor reads; PromotionRefused otherwise."""
    try:
        reference = load_reference(launch.reference_uri)
        reference.require(current.columns)
    except (ReferenceMismatch, ContractBroken) as error:
        raise PromotionRefused(f"the challenger is better, but its reference does not fit: {error}") from None
    if reference.too_small:
        raise PromotionRefused(f"the challenger is better, but its reference has {reference.events:,} events, too few "
                               "to see any drift by; let the trainer fit it on more")
    return reference


def load_reference(uri: str) -> Reference:
    """A reference from a path or a URI.

    Raises ReferenceMismatch or ContractBroken for what is no reference, LaunchFailed(retry=True) for one out of reach.
    """
    content = read_output(uri, REFERENCE_BYTES_MAX)
    if content is None:
        raise ContractBroken(f"{uri}: expected the new reference, got nothing; let the trainer write it")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReferenceMismatch(f"{uri}: expected UTF-8 text, got {error}; let the trainer write it again") from None
    return Reference.from_json(text, uri)


def _promoted_launch(path: Path) -> str | None:
    """The launch that the promotion file names now; None where there is no file or it is not ours to keep."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(PROMOTION_BYTES_MAX))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise LaunchFailed(f"retrain.promote.path: {path} cannot be read: {error.strerror}", retry=True) from None
    name = content.get("launch_id") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


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
