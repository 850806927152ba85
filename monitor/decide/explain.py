"""Why a stream is quiet, or not: the sentences behind `tidemark explain`, one per column.

A pure function of what was decided: the same reference, scores and machine state that the loop had. Every silence has a
reason from a short list: too few events, below `ignore_below`, within chance, or a reference that cannot tell.
Neighbours: `policy` decided, `commands.explain` loads the state and prints.
"""

from __future__ import annotations

import numpy as np

from detectors.reference import Reference
from detectors.scan import Scan, Scores
from monitor.decide.policy import PolicyState
from monitor.flow import ColumnReason, effect_text

__all__ = ["ColumnReason", "columns", "effect_text", "headline"]


def headline(model: str, reference: Reference, scores: Scores | None, state: PolicyState, panes: int) -> list[str]:
    """What is decided about the stream as a whole, in sentences."""
    lines = []
    if state.severe.firing:
        lines.append(f"{model} drifts, surely above retrain.above: episode {state.severe.episode}.")
    elif state.alarm.firing:
        lines.append(f"{model} has an open alarm of drift: episode {state.alarm.episode}, below retrain.above.")
    if state.quality.firing:
        lines.append(f"{model} has an open alarm of data quality: episode {state.quality.episode}. It starts no retraining.")
    if not lines and panes == 0:
        lines.append(f"{model} has decided no pane of this reference yet: no events, or event time has not passed a pane's end.")
    elif not lines:
        lines.append(f"{model} is quiet over the last {min(panes, 128)} panes.")
    if scores is not None and not np.isnan(scores.score):
        lines.append(
            f"Strongest evidence {scores.score:.2f} of an alarm's (z {scores.score * scores.threshold:.2f}, threshold "
            f"{scores.threshold:.2f}); of a retraining's {scores.severe:.2f}."
        )
    if reference.too_small:
        lines.append(f"The reference has only {reference.events} rows: nothing is decided, only distances are shown.")
    elif reference.inadequate:
        lines.append(f"The reference is inadequate ({reference.inadequate}): alarms are raised, no retraining is started.")
    if state.panes_per_false_alarm:
        lines.append(f"One false alarm is accepted in {state.panes_per_false_alarm:,.0f} panes on average.")
    return lines


def columns(reference: Reference, scan: Scan, scores: Scores) -> list[ColumnReason]:
    """One answer per column, strongest evidence first."""
    roles = [column.role if column else "joint" for column in reference.column_of_row]
    strongest = scores.evidence
    longest = float(np.max(scores.window_events, initial=0))
    visible = scan.smallest_visible_shift(longest)
    return [
        ColumnReason(
            scores.rows[j], roles[j], scores.state[j], float(strongest[j]), float(scores.effect[j]),
            float(scores.effect_lower[j]), float(scores.effect_upper[j]), scores.unit[j], scores.what[j],
            int(scores.best_window[j]), int(scores.window_events[j]), float(visible[j]), _sentence(scan, scores, j),
        )
        for j in np.argsort(-strongest, kind="stable")
    ]


def _sentence(scan: Scan, scores: Scores, j: int) -> str:
    state = scores.state[j]
    effect = effect_text(scores.what[j], scores.effect[j], scores.effect_lower[j], scores.effect_upper[j], scores.unit[j])
    if state == "drift":
        return f"moved: {effect}"
    if state == "too_few_events":
        return f"too few events to tell ({int(scores.window_events[j])} in the window)"
    if state == "below_ignore":
        return f"certain but small, below ignore_below {scan.tolerance:g}: {effect}"
    return f"within chance: {effect}"
