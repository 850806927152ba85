"""A small shift of many columns at once: one test of all means together, from counts that are there already.

Idea: a shift of 0.1 standard deviations in each of 20 columns is invisible in any one of them for thousands of events, and
0.45 standard deviations long as a vector. The mean scores of a window's columns, made independent by the reference's own
correlations, have a squared length that is known without drift (Hotelling 1931): large is a common shift.

Invariants. Only components that vary enough in the reference take part: of nearly equal columns the difference is rare and
heavy-tailed, and the joint rows watch it anyway. The length that is left after the tolerance is taken off is compared, so
no shift whose root mean square over the components is within the tolerance can raise it. Correlations were estimated on half
of the reference and design effects on all of it: the law without drift is F, with the fewer degrees of freedom of both.

Cost: one product (windows x columns x scan bins) and one of (windows x columns x components) per pane, 0.05 ms at 20
columns; nothing per event. Neighbours: `derived` has the scores and the correlations, `scan` takes this as one more test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import special

from detectors.reference import Reference
from detectors.scores import Strongest

if TYPE_CHECKING:
    from detectors.seen import Seen

Floats = NDArray[np.float64]

#: Components of less variance than this do not take part.
VARIANCE_MIN = 0.1
#: Effective events that a window needs for each component: below, the length's law is not that of normal means.
EVENTS_PER_COMPONENT = 3.0
#: Fewer degrees of freedom say nothing about the far tail.
FREEDOM_MIN = 20.0
_P_MIN = 1e-300


@dataclass(frozen=True, slots=True, eq=False)
class CommonShift:
    """The test, prepared for one reference.

    rows (d,)       : the plain columns' numbers among the rows       scores (d, K) : score of each of their scan bins
    centre (d,)     : mean scores in the reference                    whitening (d, c) : makes their means independent
    g, dof          : sum of the components' design effects, and the components that they are worth (Satterthwaite 1946)
    freedom         : degrees of freedom that correlations and design effects were estimated with
    """

    rows: NDArray[np.intp]
    scores: Floats
    centre: Floats
    whitening: Floats
    events: float
    g: float
    dof: float
    freedom: float

    @classmethod
    def of(cls, reference: Reference) -> CommonShift | None:
        """None where there are no joint rows, or nothing is left to test."""
        joint, arrays = reference.joint, reference.arrays
        if joint is None:
            return None
        wide = (joint.whitening**2).sum(axis=0) <= 1 / VARIANCE_MIN
        rows = np.flatnonzero(reference.is_plain)
        g, nu = _effects(reference, rows, joint.whitening.shape[1])
        g, nu = g[wide], nu[wide]
        if wide.sum() < 2:
            return None
        freedom = min(reference.events / 2 - wide.sum(), float(g.sum() ** 2 / max((g**2 / nu).sum(), 1e-9)))
        if freedom < FREEDOM_MIN:
            return None
        scores = np.zeros((len(rows), arrays.c0.shape[1]))
        for j, score in enumerate(joint.scores):                # turns: the columns, once per scan
            scores[j, : len(score)] = score
        raw = np.stack([np.bincount(arrays.scan_of_fine[j], weights=reference.records[j].counts, minlength=scores.shape[1])
                        for j in rows])
        return cls(rows, scores, (raw * scores).sum(axis=1) / reference.events, joint.whitening[:, wide],
                   float(reference.events), float(g.sum()), float(g.sum() ** 2 / (g**2).sum()), freedom)

    def means(self, n: Floats, N: Floats) -> Floats:
        """Difference of each column's mean score, (W, d), in windows of scan counts n (W, J, K) and events N (W, J)."""
        shift: Floats = np.einsum("wdk,dk->wd", n[:, self.rows], self.scores) / N[:, self.rows] - self.centre
        return shift

    def length(self, shift: Floats, events: Floats) -> tuple[Floats, Floats]:
        """Length of the shift and its standard error on independent data, both (W,), in standard deviations."""
        length: Floats = np.sqrt(((shift @ self.whitening) ** 2).sum(axis=1))
        return length, np.sqrt(1 / np.maximum(events, 1.0) + 1 / self.events)

    def z(self, length: Floats, error: Floats, events: Floats, tolerances: Floats) -> Floats:
        """The normal quantile that the length is worth beyond each tolerance, (T, W); 0 where too few events take part."""
        components = self.whitening.shape[1]
        left = np.maximum(length - tolerances[:, None] * np.sqrt(components), 0.0) / error
        ratio = left**2 * (self.freedom / (self.freedom + components) / self.g)
        z = np.zeros(ratio.shape)
        # At a ratio below 1 the quantile is about 0 or less: nothing to say, and most windows without drift are there.
        long = (ratio > 1) & (events >= EVENTS_PER_COMPONENT * self.g)
        if long.any():
            p = np.maximum(special.fdtrc(self.dof, self.freedom, ratio[long]), _P_MIN)
            z[long] = np.maximum(-special.ndtri(p), 0.0)
        return z


def _effects(reference: Reference, rows: NDArray[np.intp], components: int) -> tuple[Floats, Floats]:
    """Design effect and degrees of freedom of each whitened component, in their order.

    The outer components are joint rows and have their own; those between are taken to be as dependent as the columns are.
    """
    effects = [row.effect for row in reference.records]
    g = np.array([effect.g_directions[0] for effect in effects])
    nu = np.array([effect.nu_directions[0] for effect in effects])
    usual = np.isfinite(nu[rows])
    fill = float(nu[rows][usual].min()) if 2 * usual.sum() > len(rows) else np.inf
    g_all, nu_all = np.full(components, g[rows].mean()), np.full(components, fill)
    joint = np.arange(len(g))[-reference.joint.rows : -1] if reference.joint else np.arange(0)
    half = len(joint) // 2
    for places, own in ((np.arange(half), joint[:half]), (np.arange(components - half, components), joint[half:])):
        g_all[places], nu_all[places] = g[own], nu[own]
    return g_all, nu_all


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """What the common shift says of one pane: for every window (W,) its z at several tolerances, (T, W), and what it rests on."""

    z: Floats
    shift: Floats
    length: Floats
    error: Floats
    noise: float

    @classmethod
    def of(cls, prepared: CommonShift, seen: Seen, tolerances: Floats) -> Common:
        """The test in all windows of a pane."""
        events = seen.events[:, 0]
        shift = prepared.means(seen.n, np.maximum(seen.events, 1.0))
        length, error = prepared.length(shift, events)
        return cls(prepared.z(length, error, events, tolerances), shift, length, error, prepared.g)

    def explained(self, found: Strongest, window: int, reference: Reference) -> Strongest:
        """The rows' strongest comparisons, the last of them said in the words of a common shift."""
        most = np.argsort(-np.abs(self.shift[window]), kind="stable")[:3]
        names = [reference.rows[row] for row in np.flatnonzero(reference.is_plain)[most]]
        error = float(self.error[window])
        # A length is above 0 without any shift: what noise adds to its square is taken off.
        length = float(np.sqrt(max(float(self.length[window]) ** 2 - self.noise * error**2, 0.0)))
        for values, value in ((found.effect, length), (found.effect_lower, max(length - 1.96 * error, 0.0)),
                              (found.effect_upper, length + 1.96 * error), (found.test, 0)):
            values[-1] = value
        return replace(found, unit=(*found.unit[:-1], "sd"), what=(*found.what[:-1], "joint shift of " + ", ".join(names)))
