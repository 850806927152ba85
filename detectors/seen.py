"""One pane's comparisons with the reference, and what is largest among them at several tolerances.

Idea: every comparison is made once, without a tolerance; what a tolerance takes from it is known in closed form. So the
strongest comparison of each row is found for an alarm's tolerance, for half of it (to end an episode), for none and for
a retraining's at once. Directions are dense arrays; of the bins only those that speak are kept, a tenth of them.

Invariant: nothing here decides. Cost: a few passes over 4 tolerances x 8 windows x J rows x 4 directions and over the
bins that speak. Neighbours: `scan` fills it and reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

DIRECTIONS = 4
#: Places of the tolerances that every comparison is made at: an alarm's, half of it to end one, none, a retraining's.
ALARM, LASTING, RAW, SEVERE = range(4)
PLAIN = slice(0, SEVERE)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The comparisons of one pane: lengths (W,), events and takes_part (W, J), n (W, J, K), the others (W, J, 4).

    bins : those of its bins that speak
    """

    lengths: Ints
    n: Floats
    events: Floats
    takes_part: Bools
    difference: Floats
    variance: Floats
    skew: Floats
    nu_directions: Floats
    bins: Bins

    def best(self, tolerances: Floats) -> Floats:
        """Largest z at each tolerance, over directions and ordinary bins [0] and over the bins of faults [1].

        Shape (4, 2, W, J), by ALARM, LASTING, RAW, SEVERE; 0 where a row takes no part. All tolerances at once, because
        an array of a few thousand numbers costs hardly more than one of a thousand.
        """
        best = np.zeros((len(tolerances), 2, *self.events.shape))
        z = direction_z(self.difference, self.variance, self.skew, tolerances[:, None, None, None]) * self.nu_directions
        # Pairwise, because a maximum along an axis of four costs numpy nine times as much.
        best[:, 0] = np.maximum(np.maximum(z[..., 0], z[..., 1]), np.maximum(z[..., 2], z[..., 3])) * self.takes_part
        self.bins.raise_to(best, tolerances)
        return best

    def strongest_test(self, window: Ints, tolerance: Floats, *, floored: bool) -> Ints:
        """Index among directions and bins of each row's largest z in its window, shape (J,); the mean if all are 0."""
        at = (window, np.arange(len(window)))
        z1 = direction_z(self.difference[at], self.variance[at], self.skew[at], tolerance[:, None]) * self.nu_directions
        z2 = np.zeros((len(window), self.n.shape[2]))
        self.bins.put(z2, window, tolerance, floored=floored)
        best: Ints = np.concatenate([z1, z2], axis=1).argmax(axis=1)
        return best


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """The comparisons of single bins, of those alone that speak: each field (n,), in the order of (window, row, bin).

    at       : place in (W, J, K), which is `shape`          pair : place in (W, J)
    strength : z without a tolerance                         loss, floored_loss : what a tolerance of 1 takes from it
    of_fault : whether it speaks of a fault of the data

    The share of a bin's evidence that lies within the tolerance is lost.
    """

    at: NDArray[np.intp]
    pair: NDArray[np.intp]
    shape: tuple[int, ...]
    strength: Floats
    loss: Floats
    floored_loss: Floats
    of_fault: Bools

    def raise_to(self, best: Floats, tolerances: Floats) -> None:
        """Raise `best`, (4, 2, W, J), to the largest z of ordinary bins, and of those of faults, at each tolerance."""
        z = self.strength - tolerances[:, None] * self.loss
        z[SEVERE] = self.strength - tolerances[SEVERE] * self.floored_loss
        faults = np.flatnonzero(self.of_fault)                  # few: nearly always none
        for which, pair, mine in ((1, self.pair[faults], z[:, faults]), (0, self.pair, z)):
            if not len(pair):
                continue
            if which == 0:
                z[:, faults] = 0.0
            first = np.append(0, np.flatnonzero(pair[1:] != pair[:-1]) + 1)
            flat, pairs = best[:, which].reshape(len(tolerances), -1), pair[first]
            flat[:, pairs] = np.maximum(flat[:, pairs], np.maximum.reduceat(mine, first, axis=1))

    def put(self, z: Floats, window: Ints, tolerance: Floats, *, floored: bool) -> None:
        """Write every row's bins of its window into `z`, (J, K), at the row's tolerance; never below 0."""
        W, J, K = self.shape
        of_row = np.zeros((W, J), bool)
        of_row[window, np.arange(J)] = True
        mine = np.flatnonzero(of_row.ravel()[self.pair])
        place = self.at[mine] % (J * K)
        loss = (self.floored_loss if floored else self.loss)[mine]
        z.ravel()[place] = np.maximum(self.strength[mine] - tolerance[place // K] * loss, 0.0)


def direction_z(difference: Floats, variance: Floats, skew: Floats, tolerance: float | Floats) -> Floats:
    """Standardised differences of directions beyond the tolerance, never below 0.

    skew : skewness of the weights / (6 sqrt(effective events)), the second term of the Cornish-Fisher expansion: the
           sum of a skewed score has unequal tails
    """
    z = np.maximum(np.abs(difference) - tolerance, 0.0) / np.sqrt(variance)
    return np.maximum(z - np.sign(difference) * skew * np.maximum(z * z - 1, 0.0), 0.0)


def bin_deviance(n: Floats, N: Floats, c: Floats, m: Floats) -> tuple[Floats, Floats]:
    """Pooled share, and half the likelihood ratio of "two shares" against "one", for n of N and c of m events."""
    deviance = (x_log_x(n) + x_log_x(N - n) + x_log_x(c) + x_log_x(m - c) - x_log_x(n + c)
                - x_log_x(N + m - n - c) + x_log_x(N + m) - x_log_x(N) - x_log_x(m))
    return (n + c) / (N + m), np.maximum(deviance, 0.0)


def x_log_x(x: Floats) -> Floats:
    """x ln x, 0 at 0. Sums of it lose 1e-16 of the largest term: with 1e9 events a z of 0 may read 0.003."""
    return x * np.log(np.maximum(x, 1e-300))
