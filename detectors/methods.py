"""The catalogue: every detector that a configuration may name, and what each of them is.

    python -m detectors.methods > docs/detectors.md

Idea: one table from name to `Method` holds ours on counts and, from the modules beside this one, evidently's and river's
own under their prefixes and the kernels on samples. `method` looks a name up once, at start; `fits` refuses a column
kind for which its number would mean nothing; the page of the documentation is printed from the same table, so that
neither can say what the other does not.

Invariants: a name means one thing; larger is more drift; whatever is computed from counts also has its values without
drift for a window of any size, so that a threshold need not know that size (`evaluate`, `bands`, `corrected`).

Cost: none at import: evidently, river and torch are imported by the first call that needs them.

Neighbours: `comparison` computes from counts, `parity` and `kernels` from a sample of rows, `streaming` from a series.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from detectors import domain, kernels, parity, streaming
from detectors.comparison import applies, approximate, bands, evaluate
from detectors.distances import corrected
from detectors.method import ANY, NUMERIC, Method

__all__ = ["COUNTED", "METHODS", "Method", "applies", "approximate", "bands", "corrected", "evaluate", "fits", "markdown",
           "method"]

_P = "-log10 p, 0 to 300"
#: Computed from binned counts: always available, at no cost per event.
COUNTED: tuple[Method, ...] = (
    Method("psi", "counts", "nats, 0 and up", ANY,
           "Population stability index: the divergences between the shares of window and reference, both ways, added up.",
           threshold=0.25),
    Method("kl", "counts", "nats, 0 and up", ANY, "Kullback-Leibler divergence of the window from the reference."),
    Method("js", "counts", "root of bits, 0 to 1", ANY, "Jensen-Shannon distance: the root of the divergence in bits."),
    Method("hellinger", "counts", "share, 0 to 1", ANY, "Hellinger distance between the shares."),
    Method("tv", "counts", "share of events, 0 to 1", ANY,
           "Total variation: the share of events that would have to move to another bin."),
    Method("linf", "counts", "share of events, 0 to 1", ANY, "The largest change of the share of one bin."),
    Method("ks", "counts", "share of events, 0 to 1", NUMERIC,
           "Kolmogorov-Smirnov statistic: the largest difference of the cumulative shares."),
    Method("wasserstein", "counts", "reference s.d., 0 and up", NUMERIC,
           "Wasserstein-1 distance: how far the average event would have to move, in reference standard deviations."),
    Method("wasserstein_plain", "counts", "unit of the column, 0 and up", NUMERIC,
           "Wasserstein-1 distance in the unit of the column."),
    Method("energy", "counts", "root of reference s.d., 0 and up", NUMERIC,
           "Energy distance over the root of the reference's standard deviation."),
    Method("cvm", "counts", _P, NUMERIC, "Cramér-von Mises test: squared differences of the cumulative shares."),
    Method("anderson", "counts", _P, NUMERIC, "Anderson-Darling test: as cvm, with more weight on the tails."),
    Method("chi2", "counts", _P, ANY, "Pearson's chi-square test of two samples; thin bins are put together."),
    Method("g", "counts", _P, ANY, "Likelihood-ratio test of two samples; thin bins are put together."),
    Method("fisher", "counts", _P, ANY,
           "Fisher's exact test of a column with two values, for fewer than 1,000 events on both sides together."),
    Method("z", "counts", _P, ANY,
           "Test of two shares with their pooled variance, of a column with two values, from 1,000 events on both sides."),
    Method("t", "counts", _P, NUMERIC, "Welch's t test of the means, every value counting at its bin's mean."),
    Method("mannwhitney", "counts", _P, NUMERIC, "Mann-Whitney test of ranks, the values of one bin being ties."),
)


def _catalogue(*parts: Sequence[Method]) -> Mapping[str, Method]:
    found: dict[str, Method] = {}
    for one in (entry for part in parts for entry in part):
        assert one.name not in found, f"two methods are called {one.name}"
        found[one.name] = one
    return MappingProxyType(found)


#: Every name, in the order of the documentation.
METHODS: Mapping[str, Method] = _catalogue(COUNTED, parity.METHODS, streaming.METHODS, kernels.METHODS, domain.METHODS)


def method(name: str) -> Method:
    """The method of a name; ValueError, one line, that names the nearest known one.

    >>> method("psi").unit
    'nats, 0 and up'
    >>> method("evidently:PSI")
    Traceback (most recent call last):
    ValueError: detector: expected a known name, got 'evidently:PSI'; did you mean 'evidently:psi'?
    """
    found = METHODS.get(name)
    if found is None:
        folded = {known.lower(): known for known in METHODS}
        near = difflib.get_close_matches(str(name).lower(), folded, n=1, cutoff=0.5)
        advice = f"did you mean {folded[near[0]]!r}?" if near else f"take one of {', '.join(METHODS)}"
        raise ValueError(f"detector: expected a known name, got {name!r}; {advice}")
    return found


def fits(one: Method, kind: str) -> bool:
    """Whether the method is defined for columns of a kind: numeric, category, boolean and, jointly, embedding."""
    return kind in one.kinds


# ---- docs/detectors.md --------------------------------------------------------------------------------------------------

_CHI2 = "mean (K - 1) h{over}, 95 % chi-square(K - 1) h{over}; thin bins by a table"
_UNIFORM = "mean 0.434, 95 % 1.301 (p is uniform)"
_ROOT = "95 % point and mean simulated at fit, x sqrt(h)"
#: Of every method on counts: formula, paper; what it reads without drift.
_FORMULAS: dict[str, tuple[str, str]] = {
    "psi": ("sum (Q - P) ln(Q / P); Jeffreys 1946", _CHI2.format(over="")),
    "kl": ("sum Q ln(Q / P); Kullback and Leibler 1951", _CHI2.format(over="/2")),
    "js": ("sqrt(½ sum p log2(p / M) + ½ sum q log2(q / M)), M = (p + q)/2; Lin 1991",
           "square: " + _CHI2.format(over="/(8 ln 2)")),
    "hellinger": ("sqrt(1 - sum sqrt(p q)); Hellinger 1909", "square: " + _CHI2.format(over="/8")),
    "tv": ("½ sum abs(q - p)", "mean sqrt(h/2π) sum sqrt(p (1 - p)); 95 % point simulated at fit, x sqrt(h)"),
    "linf": ("max abs(q - p)", _ROOT + ", moved by the skewness of counts"),
    "ks": ("max abs(D); Kolmogorov 1933, Smirnov 1939", _ROOT + ", at most 1.358 sqrt(h)"),
    "wasserstein": ("sum abs(D) (x' - x) / sd; Vaserstein 1969", _ROOT),
    "wasserstein_plain": ("sum abs(D) (x' - x)", _ROOT + " and sd"),
    "energy": ("sqrt(2 sum (x' - x) D² / sd); Székely and Rizzo 2004",
               "square: mean h sum l, 95 % h a chi-square(nu), from the eigenvalues l of its quadratic form"),
    "cvm": ("T = N m/(N + m) sum w D², w the bin's pooled share; Anderson 1962", _UNIFORM),
    "anderson": ("T with w / (H (1 - H)), H the pooled cumulative share; Anderson and Darling 1952", _UNIFORM),
    "chi2": ("sum (n - E1)²/E1 + (c - E0)²/E0; Pearson 1900", _UNIFORM),
    "g": ("2 sum n ln(n/E1) + c ln(c/E0); Wilks 1938", _UNIFORM),
    "fisher": ("sum of all tables no more likely than the one seen; Fisher 1934", "mean and 95 % at most 0.434 and 1.301: exact"),
    "z": ("(q - p) / sqrt(s (1 - s) h), s the pooled share", _UNIFORM),
    "t": ("(mean difference) / sqrt(g (v1/N + v0/m)), df of Welch 1947", _UNIFORM),
    "mannwhitney": ("(U - N m/2) / sqrt(g variance with ties); Mann and Whitney 1947", _UNIFORM),
}

_HEAD = """# Detectors
<!-- Rendered by `make render` from detectors/methods.py; change it there. -->

