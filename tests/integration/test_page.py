"""The built-in page in a real browser: everything there, nothing wrong on the console, nothing from outside, for everyone.

Screenshots of every page, light, dark and as a phone shows it, are left in build/page for people to look at.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from monitor.decide.explain import columns as reasons
from monitor.decisions import Decision
from monitor.expose.api import Server, application
from monitor.expose.exporter import Exporter
from monitor.expose.page.routes import routes
from monitor.expose.page.style import contrast
from monitor.expose.snapshot import Why
from monitor.flow import Mover, Reading
from tests.browser import TAB, Browser, why_not
from tests.conftest import CHECKOUT, missing
from tests.unit.expose.shown import World, alarm, launch, snapshot, status

SHOTS = CHECKOUT / "build" / "page"
PAGES = {"models": "/", "model": "/models/loans", "category": "/models/loans?column=city", "unknown": "/models/nobody"}
#: 16 columns, one of which has a name that is longer than a phone is wide.
NAMES = [*(f"column_{number}" for number in range(14)), "a_column_with_a_name_that_is_longer_than_any_telephone_is_wide", "city"]


def shown():
    """An exporter with a model that was quiet, drifts, and is being retrained, beside others."""
    exporter = Exporter(10_000)
    for name in ("loans", "churn"):
        world = World(names=NAMES, model=name)
        world.pane = 26_000_000
        for pane in range(40):
            drifts = name == "loans" and pane >= 28
            evaluation = world.evaluation(0.8 if drifts else 0.0, "drift" if drifts else "quiet")
            exporter.record(evaluation, world.reference)
        profile, end = evaluation.window.profile, evaluation.window.end
        why = Why((f"{name} says why.",), lambda world=world, scores=evaluation.scores: reasons(world.reference, world.scan,
                                                                                                scores))
        exporter.show(evaluation, world.reference, {"psi": np.linspace(0, 1, len(NAMES)), "js": np.linspace(0, 1, len(NAMES))},
                      (profile.counts, profile.events), why=why)
    exporter.observe(("loans", "1", "all"), [
        Reading("evidently:wasserstein", NAMES[place % 16], "input", 39, end, 0.3, place % 2 == 0, 0.2, 0.1,
                0.2) for place in range(70)])
    began = end - 12 * 60
    movers = tuple(Mover(column, "input", 0.8, 0.7, 0.9, 3.0, "mean") for column in NAMES[:7])
    options = {"movers": movers, "at": began, "since": began - 60}
    exporter.service(snapshot(
        status(), status(model="churn"), status(model="new", launcher=""),
        alarms=(alarm(**options), alarm(state="severe", **options)), decided=(Decision("loans", "1", 1, began, "launch", ""),),
        open_alarms={}, launches=(launch(difference=0.02, difference_lower=-0.01, difference_upper=0.05, verdict="not yet known",
                                         decided_at=began, detail="accuracy of 0.8 and 0.9 on 900 events"),)))
    return exporter


@pytest.fixture(scope="module")
def address():
    """Where the page is served."""
    exporter = shown()
    server = Server(application(exporter, more=routes(exporter, reports=True)), "127.0.0.1", 0)
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    if lack := why_not():
        missing("chromium", f"{lack}: the built-in page is not seen in a browser")
    with Browser() as found:
        yield found


@pytest.fixture
def seen(browser, address):
    """The browser, as a desk in daylight, and a function that opens a page in it."""
    browser.size(1180)
    browser.scheme("light")
    browser.scripts(on=True)
    browser.complaints(), browser.requests()
    return browser, lambda path: browser.open(address + path)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_on_the_console_and_nothing_comes_from_outside(seen, address, name):
    browser, go = seen
    for scheme, width in (("light", 1180), ("dark", 1180), ("light", 390), ("dark", 390)):
        browser.scheme(scheme)
        browser.size(width)
        go(PAGES[name])
        device = "phone" if width < 500 else "desk"
        assert browser.picture(SHOTS / f"{name}-{scheme}-{device}.png").stat().st_size > 5_000
        expected = ["404"] if name == "unknown" else []
        assert [complaint for complaint in browser.complaints() if not any(code in complaint for code in expected)] == []
        outside = [url for url in browser.requests() if not url.startswith(f"{address}/")]
        assert outside == []
        wide = browser.run("return [...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > "
                           "arguments[0] + 1 && !one.closest('.skip')).map(one => one.tagName + '.' + one.getAttribute('class'))",
                           width)
        assert wide == []
        assert browser.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.timeout(600)
def test_everything_that_a_model_has_to_tell_is_there(seen):
    browser, go = seen
    go(PAGES["model"])
    assert browser.text("h1") == "loans"
    assert "loans says why." in browser.text("#why")
    assert [browser.run("return [...document.querySelectorAll('h2')].map(one => one.textContent)")] == [[
        "Score over time", "Columns by time", "Alarms", "What moved most", "Reference and window of column_0", "Columns together",
        "The data themselves", "Retrainings and verdicts", "Further detectors"]]
    drawn = browser.run("return [...document.querySelectorAll('.chart path, .chart rect')].map(one => {"
                        "const box = one.getBoundingClientRect(); return [box.width, box.height]})")
    assert len(drawn) > 20
    assert max(width for width, _ in drawn) > 900                      # the line reaches over the whole chart
    assert browser.count(".chart circle.dot.orange") == 1
    assert browser.count(".chart circle.dot.red") == 1
    assert browser.count(".heat tbody tr") == 25
    assert browser.count(".movers tbody tr") == 15
    assert browser.count("svg[role=img]:not([aria-label])") == 0
    assert browser.count("table:not(:has(thead th[scope=col]))") == 0
    assert "Difference" in browser.text("#launches")
    for number in ("1", "2"):
        assert number in browser.text(".pages, [aria-label='Pages of columns']")


@pytest.mark.timeout(600)
def test_the_keyboard_alone_reaches_a_model_and_a_column(seen, address):
    browser, go = seen
    go("/")
    where = "const one = document.activeElement; return [one.tagName, one.textContent.trim(), one.getAttribute('href')]"
    browser.press(TAB)
    assert browser.run(where)[1:] == ["Skip to the content", "#main"]
    box = browser.run("const box = document.activeElement.getBoundingClientRect(); return [box.left, box.top]")
    assert min(box) >= 0                                                # it can be seen when it is reached
    reached = []
    for _ in range(30):
        browser.press(TAB)
        focus = browser.run(where)
        reached.append(focus[2])
        assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") != "none", focus
        if focus[2] == "/models/loans":
            break
    assert reached[-1] == "/models/loans", reached
    assert reached[:2] == ["/", "/"]                                    # in the order in which it is read
    browser.press("\ue007")
    assert browser.text("h1") == "loans"
    other = browser.text(".movers tbody tr:nth-child(5) a")
    browser.click(".movers tbody tr:nth-child(5) a")
    assert browser.run("return location.hash") == "#column"
    assert browser.text("#column h2") == f"Reference and window of {other}"


_TEXTS = """
const ground = one => {
  for (let at = one; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (!/, 0\\)$/.test(colour) && colour !== 'transparent') return colour
  }
  return 'rgb(255, 255, 255)'
};
const found = {};
for (const one of document.querySelectorAll('body *')) {
  const own = [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  const box = one.getBoundingClientRect();
  if (!own || !box.width || ['SCRIPT', 'TITLE', 'title', 'desc'].includes(one.tagName)) continue;
  const style = getComputedStyle(one);
  const colour = one instanceof SVGElement ? style.fill : style.color;
  found[colour + '|' + ground(one)] = one.tagName + ' ' + one.textContent.trim().slice(0, 40);
}
return found;
"""


def _hexed(colour):
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_that_is_seen_stands_out_from_its_ground(seen, scheme):
    browser, go = seen
    browser.scheme(scheme)
    grounds = set()
    for path in PAGES.values():
        go(path)
        texts = browser.run(_TEXTS)
        assert len(texts) >= 3
        measured = {pair: contrast(*map(_hexed, pair.split("|"))) for pair in texts}
        assert {texts[pair]: value for pair, value in measured.items() if value < 4.5} == {}
        grounds |= {pair.split("|")[1] for pair in texts}
    light = sum(contrast(_hexed(ground), "#000000") > 10 for ground in grounds)
    assert light == (len(grounds) if scheme == "light" else 0)          # the scheme was really another one


@pytest.mark.timeout(600)
def test_without_scripts_the_page_is_whole_and_loads_itself_anew(seen):
    browser, go = seen
    go("/models/loans")
    assert browser.count("noscript") == 1
    browser.scripts(on=False)
    go("/models/loans")
    assert browser.text("h1") == "loans"
    assert "What moved most" in browser.text("#columns h2")
    assert browser.text("meta[http-equiv=refresh]") == ""               # without scripts, what is in `noscript` is in the page
    browser.scripts(on=True)


@pytest.mark.timeout(600)
def test_an_open_page_takes_up_what_is_new_where_the_reader_is(seen):
    browser, go = seen
    go("/models/loans?column=column_5")
    browser.run("document.querySelector('details').open = true; window.scrollTo(0, 700); "
                "document.querySelector('h1').textContent = 'old'; window.kept = 'same page'")
    script = browser.run("return document.querySelector('body > script').textContent")
    begin, end = script.index("const look="), script.index("setInterval")
    # The page's own policy forbids to run a text as a script, so what it would do every 15 s is asked of it by hand.
    taken = browser._devtools("Runtime.evaluate", awaitPromise=True,
                              expression=f"(async()=>{{{script[begin:end]};await look()}})()")
    assert "exceptionDetails" not in taken, taken
    assert browser.text("h1") == "loans"
    assert browser.run("return [window.scrollY, window.kept, document.querySelector('details').open]") == [700, "same page", True]
    assert browser.complaints() == []


@pytest.mark.timeout(600)
def test_nothing_moves_for_those_who_asked_for_less_motion(seen):
    browser, go = seen
    moving = ("return [...document.querySelectorAll('*')].map(one => getComputedStyle(one)).filter(style => "
              "parseFloat(style.transitionDuration) > 0 || style.animationName !== 'none').length")
    browser.scheme("light", reduced_motion=True)
    go("/")
    assert browser.run(moving) == 0
    browser.scheme("light")
    assert browser.run(moving) > 0
