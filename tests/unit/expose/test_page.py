"""The built-in page: what it says is what is published, whatever is in the names, at any size."""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from dashboards.panels import LAUNCH_COLOURS, STATE_COLOURS
from detectors.scan import Scan
from monitor.decide.explain import columns as reasons
from monitor.decisions import Decision
from monitor.expose.api import STALLED_SECONDS, Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.history import PANES_KEPT
from monitor.expose.judged import Frame, Judged
from monitor.expose.page.draw import strips
from monitor.expose.page.fleet import MODELS_A_PAGE
from monitor.expose.page.html import element, plain
from monitor.expose.page.routes import routes
from monitor.expose.page.style import DARK, HUES, LAUNCH_HUES, LIGHT, PAIRS, POLICY, SCRIPT, STYLE, contrast
from monitor.expose.page.words import decimals
from monitor.expose.snapshot import OpenAlarm, Published, ServiceSnapshot, Why
from monitor.flow import Mover
from monitor.metrics import LAUNCH_STATES, STATES
from tests.unit.expose.shown import World, alarm, launch, snapshot, status

HOSTILE = '"><script>alert(1)</script>&lt;\x00\u202e\ud800'
VOID = {"meta", "link", "input", "br"}
#: Elements that a page is made of; anything else was somebody's.
ELEMENTS = {"html", "head", "body", "title", "meta", "link", "noscript", "script", "a", "header", "nav", "main", "footer", "p",
            "h1",
            "h2", "h3", "ul", "ol", "li", "div", "span", "b", "section", "article", "table", "caption", "thead", "tbody", "tr",
            "th",
            "td", "dl", "dt", "dd", "time", "details", "summary", "form", "label", "input", "button", "svg", "path", "line",
            "rect",
            "circle", "text", "desc"}