Every name that a configuration may give a detector. All describe; none of them decides: an alarm under the false-alarm
budget is raised by the scan alone. Each may have a rule of its own with a threshold of yours, at your own false-alarm rate.

Larger is more drift, everywhere; a p-value is shown as -log10 p, so that 2 says p = 0.01. A method that does not fit a
column's kind is refused at start. Where a window or the reference has no value to compare, or a row has too few different
values for the method, the number is missing, never 0. Joint columns and embedding directions are numeric."""

_BANDS = """Reference counts c add up to m, window counts n to N; p = c/m and q = n/N; P and Q have half an event added to every
one of the K bins. D is the difference of the cumulative shares, x the bins' reference means, sd the reference's standard
deviation, g the design effect of dependent events and h = g (1/N + 1/m). psi to linf and chi2, g count missing values,
values out of range and levels that the reference did not keep as bins; all others leave missing values out.

All distances are above 0 without drift, and more so in small windows. *Without drift* says what each reads then; the
service shows the number, its 95 % point and the corrected number (its mean taken off; for js, hellinger and energy off the
square), for which one threshold serves windows of 100 and of 100,000 events. On seeded streams without drift 2 to 8 % of
windows lie beyond the 95 % point. It is approximate (and said to be) for psi, kl, js, hellinger, tv and linf where more than
a fifth of the bins expect under 5 events; for these and chi2 and g in a category column where levels that the reference
missed make up 0.5 % of events; for the others where under 5 events lie outside the fullest bin. fisher is conservative."""

_BINNING = """## What bins cost

