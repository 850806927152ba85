"""Promotion by webhook: a signed event, sent once, confirmed where that is asked for, withdrawn where it is not given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor.config import WebhookPromotion
from monitor.errors import ConfigError, LaunchFailed
from monitor.flow import Launch
from monitor.retrain.promotions import ROLLBACK, PromotionRefused, PromotionWaits, promotion_for
from monitor.retrain.promotions.webhook import Webhook
from tests.contract_server import Answer, ContractServer, closed_port, said
from tests.unit.retrain.rest_servers import Receiver

SECRET = "0123456789abcdef0123456789abcdef"
NEW = Launch("3f9c2a1b7d4e", "churn", "7", 1, "local", "judged", "{}", (("judged", 1_700_000_000.0),), verdict="better",
             champion=0.7, challenger=0.9, difference_lower=0.1, difference_upper=0.3, new_version="7.r3f9c2a",
             model_uri="s3://m/new", reference_uri="s3://m/reference.json")


class Serving(Receiver):
    def __init__(self) -> None:
        super().__init__(SECRET.encode())
        self.status = said({"version": "7"})


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple[Serving, ContractServer]]:
    (tmp_path / "secret").write_text(SECRET)
    receiver = Serving()
    with ContractServer(receiver) as server:
        yield receiver, server


def promotion(server: ContractServer, tmp_path: Path, **changes: Any) -> Webhook:
    made = promotion_for(WebhookPromotion(url=f"{server.url}/hook", secret_file=str(tmp_path / "secret"), **changes))
    assert isinstance(made, Webhook)
    return made


def test_one_event_tells_the_receiver_what_to_deploy(serving: tuple[Serving, ContractServer], tmp_path: Path) -> None:
    receiver, server = serving
    for _ in range(2):                              # the second by a service that was killed before it saved `promoted`
        assert promotion(server, tmp_path).promote(NEW, 1.0) == ""
    (event,) = receiver.events.values()
    assert (event["type"], event["id"], event["subject"]) == ("dev.tidemark.promotion", "3f9c2a1b7d4e.promotion", "churn")
    assert event["data"] == {
        "model": "churn", "version": "7.r3f9c2a", "model_uri": "s3://m/new", "reference_uri": "s3://m/reference.json",
        "launch_id": "3f9c2a1b7d4e", "previous_version": "7", "champion": 0.7, "challenger": 0.9, "difference": [0.1, 0.3],
        "cause": "better"}


def test_a_roll_back_is_a_promotion_that_says_so(serving: tuple[Serving, ContractServer], tmp_path: Path) -> None:
    receiver, server = serving
    promotion(server, tmp_path).promote(replace(NEW, launcher=ROLLBACK, champion=None), 1.0)
    assert next(iter(receiver.events.values()))["data"]["cause"] == "rollback"


def test_a_promotion_waits_until_serving_names_the_new_version(
        serving: tuple[Serving, ContractServer], tmp_path: Path) -> None:
    receiver, server = serving
    hook = promotion(server, tmp_path, confirm_url=f"{server.url}/live/{{launch_id}}?v={{version}}")
    for answer, words in ((said({"version": "7"}), "it serves version 7$"), (Answer(404), "it names no version$"),
                          (said({"version": None}), "it names no version$"), (Answer(500), r"fails \(500\)"),
                          (Answer(200, b"<html>"), "expected a JSON object")):
        receiver.status = answer
        with pytest.raises(PromotionWaits, match=rf"to confirm version 7\.r3f9c2a; .*{words}"):
            hook.promote(NEW, 1.0)
    assert (server.asked[-1].path, server.asked[-1].query) == ("/live/3f9c2a1b7d4e", {"v": "7.r3f9c2a"})
    receiver.status = said({"version": "7.r3f9c2a"})
    assert hook.promote(NEW, 2.0) == ""
    assert receiver.received == 1, "the event is not sent at every look"


def test_a_promotion_that_is_not_confirmed_in_time_is_withdrawn_and_refused(
        serving: tuple[Serving, ContractServer], tmp_path: Path) -> None:
    receiver, server = serving
    hook = promotion(server, tmp_path, confirm_url=f"{server.url}/live", confirm_hours=1.0)
    with pytest.raises(PromotionWaits):
        hook.promote(NEW, 0.0)
    with pytest.raises(PromotionRefused, match=r"was not confirmed within 1 hours .*it serves version 7; it was given up"):
        hook.promote(NEW, 3600.0)
    assert [event["type"] for event in receiver.events.values()] == ["dev.tidemark.promotion", "dev.tidemark.promotion.withdrawn"]


@pytest.mark.parametrize("answer", [said({}, 401), said({}, 404), said({}, 422), said({}, 500), Answer(how="close")])
def test_a_receiver_that_fails_is_tried_again_whatever_it_answers(
        serving: tuple[Serving, ContractServer], tmp_path: Path, answer: Answer) -> None:
    _, server = serving
    server.misbehave(answer)
    with pytest.raises(LaunchFailed) as raised:
        promotion(server, tmp_path).promote(NEW, 1.0)
    assert raised.value.retry
    assert SECRET not in str(raised.value)


def test_credentials_go_to_one_host_only(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef")
    with pytest.raises(ConfigError, match=r"promote\.confirm_url: expected the host of url"):
        promotion_for(WebhookPromotion(url="http://a/hook", token_file=str(tmp_path / "token"), confirm_url="http://b/live"))


def test_a_receiver_that_is_down_is_named_without_its_path(tmp_path: Path) -> None:
    hook = promotion_for(WebhookPromotion(url=f"http://127.0.0.1:{closed_port()}/T0KEN/hook"))
    assert hook is not None
    with pytest.raises(LaunchFailed, match="no answer from 127") as raised:
        hook.promote(NEW, 1.0)
    assert "T0KEN" not in str(raised.value)