class Seen(HTMLParser):
    """A page as a browser would read it: its elements, their texts and attributes; AssertionError where it is not whole."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.said: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.said.setdefault(tag, []).append(data)

    def all(self, tag, **wanted):
        """The attributes of every element of that name which has these."""
        return [attributes for name, attributes in self.found if name == tag
                and all(attributes.get(key) == value for key, value in wanted.items())]

    def text(self, tag="main"):
        return " ".join(" ".join(self.said.get(tag, [])).split())


@pytest.fixture
def client_of():
    """A function that serves an exporter with its page on a free port and gives a client of it."""
    started = []

    def start(exporter, token=None, **options):
        server = Server(application(exporter, token, more=routes(exporter, **options)), "127.0.0.1", 0)
        server.start()
        client = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False)
        started.append((server, client))
        return client

    yield start
    for server, client in started:
        client.close()
        server.stop()


class Fixed:
    """An exporter that shows one thing."""

    def __init__(self, published: Published) -> None:
        self.published = published

    def scrape(self) -> bytes:
        return self.published.text


def page_of(client, path):
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return Seen(answer.text)


def drifted(world=None, panes=12, exporter=None):
    """An exporter that has shown quiet panes and then a shift of the first column, with the reasons of `explain`."""
    world, exporter = world or World(6), exporter or Exporter(10_000)
    for pane in range(panes):
        shift = 0.0 if pane < panes // 2 else 1.0
        evaluation = world.evaluation(shift, "warning" if shift else "quiet")
        exporter.record(evaluation, world.reference)
    profile = evaluation.window.profile
    why = Why(("It moved.",), lambda: reasons(world.reference, world.scan, evaluation.scores))
    exporter.show(evaluation, world.reference, {"psi": np.linspace(0, 1, len(world.names))}, (profile.counts, profile.events),
                  why=why)
    return exporter, world, evaluation


# ---- one truth --------------------------------------------------------------------------------------------------------

def test_the_page_shows_the_numbers_of_the_api_and_the_sentences_of_explain(client_of):
    exporter, world, evaluation = drifted()
    exporter.service(snapshot(status(model=world.model)))
    client = client_of(exporter)
    [stream] = client.get("/api/v1/monitors/loans").json()["streams"]
    text = page_of(client, "/models/loans").text()
    for column in stream["columns"][:15]:
        assert f"{column['column']} {column['role']} {decimals(column['score'])} {decimals(column['severe_score'])}" in text
    sentences = [one.sentence for one in reasons(world.reference, world.scan, evaluation.scores)]
    assert sentences[0].startswith("moved: ")
    assert [sentence for sentence in sentences[:10] if " ".join(sentence.split()) not in text] == []
    assert f"{decimals(stream['score'])} highest score; 1 is an alarm" in text
    assert "It moved." in text
    fleet = page_of(client, "/").text()
    assert f"warning loans 1 {decimals(stream['score'])}" in fleet


def test_the_colours_of_states_and_launches_are_those_of_the_dashboards():
    same = {"text": "grey"}
    for ours, theirs, names in ((HUES, STATE_COLOURS, STATES), (LAUNCH_HUES, LAUNCH_COLOURS, LAUNCH_STATES)):
        assert set(ours) == set(names)
        for name in names:
            colour = theirs[name].removeprefix("super-").removeprefix("light-").removeprefix("dark-")
            assert ours[name] == same.get(colour, colour), name


def test_an_alarm_is_told_from_its_raising_to_what_was_done_and_its_report_is_linked(client_of):
    exporter, _, _ = drifted()
    mover = Mover("column_0", "input", 0.9, 0.85, 0.95, 3.0, "mean")
    exporter.service(snapshot(
        alarms=(alarm(movers=(mover,)), alarm(state="severe", at=120.0, movers=(mover,), severe_score=1.7),
                alarm(state="cleared", at=300.0, reason="new reference")),
        decided=(Decision("loans", "1", 1, 120.0, "no", "cooldown"), Decision("loans", "1", 1, 180.0, "launch", "")),
        launches=(replace(
            launch(difference=0.1, difference_lower=0.08, difference_upper=0.12, new_version="2", detail="on 900 events"),
            decided_at=180.0, cut_over_at=300.0, steps=(("proposed", 1.0), ("judged", 2.0), ("promoted", 3.0))),)))
    seen = page_of(client_of(exporter, reports=True), "/models/loans")
    text = seen.text()
    told = ["Severe drift alarm 1", "column_0 (input): mean +0.900 s.d. [+0.850, +0.950], evidence 3.00",
            "raised with 1.50 of an",
            "severe: surely beyond retrain.above, 1.70", "no retraining (cooldown): ", "a retraining is worth it",
            "cleared: new reference", "1 left in the running week", "Launch 0123456789ab", "0.8000 accuracy",
            "+0.1000 [+0.0800, +0.1200]", "on 900 events", "judged: better", "promoted: version 2 takes the place of 1"]
    place = 0
    for words in told:                              # in this order
        assert words in text[place:], words
        place = text.index(words, place)
    assert seen.all("a", href="/reports/loans-1-drift-1")
    marks = [attributes["class"] for attributes in seen.all("circle") if "dot" in attributes["class"]]
    assert {"dot orange", "dot red", "dot green", "dot purple", "dot blue"} <= set(marks)


def test_without_reports_none_is_linked(client_of):
    exporter, _, _ = drifted()
    exporter.service(snapshot())
    assert "/reports" not in client_of(exporter).get("/models/loans").text


def test_what_is_open_stands_before_what_is_over(client_of):
    exporter, _, _ = drifted()
    exporter.service(snapshot(alarms=(
        alarm(kind="quality", cause="volume", words="no events for 10 panes", at=10.0), alarm(at=20.0), alarm(state="cleared",
                                                                                                              at=30.0))))
    text = page_of(client_of(exporter), "/models/loans").text()
    assert text.index("Data alarm 1") < text.index("Drift alarm 1")
    assert "no events for 10 panes" in text


# ---- the list ---------------------------------------------------------------------------------------------------------

def fleet_of(states):
    """An exporter with a model for each state, named by it."""
    exporter = Exporter(100_000)
    worlds = World(3)
    base = worlds.evaluation()
    for name, state in states.items():
        reference = replace(worlds.reference, model=name)
        window = replace(base.window, model=name)
        exporter.show(replace(base, window=window, state=state), reference)
    exporter.service(snapshot(*(status(model=name) for name in [*states, "new"]), open_alarms={
        (name, "1", "all", "quality", "volume", "raised"): OpenAlarm(1, 60.0) for name in list(states)[:1]}))
    return exporter


def test_the_worst_model_stands_first_and_every_state_can_be_asked_for(client_of):
    client = client_of(fleet_of({"a": "quiet", "b": "drift", "c": "insufficient_data", "d": "warning",
                                 "e": "reference_inadequate"}))

    def models(path):
        return [attributes["href"].rsplit("/")[-1] for attributes in page_of(client, path).all("a")
                if (attributes["href"] or "").startswith("/models/")][:6]

    assert models("/")[:6] == ["b", "d", "a", "e", "c", "new"]
    assert models("/?state=drift")[:1] == ["b"]
    assert "a" not in models("/?state=drift")
    assert models("/?state=cannot")[:2] == ["e", "c"]
    assert models("/?state=faults")[:1] == ["a"]
    assert models("/?q=NE")[:1] == ["new"]
    assert "None of them." in page_of(client, "/?q=nobody").text()
    assert "5 models watched" not in page_of(client, "/").text()
    assert "6 models watched" in page_of(client, "/").text()


def test_a_page_of_a_long_list_shows_the_rest_on_the_next(client_of):
    exporter = Exporter(1_000)
    exporter.service(snapshot(*(status(model=f"m{number:03}") for number in range(MODELS_A_PAGE + 20)), alarms=()))
    client = client_of(exporter)
    first, second = (page_of(client, path) for path in ("/", "/?page=2"))
    links = [[a["href"] for a in seen.all("a") if "/models/" in (a["href"] or "")] for seen in (first, second)]
    assert [len(found) for found in links] == [MODELS_A_PAGE, 20]
    assert set(links[0]) & set(links[1]) == set()
    assert page_of(client, "/?page=99999").all("a", href="/models/m119")          # beyond the last is the last
    assert second.all("a", **{"aria-current": "page"})


def test_a_service_that_has_seen_nothing_has_a_page(client_of):
    client = client_of(Exporter(1_000))
    assert "Not ready: starting" in page_of(client, "/").text()
    exporter = Exporter(1_000)
    exporter.service(snapshot(status(events={}, watermark=None, launcher="", budget_remaining=None), alarms=(), launches=(),
                              open_alarms={}))
    text = page_of(client_of(exporter), "/models/loans").text()
    assert "learning" in text
    assert "No pane of loans was judged since" in text


def test_a_pane_that_says_nothing_is_drawn_as_nothing(client_of):
    exporter, world = Exporter(10_000), World(4)
    evaluation = world.evaluation(n=3, state="insufficient_data")
    exporter.record(evaluation, world.reference)
    exporter.show(evaluation, world.reference, {}, (evaluation.window.profile.counts, 3))
    exporter.service(snapshot())
    seen = page_of(client_of(exporter), "/models/loans")
    assert "nan" not in seen.text()
    assert [a["d"] for a in seen.all("path") if "nan" in (a.get("d") or "")] == []
    exporter.show(evaluation, world.reference, {}, (0 * evaluation.window.profile.counts, 0))
    exporter.service(snapshot())
    assert "The window holds no events." in page_of(client_of(exporter), "/models/loans").text()


def test_a_stalled_loop_is_told_loudly(client_of):
    now = [0.0]
    exporter = Exporter(1_000, monotonic=lambda: now[0])
    exporter.service(snapshot())
    client = client_of(exporter, monotonic=lambda: now[0])
    now[0] = STALLED_SECONDS
    assert "stands still" not in page_of(client, "/").text()
    now[0] += 1
    assert "stands still" in page_of(client, "/models/loans").text()


# ---- strangers' words -------------------------------------------------------------------------------------------------

def test_whatever_names_and_words_hold_the_page_stays_whole(client_of):
    names = [f"{HOSTILE}{number}" for number in range(3)] + ["\n", "'onload=x "]
    world = World(names=names, model=HOSTILE, version=HOSTILE)
    exporter, _, _ = drifted(world)
    mover = Mover(HOSTILE, HOSTILE, 0.9, 0.8, 1.0, 2.0, HOSTILE, words=HOSTILE)
    told = {"model": HOSTILE, "version": HOSTILE, "words": HOSTILE, "cause": HOSTILE, "reason": HOSTILE}
    exporter.service(snapshot(
        status(model=HOSTILE, version=HOSTILE, digest=HOSTILE, metric=HOSTILE, events={("refused", HOSTILE): 3}),
        alarms=(alarm(movers=(mover,), **told), alarm(state="cleared", **told)), reason=HOSTILE,
        decided=(Decision(HOSTILE, HOSTILE, 1, 1.0, "no", HOSTILE, by=HOSTILE),),            # type: ignore[arg-type]
        launches=(replace(launch(), model=HOSTILE, version=HOSTILE, detail=HOSTILE, verdict=HOSTILE, new_version=HOSTILE,
                          by=HOSTILE,
                          why=HOSTILE, launcher=HOSTILE, steps=((HOSTILE, 1.0), ("judged", 2.0))),)))
    client = client_of(exporter, reports=True)
    link = next(a["href"] for a in page_of(client, "/").all("a") if a["href"].startswith("/models/"))
    for path in ("/", link, f"{link}?column={quote(names[1], errors='replace')}", f"/?q={quote(HOSTILE, errors='replace')}"):
        answer = client.get(path)
        seen = Seen(answer.text)
        assert {tag for tag, _ in seen.found} <= ELEMENTS
        assert len(seen.all("script")) == 1
        assert [(tag, key) for tag,
                attributes in seen.found for key in attributes if key.startswith("on") or key == "style"] == []
        assert not any(letter in answer.text for letter in "\x00\u202e\ud800")


def test_an_element_escapes_texts_and_attributes_and_nothing_else():
    assert element("p", "<b>", element("i", '"'), title='"<&') == '<p title="&quot;&lt;&amp;">&lt;b&gt;<i>&quot;</i></p>'
    assert plain("a\x00b\u202ec") == "a\ufffdb\ufffdc"


def test_an_unknown_model_is_a_page_that_names_those_that_there_are(client_of):
    exporter = Exporter(1_000)
    exporter.service(snapshot())
    for name in ("nobody", "%3Cscript%3E", "a%2Fb", "%00"):
        answer = client_of(exporter).get(f"/models/{name}")
        assert answer.status_code == 404
        if answer.headers["content-type"].startswith("text/html"):
            assert Seen(answer.text).all("a", href="/models/loans")


@pytest.mark.parametrize("query", ["page=-1", "page=x", "page=١", "page=" + "9" * 400, "column=" + "x" * 5000,
                                   "version=%00&segment=a",
                                   "state=<", "live=<", "q=%ff", "column=%ED%A0%80", "&&=&"])
def test_no_address_breaks_the_page(client_of, query):
    exporter, _, _ = drifted()
    exporter.service(snapshot())
    client = client_of(exporter)
    for path in ("/", "/models/loans"):
        assert client.get(f"{path}?{query}").status_code == 200


# ---- what it may do ---------------------------------------------------------------------------------------------------

def test_the_page_forbids_itself_everything_but_its_own_style_and_script(client_of):
    exporter, _, _ = drifted()
    exporter.service(snapshot())
    client = client_of(exporter)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    for path in ("/", "/models/loans", "/models/nobody"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy == POLICY
        assert f"script-src 'sha256-{digest}'" in policy
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        seen = Seen(answer.text)
        assert [a for tag,
                a in seen.found if "://" in (a.get("href") or a.get("src") or "") and not a["href"].startswith("data:")] == []
        assert SCRIPT in answer.text
    style = client.get(seen.all("link", rel="stylesheet")[0]["href"])
    assert (style.text, style.headers["content-type"]) == (STYLE, "text/css; charset=utf-8")
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    still = client.get("/?live=off").text
    assert "<script" not in still
    assert "http-equiv" not in still


def test_the_page_is_as_open_as_the_metrics_and_nothing_can_be_changed_by_it(client_of):
    exporter, _, _ = drifted()
    exporter.service(snapshot(launches=(launch(data_uri="s3://secret/data", output_uri="s3://secret/out",
                                               model_uri="s3://secret/model"),)))
    client = client_of(exporter, token="correct-horse-battery-staple")
    assert client.get("/api/v1/alarms").status_code == 401
    for path in ("/", "/models/loans", "/style.css"):
        assert client.get(path).status_code == 200
        assert "s3://secret" not in client.get(path).text
        for method in ("POST", "PUT", "DELETE"):
            assert client.request(method, path).status_code == 405


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_can_be_read_on_its_ground(scheme):
    weak = {pair: contrast(*(scheme[name] for name in pair)) for pair in PAIRS}
    assert {pair: value for pair, value in weak.items() if value < 4.5} == {}
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


# ---- history ----------------------------------------------------------------------------------------------------------

def test_every_pane_of_a_burst_is_kept_and_no_more_than_the_bound():
    exporter, world = Exporter(1_000), World(2)
    evaluation = world.evaluation()
    for pane in range(PANES_KEPT + 5):
        exporter.record(replace(evaluation, window=replace(evaluation.window, start=pane * 60.0, end=pane * 60.0 + 60)),
                        world.reference)
    assert exporter.published.history == {}                             # nothing is visible before `service`
    exporter.service(snapshot())
    kept = exporter.published.history["loans", "all"]
    assert len(kept) == PANES_KEPT
    assert [kept[0].end, kept[-1].end] == [360.0, (PANES_KEPT + 5) * 60.0]
    before = exporter.published.history["loans", "all"]
    exporter.record(evaluation, world.reference)
    exporter.service(snapshot())
    assert len(before) == PANES_KEPT
    assert before is kept


def test_scores_over_time_are_those_that_were_decided():
    exporter, _, evaluation = drifted(panes=8)
    exporter.service(snapshot())
    last = exporter.published.history["loans", "all"][-1]
    np.testing.assert_allclose(last.scores, evaluation.scores.evidence, rtol=1e-3)
    assert (last.score, last.severe, list(STATES)[last.state]) == (evaluation.scores.score, evaluation.scores.severe, "warning")
    [highest, *_] = strips(exporter.published.history["loans", "all"], 25)
    assert highest.column == "column_0"
    assert highest.highest == pytest.approx(max(float(pane.scores[0]) for pane in exporter.published.history["loans", "all"]))


def test_a_cut_over_ends_no_line_and_a_model_that_left_is_forgotten():
    exporter, world, _ = drifted()
    promoted = World(6, version="2")
    promoted.pane = 20
    exporter.forget("loans", "1")
    exporter.record(promoted.evaluation(), promoted.reference)
    exporter.service(snapshot(status(version="2")))
    kept = exporter.published.history["loans", "all"]
    assert [pane.version for pane in kept] == ["1"] * 12 + ["2"]
    assert {strip.column for strip in strips(kept, 50)} >= set(world.names)
    exporter.service(snapshot(status(model="other")))
    assert exporter.published.history == {}


def test_a_gap_breaks_the_line(client_of):
    exporter, world = Exporter(1_000), World(3)
    for pane in (0, 1, 2, 10, 11):
        evaluation = world.evaluation()
        window = replace(evaluation.window, start=pane * 60.0 + 6e8, end=pane * 60.0 + 6e8 + 60)
        exporter.record(replace(evaluation, window=window), world.reference)
    exporter.show(evaluation, world.reference)
    exporter.service(snapshot())
    [line] = [a["d"] for a in page_of(client_of(exporter),
                                      "/models/loans").all("path") if a.get("class") == "score" and "V" not in a["d"]
              and a["d"].startswith("M0 ") and "H8" in a["d"]]
    assert line.count("M") == 2


# ---- sizes ------------------------------------------------------------------------------------------------------------

def broad(rows):
    """A judged pane of some 2,000 rows, made of one of 25 over and over, and its reasons."""
    world = World(13)
    evaluation = world.evaluation(1.0, "drift")
    times = -(-rows // len(world.reference.records))
    reference = replace(world.reference, records=world.reference.records * times, columns=world.reference.columns * times,
                        joint=None)
    scores = evaluation.scores
    wide = {name: np.tile(getattr(scores, name), (times, 1) if getattr(scores, name).ndim == 2 else times) for name in (
        "z", "z_quality", "z_severe", "z_lasting", "z_lasting_quality", "best_window", "window_events", "effect", "effect_lower",
        "effect_upper", "test", "quality")}
    scores = replace(scores, rows=tuple(f"column_{place}" for place in range(len(scores.rows) * times)), unit=scores.unit * times,
                     what=scores.what * times, state=scores.state * times, faults={}, named=(), strongest_severe=None, **wide)
    profile = replace(evaluation.window.profile, counts=np.tile(evaluation.window.profile.counts, (times, 1)))
    return replace(evaluation, scores=scores, window=replace(evaluation.window, profile=profile)), reference, world


def least_seconds(work, times=5):
    """The least time of the processor that a thread took for it: what other programs do at once does not count."""
    found = []
    for _ in range(times):
        begun = time.thread_time()
        work()
        found.append(time.thread_time() - begun)
    return min(found)


def test_two_thousand_columns_and_five_hundred_models_stay_small_and_fast():
    from monitor.expose.page.fleet import fleet
    from monitor.expose.page.frame import Asked
    from monitor.expose.page.model import model

    evaluation, reference, world = broad(2_000)
    scan = Scan(reference)
    frame = object.__new__(Frame)
    names = evaluation.scores.rows
    frame.reference, frame.columns, frame.roles = reference, names, ("input",) * len(names)
    frame.bins = Frame(world.reference).bins * (len(names) // len(world.reference.records))
    exporter = Exporter(1_000_000)
    exporter._frames["loans", "1"] = frame
    exporter.show(evaluation, reference, {}, (evaluation.window.profile.counts, evaluation.window.profile.events),
                  why=Why(("x",), lambda: reasons(reference, scan, evaluation.scores)))
    for _ in range(PANES_KEPT):
        exporter.record(evaluation, reference)
    exporter.service(snapshot(alarms=tuple(alarm(episode=number, movers=(Mover("x" * 100, "input", 1, 1, 1, 1, "mean"),) * 50)
                                           for number in range(100))))
    published = exporter.published
    made = model(published, Asked("/models/loans"), "loans")
    assert len(made) < 2_000_000
    assert least_seconds(lambda: model(published, Asked("/models/loans"), "loans")) < 0.3

    small = Judged.of(World(3).evaluation(), Frame(World(3).reference), {}, None, {})
    statuses = tuple(status(model=f"model-{number}") for number in range(500))
    judged = tuple((replace(small, evaluation=replace(small.evaluation, window=replace(small.evaluation.window,
                                                                                       model=one.model))), 0)
                   for one in statuses)
    history = {(one.model, "all"): published.history["loans", "all"] for one in statuses}
    many = Published(b"", ServiceSnapshot(True, "", statuses), judged, history=history)
    assert len(fleet(many, Asked("/"))) < 2_000_000
    assert least_seconds(lambda: fleet(many, Asked("/"))) < 0.3
