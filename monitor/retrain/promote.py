"""Promotion: the challenger that was judged better becomes the champion, and an earlier champion may be taken back.

Order, which a crash may cut anywhere:

 1. The new reference is read and checked against the monitor's columns. One that the monitor could not judge by refuses
    the promotion: a model whose drift nobody can see is not put in production.
 2. The configured promotion (`promotions`: file, webhook, kserve) puts the model in production, perhaps over many turns.
 3. `launch` saves the state `promoted`, with the model and the reference that it replaces. If we are killed before that,
    the promotion is asked for again, which changes nothing.
 4. The pipeline cuts over to the new reference at a recorded offset (`Ledger.cut_over`), in its own transaction.

A roll-back goes the same way: `rolled_back` writes the record of a promotion to an earlier model, whose reference the
store has kept, and the steps 2 to 4 carry it out. So it happens once, whatever crashes, and is told wherever launches are.
What can be gone back to is what the records of promotions say was champion before. Neighbours: `launch` calls this,
`challenger` made the verdict and reads files from wherever the trainer left them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detectors.reference import Reference, ReferenceMismatch
from monitor.errors import TidemarkError
from monitor.flow import Launch
from monitor.retrain.challenger import ContractBroken, read_output, roots
from monitor.retrain.ledger import KEPT_REFERENCE, launch_id
from monitor.retrain.promotions import (
    ROLLBACK,
    ChallengerUnfit,
    Promotion,
    PromotionRefused,
    PromotionWaits,
    promotion_for,
)

__all__ = ["ROLLBACK", "ChallengerUnfit", "Promoted", "Promotion", "PromotionRefused", "PromotionWaits", "checked_reference",
           "load_reference", "promote", "promotion_for", "rolled_back"]

REFERENCE_BYTES_MAX = 256 << 20           # far above 2,000 columns with 200 bins; a bound on what is read into memory

Kept = Callable[[str], Reference]


@dataclass(frozen=True, slots=True)
class Promoted:
    """What came of a promotion: the reference to cut over to, and the URI of the replaced model ("" where it is not known)."""

    reference: Reference
    previous_model_uri: str


def promote(target: Promotion | None, launch: Launch, *, current: Reference, now: float, kept: Kept | None = None,
            result_uris: Sequence[str] = ()) -> Promoted:
    """Put a judged launch's challenger, or the model that is rolled back to, in production.

    current : the reference that the monitor judges by now      now : wall-clock seconds since 1970
    kept    : gives a reference that the state holds, by its digest

    Asked for the same launch again it changes nothing. Raises PromotionRefused when the verdict is not "better" or
    nothing is configured to promote with, ChallengerUnfit when the new reference does not fit, PromotionWaits while it lasts;
    LaunchFailed(retry=True) when a call fails now.
    """
    if launch.launcher != ROLLBACK and launch.verdict != "better":
        raise PromotionRefused(f"the challenger is {launch.verdict or 'not judged'}: {launch.detail}")
    reference = checked_reference(launch, current, kept, result_uris)
    if target is None:
        raise PromotionRefused(f"the challenger is better, but retrain.promote is not configured; "
                               f"deploy {launch.model_uri} by hand and set the monitor's version and reference")
    return Promoted(reference, target.promote(launch, now))


def checked_reference(launch: Launch, current: Reference, kept: Kept | None = None,
                      result_uris: Sequence[str] = ()) -> Reference:
    """The challenger's reference, when it can judge what the monitor reads; ChallengerUnfit otherwise."""
    who = "the earlier model cannot be judged" if launch.launcher == ROLLBACK else "the challenger is better"
    try:
        reference = load_reference(launch.reference_uri, kept, roots(launch, result_uris))
        reference.require(current.columns)
    except (ReferenceMismatch, ContractBroken) as error:
        raise _refusal(launch)(f"{who}, but its reference does not fit: {error}") from None
    if reference.too_small and launch.launcher != ROLLBACK:
        raise ChallengerUnfit(f"the challenger is better, but its reference has {reference.events:,} events, too few "
                              "to see any drift by; let the trainer fit it on more")
    return reference


def _refusal(launch: Launch) -> type[PromotionRefused]:
    """Of a launch it is the trainer's defect; of a roll-back nobody's."""
    return PromotionRefused if launch.launcher == ROLLBACK else ChallengerUnfit


