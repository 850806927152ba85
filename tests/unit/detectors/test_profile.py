"""Profiles: what they refuse, and their bytes."""

import numpy as np
import pytest

from detectors.profile import Profile, ReferenceMismatch
from detectors.ring import Ring
from detectors.synthetic import MIXED, Stream


@pytest.fixture(scope="module")
def two():
    from detectors.reference import Reference

    def fit(seed):
        stream = Stream(seed, MIXED[:2])
        return Reference.fit(stream.rows(500), stream.columns, model="m", version="1")

    return fit(1), fit(2)


def test_profiles_of_different_references_never_meet(two):
    a, b = (Profile.empty(reference) for reference in two)
    for meet in (lambda: a + b, lambda: a - b, lambda: Ring(two[0]).push(b)):
        with pytest.raises(ReferenceMismatch) as refusal:
            meet()
        assert two[0].digest in str(refusal.value)
        assert two[1].digest in str(refusal.value)


def test_counts_cannot_be_written_to(two):
    with pytest.raises(ValueError, match="read-only"):
        Profile.empty(two[0]).counts[0, 0] = 1


def test_the_digest_tells_profiles_apart(two):
    empty = Profile.empty(two[0])
    one = two[0].profile({"c0": np.array([0.5]), "c1": np.array([0.5])})
    other = two[0].profile({"c0": np.array([0.5]), "c1": np.array([np.nan])})
    assert len({empty.digest(), one.digest(), other.digest(), Profile.empty(two[1]).digest()}) == 4
    assert hash(one) == hash(Profile.from_bytes(one.to_bytes()))
    assert one != "one"


@pytest.mark.parametrize("damage", [
    lambda b: b"", lambda b: b[:40], lambda b: b"XXXX" + b[4:], lambda b: b[:60], lambda b: b[:-1],
    lambda b: b[:70] + bytes([b[70] ^ 1]) + b[71:], lambda b: b[:44] + b"\x09" + b[45:],
])
def test_damaged_bytes_are_refused_in_one_line(two, damage):
    stored = two[0].profile(Stream(3, MIXED[:2]).rows(100)).to_bytes()
    with pytest.raises(ValueError, match=r"stored profile: expected .* restore the store"):
        Profile.from_bytes(damage(stored))
