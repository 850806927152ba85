"""What a trainer may name in its result, and where that may lie: nothing leads out of the folders that are known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor.flow import Launch
from monitor.retrain.challenger import judge, read_progress, read_result
from monitor.retrain.outputs import ContractBroken
from monitor.retrain.promote import ChallengerUnfit, checked_reference, load_reference
from tests.unit.retrain.test_bad_results import leave, reference

STORE = "s3://models/churn"


def launch(output: object, **options: object) -> Launch:
    values: dict[str, object] = {"output_uri": str(output), **options}
    return Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "succeeded", "{}", (("succeeded", 1.0),), **values)  # type: ignore


def result(folder: Path, **named: str) -> None:
    leave(folder, result={"model_uri": "model.pt", "reference_uri": "reference.json", **named})


OUTSIDE = [
    "/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "file://localhost/etc/passwd", "../secret.json",
    "a/../../secret.json", "a/%2e%2e/../x", "file:///tmp/%2e%2e/etc/passwd", "..\\secret.json",
    "http://169.254.169.254/latest/meta-data", "https://example.com/x", "s3://another/bucket.json",
    "s3://another/x?endpoint_override=169.254.169.254", "S3://another/x", "gs://bucket/x", "hdfs://namenode/x",
    "file://fileserver/share/x", "mock:///x", "a\nb", "a\x1b[2Jb", "s3://key:secret@bucket/x", "//etc/passwd",
]


@pytest.mark.parametrize("uri", OUTSIDE)
@pytest.mark.parametrize("name", ["reference_uri", "training_ids_uri"])
def test_what_the_service_reads_lies_in_the_output_folder(uri, name, tmp_path):
    result(tmp_path / "output", **{name: uri})
    verdict, found = judge(launch(tmp_path / "output"), metric="accuracy", events_min=10)
    assert (verdict.verdict, found) == ("failed", None)
    assert f"result.json: {name}: expected" in verdict.detail
    assert "\n" not in verdict.detail
    assert "\x1b" not in verdict.detail
    assert "secret@" not in verdict.detail


@pytest.mark.parametrize("uri", [
    one for one in OUTSIDE if not one.startswith(("s3://another/b", "S3://", "gs:", "hdfs:", "mock:"))])
def test_serving_is_sent_to_no_file_and_no_address_that_nobody_named(uri, tmp_path):
    result(tmp_path / "output", model_uri=uri)
    with pytest.raises(ContractBroken, match="model_uri: expected"):
        read_result(launch(tmp_path / "output"))


@pytest.mark.parametrize("uri", ["s3://another/model.pt", "gs://bucket/model", "hf://org/model", "pvc://claim/model"])
def test_while_no_store_is_named_a_model_may_lie_in_any_and_then_in_that_one_only(uri, tmp_path):
    result(tmp_path / "output", model_uri=uri)
    assert read_result(launch(tmp_path / "output"))
    with pytest.raises(ContractBroken, match=r"or of retrain\.result_uris"):
        read_result(launch(tmp_path / "output"), [STORE])


@pytest.mark.parametrize("uri", ["model.pt", "deep/model.pt", f"{STORE}/8/model.pt", f"{STORE}"])
def test_a_named_store_and_the_output_itself_may_be_named(uri, tmp_path):
    result(tmp_path / "output", model_uri=uri)
    assert read_result(launch(tmp_path / "output"), [STORE])


@pytest.mark.parametrize("uri", ["s3://models/churn-2/model.pt", "s3://models.evil/churn/x", "s3://models/churn/../x", "s3://models"])
def test_a_name_that_only_begins_like_the_store_is_another_one(uri, tmp_path):
    result(tmp_path / "output", model_uri=uri)
    with pytest.raises(ContractBroken):
        read_result(launch(tmp_path / "output"), [STORE])


def test_https_is_allowed_where_it_is_named(tmp_path):
    result(tmp_path / "output", model_uri="https://registry.example/models/8")
    with pytest.raises(ContractBroken):
        read_result(launch(tmp_path / "output"))
    assert read_result(launch(tmp_path / "output"), ["https://registry.example/models"])


def test_a_link_out_of_the_output_is_not_followed_whatever_it_is_called(tmp_path):
    """progress.txt is shown to people: a trainer must not be able to have the service read its own token to them."""
    secret = tmp_path / "token"
    secret.write_text('{"model_uri": "SECRET", "reference_uri": "SECRET"}')
    folder = tmp_path / "output"
    result(folder)
    (folder / "progress.txt").symlink_to(secret)
    assert read_progress(launch(folder)) == ""
    (folder / "result.json").unlink()
    (folder / "result.json").symlink_to(secret)
    with pytest.raises(ContractBroken, match="a link that leads out of it") as broken:
        read_result(launch(folder))
    assert "SECRET" not in str(broken.value)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "reference.json").write_text("SECRET")
    (folder / "inside").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ContractBroken, match="a link that leads out of it"):
        load_reference(str(folder / "inside" / "reference.json"), roots=(str(folder),))


def test_links_inside_the_output_and_above_it_are_followed(tmp_path):
    result(tmp_path / "real")
    (tmp_path / "real" / "progress.txt").write_text("epoch 1\n")
    (tmp_path / "linked").symlink_to(tmp_path / "real")         # a volume's own, as on a Kubernetes ConfigMap
    (tmp_path / "real" / "other.json").symlink_to("reference.json")
    assert read_progress(launch(tmp_path / "linked")) == "epoch 1"
    assert load_reference(str(tmp_path / "linked" / "other.json"), roots=(str(tmp_path / "linked"),)).model == "churn"


def test_a_pipe_in_place_of_a_file_is_told_and_not_waited_for(tmp_path):
    result(tmp_path / "output")
    (tmp_path / "output" / "holdout.parquet").unlink()
    os.mkfifo(tmp_path / "output" / "holdout.parquet")
    verdict, _ = judge(launch(tmp_path / "output"), metric="accuracy", events_min=10)
    assert "holdout.parquet: expected a file, got something else" in verdict.detail


def test_a_reference_is_looked_at_again_when_it_is_promoted(tmp_path):
    """What was checked when it was judged may have become a link, or another launch's folder, since."""
    result(tmp_path / "output")
    other = tmp_path / "other.json"
    other.write_text((tmp_path / "output" / "reference.json").read_text())
    good = launch(tmp_path / "output", reference_uri=str(tmp_path / "output" / "reference.json"))
    assert checked_reference(good, reference()).model == "churn"
    with pytest.raises(ChallengerUnfit, match="expected a file below"):
        checked_reference(launch(tmp_path / "output", reference_uri=str(other)), reference())
    assert checked_reference(launch(tmp_path / "output", reference_uri=str(other)), reference(), None, [str(tmp_path)])
    (tmp_path / "output" / "reference.json").unlink()
    (tmp_path / "output" / "reference.json").symlink_to(other)
    with pytest.raises(ChallengerUnfit, match="a link that leads out of it"):
        checked_reference(good, reference())


def test_a_holdout_whose_names_or_texts_are_no_text_fails_the_launch_and_not_the_service(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path / "output"
    result(folder)
    table = pa.table({"id": [str(i) for i in range(20)], "label": ["ab"] * 20, "champion_prediction": ["ab"] * 20,
                      "challenger_prediction": ["ab"] * 20, "zz": [1] * 20})
    for old, new in ((b"zz", b"\xff\xfe"), (b"ab", b"\xff\xfe")):
        parquet.write_table(table, folder / "holdout.parquet", compression="none", store_schema=False, use_dictionary=False)
        content = (folder / "holdout.parquet").read_bytes()
        assert old in content
        (folder / "holdout.parquet").write_bytes(content.replace(old, new))
        verdict, _ = judge(launch(folder), metric="accuracy", events_min=10)
        assert verdict.verdict in ("failed", "not yet known", "worse", "better")
        assert "\n" not in verdict.detail