def load_reference(uri: str, kept: Kept | None = None, roots: Sequence[str] = ()) -> Reference:
    """A reference from a path or a URI below one of the folders, or from the state.

    Raises ReferenceMismatch or ContractBroken for what is no reference, LaunchFailed(retry=True) for one out of reach.
    """
    if uri.startswith(KEPT_REFERENCE):
        if kept is None:
            raise ContractBroken(f"{uri[:20]}: expected a state that keeps references, got none; start the service")
        return kept(uri.removeprefix(KEPT_REFERENCE))
    content = read_output(uri, REFERENCE_BYTES_MAX, roots)
    if content is None:
        raise ContractBroken(f"{uri}: expected the new reference, got nothing; let the trainer write it")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReferenceMismatch(f"{uri}: expected UTF-8 text, got {error}; let the trainer write it again") from None
    return Reference.from_json(text, uri)


# -- back to an earlier model ------------------------------------------------------------------------------------------

def rolled_back(launches: Sequence[Launch], model: str, version: str, to: str, *, by: str, why: str, at: float, now: float,
                uris: Callable[[str], str], kept: Kept) -> Launch:
    """The record that takes a model back to an earlier version; the one that is under way where it asks for the same.

    launches : of the model, oldest first       version : the champion now       to : where to; "" for the one before it
    at       : event time, seconds since 1970   now     : wall clock            uris : model URI of a version, "" where unknown
    Raises TidemarkError, in one line, when there is nothing to go back to or something else is under way.
    """
    past = [launch for launch in launches if launch.state == "promoted" and launch.cut_over_at]
    target = to or next((launch.version for launch in reversed(past)
                         if launch.new_version == version and launch.launcher != ROLLBACK), "")
    # A challenger that is judged, in shadow or half promoted does not hold it back: it waits, and is refused as overtaken.
    under_way = next((launch for launch in launches if (launch.state == "judged" and launch.launcher == ROLLBACK) or (
        launch.state == "promoted" and not launch.cut_over_at)), None)
    if under_way is not None:
        if under_way.launcher == ROLLBACK and under_way.new_version == target:
            return under_way
        raise TidemarkError(f"{model}: expected no promotion under way, got launch {under_way.id}, which is "
                            f"{under_way.state}; ask again when it has ended")
    known = sorted({launch.version for launch in past if launch.previous_digest} - {version})
    there = f"; --to may name {', '.join(known)}" if known else ""
    if not target:
        raise TidemarkError(f"{model}: expected a champion that was promoted, got version {version}, with which the monitor "
                            f"began or to which it went back: there is nothing to go back to{there}")
    if target == version:
        raise TidemarkError(f"{model}: expected an earlier version, got {version[:80]!r}, which is the champion{there}")
    left = next((launch for launch in reversed(past) if launch.version == target), None)
    if left is None or not left.previous_digest:
        raise TidemarkError(f"{model}: expected a version that was champion and whose reference is kept, got "
                            f"{target[:80]!r}{there or ': there is none'}")
    uri = left.previous_model_uri or next((launch.model_uri for launch in reversed(past) if launch.new_version == target), "")
    uri = uri or uris(target)
    if not uri:
        raise TidemarkError(f"{model}: expected to know where the model of version {target} is, but nothing has said so; set "
                            "retrain.model_uri of the monitor, or deploy it by hand")
    kept(left.previous_digest)                      # raises where the state has lost it
    return _record(launches, model, version, target, uri, left.previous_digest, by=by, why=why, at=at, now=now)


def _record(launches: Sequence[Launch], model: str, version: str, to: str, uri: str, digest: str, *, by: str, why: str,
            at: float, now: float) -> Launch:
    # Going back once more is another launch: each names the one before it, which is always held.
    before = launches[-1].id if launches else ""
    words = f"rolled back from version {version} to {to} by hand" + (f": {why}" if why else "")
    # In the form of an alarm's reason, for whoever reads those; no column moved.
    reason = {"columns": [], "columns_total": 0, "effects": [], "window": {"since": at, "at": at, "panes": 0, "events": 0},
              "scores": {"alarm": None, "severe": None}, "kind": ROLLBACK, "segment": "all"}
    return Launch(
        id=launch_id(model, version, 0, f"{ROLLBACK}\0{to}\0{before}"), model=model, version=version, episode=0,
        launcher=ROLLBACK, state="judged", reason=json.dumps(reason), steps=(("judged", now),), detail=words, by=by, why=why,
        new_version=to, model_uri=uri, reference_uri=f"{KEPT_REFERENCE}{digest}")