- Bins are quantiles of the reference (64) with frequent values apart. ks errs by at most the largest share of a bin, and not
  at all where every bin is one value; wasserstein by at most the mean width of a bin; the share of pairs behind mannwhitney
  by at most 1/128. t is that of values rounded to their bin's mean: variances lack what lies within bins.
- Values out of range count at the end of the range: one value of 1e300 neither makes nor hides drift. How far out they are
  is a question of data quality and has its own alarm.
- chi2 and g first put together neighbouring bins of a number, and thin levels, until about 5 events are expected; levels that
  the reference saw once are its estimate of those it never saw (Good 1953).
- fisher and z compare the share of the reference's first value with all others."""


def markdown() -> str:
    """The catalogue as a page, the same on every machine."""
    lines = [_HEAD, "", "## From counts: always at hand", ""]
    lines += _table(("name", "what it is", "unit and range", "kinds", "drift, by rule of thumb"), [
        (f"`{one.name}`", one.help, one.unit, _kinds(one), _number(one.threshold)) for one in COUNTED])
    lines += ["", _BANDS, ""]
    lines += _table(("name", "formula and source", "without drift"),
                    [(f"`{one.name}`", *_FORMULAS[one.name]) for one in COUNTED])
    lines += ["", _BINNING, ""]
    for title, text, part in (
        ("From a sample of rows: evidently's own", "Theirs to the letter, on raw values, for comparison and migration; they know "
         "nothing of a window's size. Extra `report`.", parity.METHODS),
        ("From a series: one value after another", "Without a reference or for one number at a time: errors, losses, latencies, "
         "a distance per pane. `cusum` and `ewma` are ours; names with `river:` are river's own, extra `river`. They know "
         "nothing of a false-alarm budget.", streaming.METHODS),
        ("From a sample of rows: all columns together", "To explain and to judge, on a kept sample; a p-value from permutations "
         "cannot reach the budget's. Extra `torch`.", kernels.METHODS),
        ("From a sample of rows: texts", "Which words a text column changed in; its rows (length, words, vocabulary, content) "
         "stand in the scan anyway.", domain.METHODS),
    ):
        lines += [f"## {title}", "", text, ""]
        lines += [*_table(("name", "what it is", "unit and range", "kinds", "drift, by its authors"), [
            (f"`{one.name}`", one.help, one.unit, _kinds(one), _number(one.threshold)) for one in part]), ""]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _kinds(one: Method) -> str:
    """The kinds in the order in which the documentation has them."""
    order = ("numeric", "category", "boolean", "embedding", "text")
    words = ", ".join(sorted(one.kinds, key=lambda kind: order.index(kind) if kind in order else len(order)))
    return words + (", together" if one.joint else "")


def _number(threshold: float | None) -> str:
    return "none" if threshold is None else f"{threshold:.4g}"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    sys.stdout.write(markdown())
