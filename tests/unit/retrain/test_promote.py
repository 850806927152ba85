"""Promotion: written whole, repeated without effect, refused where the new reference cannot judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detectors.reference import Column, Reference
from monitor.config import FilePromotion
from monitor.errors import LaunchFailed
from monitor.flow import Launch
from monitor.retrain import promote as promotion
from monitor.retrain.promote import Promoted, PromotionRefused, load_reference, promotion_for

COLUMNS = (Column("age", "numeric", "input"), Column("score", "numeric", "score"))


def reference(columns: Sequence[Column] = COLUMNS, events: int = 500, version: str = "7") -> Reference:
    rng = np.random.default_rng(1)
    return Reference.fit({column.name: rng.normal(0, 1, events) for column in columns}, columns, model="churn",
                         version=version)


def judged(folder: Path, new: Reference | None = None, verdict: str = "better") -> Launch:
    if new is not None:
        new.save(folder / "reference.json")
    return Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "judged", "{}", (("judged", 1.0),), champion=0.7,
                  challenger=0.9, difference=0.2, difference_lower=0.1, difference_upper=0.3, verdict=verdict,
                  detail="on 400 events", new_version="7.r3f9c2a", model_uri="/m/model.pt",
                  reference_uri=str(folder / "reference.json"))


def promote(target: FilePromotion | None, launch: Launch, *, current: Reference, now: float) -> Promoted:
    return promotion.promote(promotion_for(target), launch, current=current, now=now)


def test_the_file_tells_the_serving_code_everything(tmp_path: Path) -> None:
    target = FilePromotion(path=str(tmp_path / "serving" / "champion.json"))
    promoted = promote(target, judged(tmp_path, reference()), current=reference(), now=123.0)
    assert json.loads(Path(target.path).read_text()) == {
        "model": "churn", "version": "7.r3f9c2a", "model_uri": "/m/model.pt", "launch_id": "3f9c2a1b7d4e",
        "reference_uri": str(tmp_path / "reference.json"), "previous_version": "7", "promoted_at": 123.0,
        "champion": 0.7, "challenger": 0.9, "difference": [0.1, 0.3], "cause": "better", "previous_model_uri": ""}
    assert (promoted.reference.digest, promoted.previous_model_uri) == (reference().digest, "")
    assert [path.name for path in Path(target.path).parent.iterdir()] == ["champion.json"]


def test_the_same_launch_again_leaves_the_file_alone_and_another_replaces_it(tmp_path: Path) -> None:
    target = FilePromotion(path=str(tmp_path / "champion.json"))
    job = judged(tmp_path, reference())
    promote(target, job, current=reference(), now=1.0)
    inode = Path(target.path).stat().st_ino
    promote(target, job, current=reference(), now=2.0)
    assert (Path(target.path).stat().st_ino, json.loads(Path(target.path).read_text())["promoted_at"]) == (inode, 1.0)
    promote(target, replace(job, id="000000000000"), current=reference(), now=3.0)
    assert json.loads(Path(target.path).read_text())["launch_id"] == "000000000000"


def test_the_model_that_the_file_named_before_is_remembered(tmp_path: Path) -> None:
    target = FilePromotion(path=str(tmp_path / "champion.json"))
    for before, expected in (({"version": "7", "model_uri": "/old"}, "/old"), ({"version": "6", "model_uri": "/older"}, ""),
                             ({"version": "7", "model_uri": 3}, "")):
        Path(target.path).write_text(json.dumps(before))
        for _ in range(2):
            promoted = promote(target, judged(tmp_path, reference()), current=reference(), now=1.0)
            assert promoted.previous_model_uri == expected


def test_a_damaged_promotion_file_is_replaced(tmp_path: Path) -> None:
    target = FilePromotion(path=str(tmp_path / "champion.json"))
    for damage in (b"", b"{", b"[]", b"\xff\xfe", b'{"launch_id": 7}'):
        Path(target.path).write_bytes(damage)
        promote(target, judged(tmp_path, reference()), current=reference(), now=1.0)
        assert json.loads(Path(target.path).read_text())["launch_id"] == "3f9c2a1b7d4e"


@pytest.mark.parametrize("verdict", ["worse", "not yet known", ""])
def test_only_what_is_better_is_promoted(tmp_path: Path, verdict: str) -> None:
    target = FilePromotion(path=str(tmp_path / "champion.json"))
    with pytest.raises(PromotionRefused, match=f"the challenger is {verdict or 'not judged'}: on 400 events"):
        promote(target, judged(tmp_path, reference(), verdict), current=reference(), now=1.0)
    assert not Path(target.path).exists()


def test_a_reference_of_other_columns_refuses_the_promotion_and_names_them(tmp_path: Path) -> None:
    target = FilePromotion(path=str(tmp_path / "champion.json"))
    other = reference((COLUMNS[0], Column("income", "numeric", "input")))
    with pytest.raises(PromotionRefused, match=r"its reference does not fit.*income.*score"):
        promote(target, judged(tmp_path, other), current=reference(), now=1.0)
    assert not Path(target.path).exists()


def test_a_reference_too_small_to_judge_by_refuses_the_promotion(tmp_path: Path) -> None:
    with pytest.raises(PromotionRefused, match="its reference has 50 events, too few"):
        promote(None, judged(tmp_path, reference(events=50)), current=reference(), now=1.0)


@pytest.mark.parametrize(("content", "words"), [
    (None, "expected the new reference, got nothing"), (b"\xff", "expected UTF-8"), (b"{}", "reference.json"),
    (b"not json", "reference.json")])
def test_a_reference_that_is_none_refuses_the_promotion(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "reference.json").write_bytes(content)
    with pytest.raises(PromotionRefused, match=words):
        promote(None, judged(tmp_path), current=reference(), now=1.0)


def test_a_changed_byte_in_the_reference_refuses_the_promotion(tmp_path: Path) -> None:
    job = judged(tmp_path, reference())
    path = Path(job.reference_uri)
    path.write_text(path.read_text().replace('"events": 500', '"events": 501'))
    with pytest.raises(PromotionRefused, match="does not fit"):
        promote(None, job, current=reference(), now=1.0)


def test_without_a_target_people_are_told_what_to_deploy(tmp_path: Path) -> None:
    with pytest.raises(PromotionRefused, match=r"retrain\.promote is not configured; deploy /m/model\.pt by hand"):
        promote(None, judged(tmp_path, reference()), current=reference(), now=1.0)


def test_a_place_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "champion.json", tmp_path):
        with pytest.raises(LaunchFailed, match=r"retrain\.promote\.path: .*(written|read)") as raised:
            promote(FilePromotion(path=str(path)), judged(tmp_path, reference()), current=reference(), now=1.0)
        assert raised.value.retry


def test_the_reference_that_is_loaded_is_the_one_that_was_saved(tmp_path: Path) -> None:
    job = judged(tmp_path, reference())
    assert load_reference(job.reference_uri).digest == reference().digest == load_reference(
        f"file://{job.reference_uri}").digest
