"""`tidemark dashboards push` by the real grafana-client against a server that insists on Grafana's documented API.

`Contract` is Grafana 11 and 12 as far as they are documented for these calls: method, path, headers, fields of each body,
status codes and messages of refusals. A field that Grafana does not document is a fault, which every test finds empty.
The service whose story is told is the real API over a real exporter.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from monitor.cli import main
from monitor.commands import grafana as client
from monitor.commands.dashboards import NAMES, trees
from monitor.commands.story import alarm_id, marks
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.flow import Mover
from tests.conftest import free_port, missing
from tests.unit.expose.shown import alarm, launch, snapshot

TOKEN = "glsa_0123456789abcdefghijklmnopqrstuv_00000000"
BEARER = "a-service-token-of-many-characters"
#: Fields of each body that Grafana documents: those that must be there, and those that may.
FIELDS = {
    "folder": ({"title"}, {"uid", "parentUid", "description"}),
    "datasource": ({"name", "type", "access"}, {
        "uid", "url", "jsonData", "secureJsonData", "basicAuth", "basicAuthUser", "withCredentials", "isDefault", "user",
        "database", "version", "id", "orgId", "typeLogoUrl", "readOnly", "secureJsonFields"}),
    "dashboard": ({"dashboard"}, {"folderUid", "message", "overwrite"}),
    "annotation": ({"text"}, {"dashboardUID", "panelId", "time", "timeEnd", "tags"}),
    "annotation update": ({"text", "tags", "time", "timeEnd"}, set()),
}


class Contract:
    """A Grafana that remembers, and that says what was wrong with each call."""

    def __init__(self, prefix=""):
        self.folders, self.datasources, self.dashboards, self.annotations = {}, {}, {}, {}
        self.calls, self.faults, self.refusals = [], [], {}
        routes = [
            ("/api/folders/{uid}", "GET", self.get_folder), ("/api/folders", "POST", self.create_folder),
            ("/api/datasources/uid/{uid}", "GET", self.get_datasource), ("/api/datasources", "POST", self.create_datasource),
            ("/api/datasources/uid/{uid}", "PUT", self.update_datasource),
            ("/api/dashboards/uid/{uid}", "GET", self.get_dashboard), ("/api/dashboards/db", "POST", self.save_dashboard),
            ("/api/annotations", "GET", self.find_annotations), ("/api/annotations", "POST", self.create_annotation),
            ("/api/annotations/{id:int}", "PUT", self.update_annotation)]
        self.server = Server(Starlette(routes=[
            Route(prefix + path, self.checked(answer), methods=[method]) for path, method, answer in routes]), "127.0.0.1", 0)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}{prefix}"

    def checked(self, answer):
        async def endpoint(request: Request):
            self.calls.append(f"{request.method} {request.url.path}")
            if request.headers.get("authorization") != f"Bearer {TOKEN}":
                return JSONResponse({"message": "Invalid API key", "messageId": "api-key.invalid", "statusCode": 401,
                                     "traceID": ""}, 401)
            if (refusal := self.refusals.get(f"{request.method} {request.url.path}")) is not None:
                status, message = refusal
                return JSONResponse({"message": message, "status": "refused"}, status)
            body = await request.body()
            if request.method in ("POST", "PUT"):
                kind = request.headers.get("content-type", "")
                self.expect(kind.startswith("application/json"), "a body that is not called JSON")
                return answer(request, json.loads(body))
            self.expect(body == b"", "a body where there is none")
            return answer(request)
        return endpoint

    def expect(self, holds, fault):
        if not holds:
            self.faults.append(f"{self.calls[-1]}: {fault}")

    def fields(self, kind, body):
        needed, known = FIELDS[kind]
        self.expect(needed <= set(body), f"lacks {needed - set(body)}")
        self.expect(set(body) <= needed | known, f"unknown {set(body) - needed - known}")

    def get_folder(self, request):
        uid = request.path_params["uid"]
        if uid not in self.folders:
            return JSONResponse({"message": "folder not found", "status": "not-found"}, 404)
        return JSONResponse({"id": 1, "uid": uid, "title": self.folders[uid], "version": 1})

    def create_folder(self, request, body):
        self.fields("folder", body)
        if body["uid"] in self.folders:
            return JSONResponse({"message": "a folder with that UID already exists"}, 409)
        self.folders[body["uid"]] = body["title"]
        return JSONResponse({"id": 1, "uid": body["uid"], "title": body["title"], "version": 1})

    def get_datasource(self, request):
        uid = request.path_params["uid"]
        if uid not in self.datasources:
            return JSONResponse({"message": "Data source not found", "traceID": ""}, 404)
        return JSONResponse({"id": 7, "orgId": 1, "typeLogoUrl": "", "user": "", "database": "", "basicAuth": False,
                             "basicAuthUser": "", "withCredentials": False, "isDefault": False, "secureJsonFields": {},
                             "version": 1, "readOnly": False, "jsonData": {}, **self.datasources[uid]})

    def create_datasource(self, request, body):
        self.fields("datasource", body)
        if body["name"] in {one["name"] for one in self.datasources.values()}:
            return JSONResponse({"message": "data source with the same name already exists"}, 409)
        self.datasources[body["uid"]] = body
        return JSONResponse({"datasource": body, "id": 7, "message": "Datasource added", "name": body["name"]})

    def update_datasource(self, request, body):
        self.fields("datasource", body)
        self.datasources[request.path_params["uid"]] = body
        return JSONResponse({"datasource": body, "id": 7, "message": "Datasource updated", "name": body["name"]})

    def get_dashboard(self, request):
        uid = request.path_params["uid"]
        if uid not in self.dashboards:
            return JSONResponse({"message": "Dashboard not found", "status": "not-found"}, 404)
        tree, folder, version = self.dashboards[uid]
        return JSONResponse({"dashboard": {**tree, "id": 3, "version": version},
                             "meta": {"folderUid": folder, "version": version}})

    def save_dashboard(self, request, body):
        self.fields("dashboard", body)
        tree = body["dashboard"]
        self.expect(tree.get("id") is None, "an id, which is this Grafana's own")
        self.expect(len(tree["uid"]) <= 40, "a uid of more than 40 characters")
        self.expect(body["folderUid"] in self.folders, "a folder that is not there")
        _, _, version = self.dashboards.get(tree["uid"], (None, None, 0))
        if version and tree.get("version", 0) != version and not body.get("overwrite"):
            return JSONResponse({"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}, 412)
        self.dashboards[tree["uid"]] = ({**tree}, body["folderUid"], version + 1)
        return JSONResponse({"id": 3, "uid": tree["uid"], "url": f"/d/{tree['uid']}", "status": "success",
                             "version": version + 1})

    def find_annotations(self, request):
        query = request.query_params
        self.expect(set(query) <= {"from", "to", "limit", "alertId", "dashboardUID", "panelId", "userId", "type", "tags"},
                    "an unknown parameter")
        low, high = int(query.get("from", 0)), int(query.get("to", 1 << 62))
        found = [one for one in self.annotations.values() if set(query.getlist("tags")) <= set(one["tags"])
                 and one["time"] <= high and one["timeEnd"] >= low]
        found.sort(key=lambda one: -one["timeEnd"])
        return JSONResponse(found[:int(query.get("limit", 100))])

    def create_annotation(self, request, body):
        self.fields("annotation", body)
        number = len(self.annotations) + 1
        self.annotations[number] = {"id": number, "dashboardUID": None, "panelId": 0, "text": body["text"], "time": body["time"],
                                    "timeEnd": body["timeEnd"] or body["time"], "tags": body["tags"] or []}
        return JSONResponse({"message": "Annotation added", "id": number})

    def update_annotation(self, request, body):
        self.fields("annotation update", body)
        one = self.annotations[request.path_params["id"]]
        one |= {"text": body["text"], "tags": body["tags"] or []}           # tags that are not sent again are gone
        one |= {key: body[key] for key in ("time", "timeEnd") if body[key]}
        return JSONResponse({"message": "Annotation updated"})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def grafana():
    contract = Contract()
    yield contract
    contract.server.stop()
    assert contract.faults == []


class Service:
    """The real API of a service, with the alarms and launches that a test gives it."""

    def __init__(self):
        self.exporter = Exporter(10_000)
        self.server = Server(application(self.exporter, BEARER), "127.0.0.1", 0)
        self.tell((), ())
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}"

    def tell(self, alarms, launches):
        self.exporter.service(snapshot(alarms=tuple(alarms), launches=tuple(launches)))


@pytest.fixture
def service():
    running = Service()
    yield running
    running.server.stop()


@pytest.fixture
def push(grafana, service, tmp_path, capsys):
    """A function that pushes and gives (exit code, stdout, stderr)."""
    if importlib.util.find_spec("grafana_client") is None:
        missing("grafana", "no grafana-client; install the extra `grafana`")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "bearer").write_text(BEARER)

    def run(*flags, token="token", url=None):
        code = main(["dashboards", "push", "--url", url or grafana.url, "--token-file", str(tmp_path / token), *flags])
        captured = capsys.readouterr()
        assert TOKEN not in captured.out + captured.err
        return code, captured.out, captured.err

    run.story = ("--service", service.url, "--service-token-file", str(tmp_path / "bearer"))
    return run


def pushed(push, *flags):
    code, out, err = push(*push.story, *flags, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


RAISED = alarm(since=1_700_000_000.0, at=1_700_000_060.0, movers=(
    Mover("income<b>", "input", 0.62, 0.55, 0.69, 1.5, "mean"), Mover("age", "input", 0.2, 0.1, 0.3, 1.1, "mean")))
SEVERE = replace(RAISED, state="severe", at=1_700_000_120.0)
CLEARED = replace(RAISED, state="cleared", at=1_700_003_600.0, movers=(), reason="quiet")
STEPS = (("proposed", 1_700_000_121.0), ("approved", 1_700_000_121.0), ("submitted", 1_700_000_125.0),
         ("running", 1_700_000_130.0), ("succeeded", 1_700_000_400.0), ("judged", 1_700_000_410.0), ("promoted", 1_700_000_420.0))
PROMOTED = replace(launch(difference=0.1, difference_lower=0.06, difference_upper=0.14, new_version="2"), steps=STEPS)


def test_a_first_push_makes_everything_and_a_second_one_changes_nothing(push, grafana, service):
    service.tell([RAISED, SEVERE, CLEARED], [PROMOTED])
    first = pushed(push, "--prometheus-url", "http://prometheus:9090")
    assert first == {
        "url": grafana.url, "folder": "created", "datasource": "created", "dashboards": dict.fromkeys(NAMES, "created"),
        "annotations": {"created": 4, "updated": 0, "unchanged": 0}}
    assert grafana.folders == {"tidemark": "tidemark"}
    assert grafana.datasources["tidemark-prometheus"]["url"] == "http://prometheus:9090"
    assert {uid: (tree, folder) for uid, (tree, folder, _) in grafana.dashboards.items()} == {
        tree["uid"]: (tree, "tidemark") for tree in trees().values()}
    grafana.calls.clear()
    second = pushed(push, "--prometheus-url", "http://prometheus:9090")
    assert (second["folder"], second["datasource"]) == ("unchanged", "unchanged")
    assert second["dashboards"] == dict.fromkeys(NAMES, "unchanged")
    assert second["annotations"] == {"created": 0, "updated": 0, "unchanged": 4}
    assert {call.split()[0] for call in grafana.calls} == {"GET"}


def test_without_a_prometheus_address_no_data_source_is_touched(push, grafana):
    code, out, _ = push("--no-annotations")
    assert code == 0
    assert "data source: none made" in out
    assert not [call for call in grafana.calls if "datasources" in call or "annotations" in call]


def test_what_changed_is_updated_and_what_people_set_besides_is_kept(push, grafana):
    push("--no-annotations", "--prometheus-url", "http://old:9090", "--folder", "Models")
    grafana.folders["tidemark"] = "Renamed by somebody"
    grafana.datasources["tidemark-prometheus"] |= {"name": "Renamed too", "jsonData": {"timeInterval": "15s"}}
    code, out, _ = push("--no-annotations", "--prometheus-url", "http://new:9090", "--folder", "Models")
    assert code == 0
    assert "data source tidemark-prometheus: updated" in out
    assert grafana.folders == {"tidemark": "Renamed by somebody"}
    kept = grafana.datasources["tidemark-prometheus"]
    assert (kept["url"], kept["name"], kept["jsonData"]) == ("http://new:9090", "Renamed too", {"timeInterval": "15s"})


def test_a_dashboard_that_somebody_saved_meanwhile_is_ours_again_after_a_push(push, grafana):
    push("--no-annotations")
    tree, folder, version = grafana.dashboards["tidemark-fleet"]
    grafana.dashboards["tidemark-fleet"] = ({**tree, "title": "Edited"}, folder, version + 5)
    _, out, _ = push("--no-annotations")
    assert "tidemark-fleet: updated" in out
    assert "tidemark-model: unchanged" in out
    assert grafana.dashboards["tidemark-fleet"][0]["title"] == "tidemark / Fleet"


def test_the_services_address_is_in_the_links_of_what_is_pushed(push, grafana):
    assert push("--no-annotations", "--service-url", "https://tidemark.here/")[0] == 0
    [service] = [one for one in grafana.dashboards["tidemark-model"][0]["templating"]["list"] if one["name"] == "service"]
    assert (service["type"], service["query"]) == ("textbox", "https://tidemark.here")
    _, out, _ = push("--no-annotations", "--service-url", "https://tidemark.here")
    assert "tidemark-model: unchanged" in out


def test_a_version_conflict_that_stays_is_one_line(push, grafana):
    grafana.refusals["POST /api/dashboards/db"] = (412, "The dashboard has been changed by someone else")
    assert push("--no-annotations") == (1, "", (
        f"tidemark dashboards: {grafana.url}: expected to save the dashboard tidemark-fleet, got 412 (The dashboard has been "
        "changed by someone else); somebody else owns it or saved it just now: push again, or remove the other one\n"))


def test_an_open_alarm_is_a_mark_that_its_clearing_makes_a_region_of(push, grafana, service):
    service.tell([RAISED], [])
    assert pushed(push)["annotations"]["created"] == 1
    [one] = grafana.annotations.values()
    assert (one["time"], one["timeEnd"]) == (1_700_000_000_000, 1_700_000_000_000)
    assert one["tags"] == ["tidemark", "alarm", "model:loans", f"alarm:{alarm_id(RAISED)}"]
    assert "input income&lt;b&gt;: mean +0.620 s.d. [+0.550, +0.690]" in one["text"]
    service.tell([RAISED, SEVERE], [])
    assert pushed(push)["annotations"] == {"created": 0, "updated": 1, "unchanged": 0}
    service.tell([RAISED, SEVERE, CLEARED], [])
    assert pushed(push)["annotations"] == {"created": 0, "updated": 1, "unchanged": 0}
    [one] = grafana.annotations.values()
    assert (one["time"], one["timeEnd"]) == (1_700_000_000_000, 1_700_003_600_000)
    assert one["tags"] == ["tidemark", "alarm", "model:loans", f"alarm:{alarm_id(RAISED)}", "severe"]
    assert one["text"].endswith("cleared: quiet")


def test_a_launch_grows_from_its_decision_to_verdict_and_promotion(push, grafana, service):
    service.tell([], [replace(PROMOTED, state="running", steps=STEPS[:4])])
    assert pushed(push)["annotations"]["created"] == 1
    service.tell([], [PROMOTED])
    assert pushed(push)["annotations"] == {"created": 2, "updated": 1, "unchanged": 0}
    region, verdict, promotion = sorted(grafana.annotations.values(), key=lambda one: one["time"])
    assert (region["time"], region["timeEnd"]) == (1_700_000_121_000, 1_700_000_410_000)
    assert (verdict["time"], promotion["time"]) == (1_700_000_410_000, 1_700_000_420_000)
    assert "champion 0.8, challenger 0.9, difference +0.1 [+0.06, +0.14]" in verdict["text"]
    assert "version 2 takes the place of 1" in promotion["text"]
    assert [one["tags"][1] for one in (region, verdict, promotion)] == ["launch", "verdict", "promotion"]


def test_marks_are_found_again_where_grafana_has_more_than_it_gives_at_once(push, grafana, service, monkeypatch):
    monkeypatch.setattr(client, "MARKS_MAX", 3)
    service.tell([replace(RAISED, episode=number) for number in range(1, 9)], [])
    assert pushed(push)["annotations"]["created"] == 8
    assert pushed(push)["annotations"] == {"created": 0, "updated": 0, "unchanged": 8}
    assert len(grafana.annotations) == 8


def test_a_wrong_token_is_one_line_that_does_not_repeat_it(push, grafana, tmp_path):
    (tmp_path / "wrong").write_text("glsa_wrong")
    code, out, err = push("--no-annotations", token="wrong")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{grafana.url}: expected a token that Grafana takes, got 401" in err
    assert "glsa_wrong" not in err


@pytest.mark.parametrize(("call", "status", "message", "said"), [
    ("POST /api/folders", 403, "You'll need additional permissions", "a token that may create the folder 'tidemark', got 403"),
    ("GET /api/folders/tidemark", 500, "Internal\nServer Error", "expected to read folders, got 500 (Internal\\nServer Error)"),
    ("POST /api/dashboards/db", 400, "Cannot save provisioned dashboard", "got 400"),
    ("POST /api/datasources", 409, "data source with the same name already exists", "got 409 (data source with the same name"),
    ("GET /api/annotations", 403, "", "expected a token that may read annotations, got 403 (no reason given)"),
    ("POST /api/annotations", 404, "Not found", "expected Grafana to create an annotation, got 404")])
def test_what_grafana_refuses_is_one_line_that_says_what_was_tried(push, grafana, service, call, status, message, said):
    service.tell([RAISED], [])
    grafana.refusals[call] = (status, message)
    code, out, err = push(*push.story, "--prometheus-url", "http://p:9090")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err


def test_a_server_that_is_down_is_one_line(push):
    port = free_port()
    code, _, err = push("--no-annotations", url=f"http://127.0.0.1:{port}")
    assert (code, err) == (1, f"tidemark dashboards: http://127.0.0.1:{port}: expected Grafana there, got Connection refused; is "
                              "it running, and is this its address?\n")


@pytest.mark.parametrize(("text", "reason"), [
    ("HTTPConnectionPool(host='g', port=3000): Max retries exceeded with url: / (Caused by NameResolutionError(\"<a.Connection "
     "object at 0x7f16878f0e50>: Failed to resolve 'g' (Name or service not known: g using 1 resolver(s))\"))",
     "Failed to resolve 'g' (Name or service not known: g using 1 resolver(s))"),
    ("HTTPSConnectionPool(host='g', port=443): Max retries (Caused by SSLError(SSLCertVerificationError(1, 'self-signed')))",
     "SSLCertVerificationError(1, 'self-signed')"),
    ("", "OSError"), ("something else", "something else")])
def test_the_reason_of_a_failed_connection_is_its_innermost_words(text, reason):
    assert client._reason(OSError(text) if text else OSError()) == reason


@pytest.mark.parametrize("answer", [
    HTMLResponse("<html>log in</html>"), HTMLResponse("[1", headers={"content-type": "application/json"})])
def test_a_server_that_is_not_grafana_is_one_line(push, answer):
    async def everything(request):
        return answer

    server = Server(Starlette(routes=[Route("/{path:path}", everything, methods=["GET", "POST"])]), "127.0.0.1", 0)
    server.start()
    try:
        code, _, err = push("--no-annotations", url=f"http://127.0.0.1:{server.port}")
    finally:
        server.stop()
    assert (code, err.count("\n")) == (1, 1)
    assert "expected Grafana's answer in JSON to read folders, got something else" in err


def test_a_grafana_below_a_path_is_reached_there(push, tmp_path):
    contract = Contract("/grafana")
    try:
        code, out, _ = push("--no-annotations", url=contract.url + "/")
        assert code == 0
        assert f"{contract.url}/d/tidemark-fleet: created" in out
        assert (contract.faults, len(contract.dashboards)) == ([], 4)
    finally:
        contract.server.stop()


def test_a_service_that_is_down_or_wants_another_token_is_one_line_and_nothing_is_written(push, grafana, service, tmp_path):
    code, _, err = push("--service", f"http://127.0.0.1:{free_port()}")
    assert (code, err.count("\n")) == (1, 1)
    assert "expected the running service there, got [Errno 111] Connection refused" in err
    code, _, err = push("--service", service.url)
    assert (code, err.count("\n")) == (1, 1)
    assert "/api/v1/alarms: expected an answer of the service, got 401; it wants its token" in err
    assert BEARER not in err
    assert grafana.calls == []


@pytest.mark.parametrize(("flags", "said"), [
    (["--url", "grafana.example"], "grafana.url: expected an address such as https://grafana.example, got 'grafana.example'"),
    (["--url", "https://admin:geheim@grafana.example"], "grafana.url: expected an address without a name and password in it"),
    (["--url", "https://grafana.example:port"], "grafana.url: expected an address"),
    (["--url", "https://grafana.example"], "grafana.token_file: expected a value, got none"),
    ([], "grafana.url: expected a value, got none"),
    (["--url", "https://g.example", "--token-file", "/nowhere"], "grafana.token_file: expected a file with Grafana's token")])
def test_a_wrong_flag_is_one_line_and_exit_code_2(flags, said, tmp_path, capsys):
    (tmp_path / "token").write_text(TOKEN)
    given = flags if "--token-file" in flags or "got none" in said else [*flags, "--token-file", str(tmp_path / "token")]
    assert main(["dashboards", "push", "--no-annotations", *given]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "geheim" not in err
    assert err.count("\n") == 1


def test_the_configuration_says_what_no_flag_says(push, grafana, service, tmp_path, capsys):
    (tmp_path / "tidemark.yaml").write_text(json.dumps({
        "service": {"listen": f"0.0.0.0:{service.server.port}", "token_file": str(tmp_path / "bearer")},
        "files": {"paths": ["events.jsonl"]}, "monitors": [{"model": "loans", "topic": "t", "reference": "r.json"}],
        "grafana": {"url": "http://127.0.0.1:9", "token_file": str(tmp_path / "token"), "folder": "Watched models",
                    "prometheus_url": "http://prometheus:9090"}}))
    service.tell([RAISED, CLEARED], [])
    assert main(["dashboards", "push", "-c", str(tmp_path / "tidemark.yaml"), "--url", grafana.url]) == 0
    assert "annotations: 1 created, 0 updated, 0 unchanged" in capsys.readouterr().out
    assert grafana.folders == {"tidemark": "Watched models"}
    assert grafana.datasources["tidemark-prometheus"]["url"] == "http://prometheus:9090"


def test_without_grafana_client_one_line_names_the_extra(push, monkeypatch):
    monkeypatch.setitem(sys.modules, "grafana_client.client", None)
    assert push("--no-annotations") == (
        1, "", "tidemark dashboards: expected the package grafana-client, found none; pip install 'tidemark[grafana]'\n")


# ---- the story --------------------------------------------------------------------------------------------------------

def test_the_order_in_which_the_api_tells_does_not_matter():
    alarms = [RAISED, SEVERE, CLEARED, replace(RAISED, episode=2, at=1_700_009_000.0, since=1_700_008_000.0)]
    assert marks(alarms, [PROMOTED]) == marks(alarms[::-1], [PROMOTED])
    assert [mark.end is None for mark in marks(alarms, [])] == [False, True]


def test_alarms_that_differ_in_anything_that_names_them_have_marks_of_their_own():
    others = [{"model": "fraud"}, {"version": "2"}, {"segment": "north"}, {"episode": 2}, {"kind": "quality"},
              {"cause": "volume"}]
    ids = {alarm_id(RAISED), *(alarm_id(replace(RAISED, **other)) for other in others)}
    assert len(ids) == 7
    assert {alarm_id(replace(RAISED, state=state, at=9e9)) for state in ("severe", "cleared")} == {alarm_id(RAISED)}


def test_a_clearing_whose_raising_the_api_has_forgotten_ends_after_it_begins():
    [mark] = marks([replace(CLEARED, since=0.0)], [])
    assert mark.start == mark.end == 1_700_003_600_000
    [mark] = marks([CLEARED], [])
    assert (mark.start, mark.end) == (1_700_000_000_000, 1_700_003_600_000)


def test_a_fault_of_the_data_says_what_broke():
    [mark] = marks([replace(RAISED, kind="quality", cause="volume", movers=(), words="No events for 10 panes.")], [])
    assert mark.text == "Alarm (quality) 1 of loans version 1<br>No events for 10 panes."


def test_a_launch_that_failed_ends_where_it_failed_and_has_no_verdict():
    failed = replace(PROMOTED, state="failed", steps=(*STEPS[:4], ("failed", 1_700_000_200.0)), detail="exit code 1")
    [mark] = marks([], [failed])
    assert (mark.end, mark.text.split("<br>")[1:]) == (1_700_000_200_000, ["by local: failed", "exit code 1"])
