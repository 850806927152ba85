"""The HTTP API by its own description: schemathesis asks what OpenAPI allows and what it does not, and compares the answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from monitor.expose.api import application
from monitor.expose.exporter import Exporter
from monitor.expose.inbox import Inbox
from monitor.expose.rates import Rates
from tests.conftest import package
from tests.unit.expose.shown import World, alarm, launch, snapshot

schemathesis = package("schemathesis")

TOKEN = "correct-horse-battery-staple"


def served(token: str | None) -> Any:
    """The application over a small judged world; nobody takes what is asked, so that every answer is `noted` or `busy`."""
    exporter = Exporter(1_000)
    World(4).show(exporter, 2.0)
    exporter.service(snapshot(launches=(launch("proposed"),), alarms=(alarm(),)))
    inbox = Inbox(0.0)
    app = application(exporter, token, inbox=inbox, rates=Rates({"changes": 10**9, "failures": 10**9}))
    app.state.inbox = inbox
    return app


APPS = {"with": served(TOKEN), "without": served(None)}
SCHEMAS = {name: schemathesis.openapi.from_asgi("/openapi.json", app) for name, app in APPS.items()}
OPERATIONS = [(name, operation.ok().label) for name, schema in SCHEMAS.items() for operation in schema.get_all_operations()]


@pytest.mark.parametrize(("name", "label"), OPERATIONS)
def test_every_answer_is_one_that_the_description_knows(name, label):
    """No 5xx but the described 503, status, type and body as described, bad requests refused, the token asked for."""
    operation = next(one.ok() for one in SCHEMAS[name].get_all_operations() if one.ok().label == label)
    headers = {"Authorization": f"Bearer {TOKEN}"} if name == "with" else {}
    checks = schemathesis.checks

    @settings(max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @schemathesis_cases(operation)
    def holds(case: Any) -> None:
        APPS[name].state.inbox.take()
        response = case.call(headers=headers)
        case.validate_response(response, excluded_checks=[
            checks.not_a_server_error, checks.positive_data_acceptance] if response.status_code == 503 else [
            checks.positive_data_acceptance])           # a launch or a model that does not exist is a 404

    holds()


def schemathesis_cases(operation: Any) -> Any:
    """`given` over the operation's requests, as described and not."""
    from hypothesis import given
    from hypothesis import strategies as st
    from schemathesis import GenerationMode

    return given(case=st.one_of(operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
                                operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)))
