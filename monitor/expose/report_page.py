"""A report as one HTML document: our half from `Facts`, with evidently's half in a frame of its own below it.

A person opens it from an alert. So it answers in the alert's order: which model and which columns, how far, how sure,
since when, what was done about it, what to do; then the histograms of what moved, and numbers for the rest. What was done
is read when the page is asked for (launches go on after the alarm); everything else stood when the alarm was raised.

Invariants. No script and no address outside: style and drawings are inline. Every text that came from data is escaped.
evidently's document may run its own scripts, in a frame that has no origin, no storage and no way to another address;
its words "detected" and "not detected" are those of its own tests, and the page says that they decide nothing.

Cost: some milliseconds for 16 histograms. Neighbours: `report_facts` (what is said), `report` (serves), `commands.report`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape

from monitor.expose.report_facts import ColumnFacts, Facts
from monitor.flow import Alarm, Launch, effect_text

#: Between two looks of a page that waits for evidently's half, seconds.
REFRESH_SECONDS = 3
#: Distances in the order of the table, with what their heads say.
_DISTANCES = {"psi": "PSI", "ks": "KS", "js": "JS", "wasserstein": "Wasserstein, s.d.", "tv": "TV", "chi2": "χ², −log10 p"}
_CHANGES = {"raised": "The alarm was raised", "severe": "The alarm became severe", "cleared": "The alarm was cleared"}

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#1c2128;--soft:#57606a;--line:#d0d7de;
--before:#8c959f;--now:#b35900;--bad:#a40e26;--good:#1a6b32}
@media(prefers-color-scheme:dark){:root{--page:#0d1117;--text:#e6edf3;--soft:#9ea7b3;--line:#30363d;
--before:#6e7681;--now:#f0a35e;--bad:#ff8182;--good:#57d364}}
body{background:var(--page);color:var(--text);font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1rem}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:1.6rem 0 .4rem;border-bottom:1px solid var(--line)}
p,li{max-width:50rem}.soft{color:var(--soft)}.open{color:var(--bad)}.over{color:var(--good)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.15rem .8rem .15rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right}figure{margin:0}figcaption{font-weight:600;overflow-wrap:anywhere}
.drawings{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr));gap:1rem}
svg{width:100%;height:auto}.b{fill:var(--before)}.w{fill:var(--now)}.axis{stroke:var(--line)}
.key span{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
.key .b{background:var(--before)}.key .w{background:var(--now)}
iframe{width:100%;height:80vh;border:1px solid var(--line);background:#fff}
"""


def page(facts: Facts, launches: Sequence[Launch] = (), *, frame: str = "") -> str:
    """The whole document; `frame` is the element that shows evidently's half, where there is one."""
    alarm = facts.alarm
    waiting = f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">' if facts.state == "waiting" and not frame else ""
    mine = [launch for launch in launches
            if (launch.model, launch.version, launch.episode) == (alarm.model, alarm.version, alarm.episode)
            and alarm.kind == "drift"]
    parts = [
        f"<h1>{escape(_title(alarm))}</h1>", _lead(facts, mine), "<h2>What moved</h2>", _movers(alarm),
        "<h2>What happened</h2>", _story(facts, mine), _drawings(facts), _others(facts),
        "<h2>The same window as evidently shows it</h2>", _theirs(facts, frame),
    ]
    return document(_title(alarm), "".join(parts), waiting)


def document(title: str, body: str, head: str = "") -> str:
    """A page of ours around a body that is HTML already."""
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">{head}'
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>{body}</main></body></html>\n")


def listing(names: Iterable[tuple[str, str, str]]) -> str:
    """All reports: (address, name, in words), newest first."""
    rows = "".join(f'<li><a href="{escape(address)}">{escape(name)}</a> <span class="soft">{escape(words)}</span></li>'
                   for address, name, words in names)
    return document("Reports", f"<h1>Reports</h1><ul>{rows}</ul>" if rows else "<h1>Reports</h1><p>No alarm was raised yet.</p>")


def nothing(name: str, why: str, known: Sequence[tuple[str, str]]) -> str:
    """There is no such report; `known` are (address, name) of some that there are."""
    others = "".join(f'<li><a href="{escape(address)}">{escape(other)}</a></li>' for address, other in known)
    return document("No such report", f"<h1>No report of {escape(name[:200])}</h1><p>{escape(why)}</p>"
                    + (f"<p>There are:</p><ul>{others}</ul>" if others else ""))


def _title(alarm: Alarm) -> str:
    kind = "data quality" if alarm.kind == "quality" else "drift"
    of = {"wrong_type": "refused records", "volume": "volume"}.get(alarm.cause, kind)
    where = "" if alarm.segment == "all" else f", segment {alarm.segment}"
    return f"Alarm {alarm.episode} ({of}) of {alarm.model}, version {alarm.version}{where}"


def _lead(facts: Facts, launches: Sequence[Launch]) -> str:
    """The alarm in a few sentences: how it stands, what, how sure, since when, what was done, what to do."""
    alarm, last = facts.alarm, facts.changes[-1]
    if last.state == "cleared":
        stands = f'<strong class="over">Over since {instant(last.at)}</strong> ({escape(last.reason or last.words or "quiet")}).'
    else:
        stands = '<strong class="open">Open.</strong>' + (" It is severe: worth a retraining." if last.state == "severe" else "")
    sure = []
    if alarm.words:
        sure.append(escape(alarm.words[:1].upper() + alarm.words[1:]).rstrip(".") + ".")
    if not alarm.cause:
        score, of = (alarm.severe_score, "a retraining") if alarm.state == "severe" else (alarm.score, "an alarm")
        sure.append(f"The evidence is {score:.2f} times what {of} takes, in {counted(alarm.window_panes, 'pane')} with "
                    f"{counted(alarm.window_events, 'event')}.")
    since = f"It is seen since {instant(alarm.since)} and was decided at {instant(alarm.at)} (event time)."
    if not alarm.reference_adequate:
        since += " The reference is inadequate, so that no retraining is started."
    if launches:
        launch = launches[-1]
        done = f"Retraining {escape(launch.id)} is {escape(launch.state.replace('_', ' '))}" + (
            f", verdict: {escape(launch.verdict)}" if launch.verdict else "") + "."
    else:
        done = "No retraining was started for it."
    return f"<p>{stands} {' '.join(sure)}</p><p>{since} {done}</p><p>{_todo(alarm)}</p>"


def _todo(alarm: Alarm) -> str:
    if alarm.cause == "wrong_type":
        return "What to do: look at the dead letters, which hold the refused records with their reasons, and mend the producer."
    if alarm.cause == "volume":
        return ("What to do: ask whoever sends the events whether they send them; look at the lag of the topic and at the route "
                "to it.")
    if alarm.kind == "quality":
        return ("What to do: the data broke, so mend the producer of the columns below; training on them would not help, and "
                "none is started.")
    return ("What to do: see below whether the world changed or a pipeline did. If the world did, a retraining is the answer, by "
            "itself or by hand (<code>tidemark triggers</code>); if it did not, mend the pipeline, and the alarm clears by "
            "itself.")


def _movers(alarm: Alarm) -> str:
    if not alarm.movers:
        return "<p>This alarm rests on no column.</p>" if alarm.cause else "<p>No single column is past the threshold.</p>"
    rows = "".join(
        f"<tr><td>{escape(mover.column)}</td><td>{escape(mover.role)}</td><td>"
        f"{escape(effect_text(mover.what, mover.effect, mover.lower, mover.upper, mover.unit))}"
        + (f"<br><span class=soft>{escape(mover.words)}</span>" if mover.words else "")
        + f'</td><td class="n">{mover.evidence:.2f}</td></tr>' for mover in alarm.movers)
    return ('<div class="wide"><table><thead><tr><th>column</th><th>role</th><th>effect [95 % interval]</th>'
            f'<th class="n">evidence (1 is an alarm)</th></tr></thead><tbody>{rows}</tbody></table></div>'
            '<p class="soft">s.d. are standard deviations of the reference.</p>')


def _story(facts: Facts, launches: Sequence[Launch]) -> str:
    """Every change of the alarm, and every step of its launches, in their order."""
    found: list[tuple[float, int, str]] = []
    for place, change in enumerate(facts.changes):
        words = _CHANGES[change.state]
        why = change.reason if change.state == "cleared" else change.words
        found.append((change.at, place, words + (f": {why}" if why else "") + "."))
    for launch in launches:
        for place, (state, at) in enumerate(launch.steps):
            text = f"Retraining {launch.id}: {state.replace('_', ' ')}"
            if state == "judged" and launch.verdict:
                text += f", {launch.verdict}" + (
                    f" (champion {launch.champion:.4g}, challenger {launch.challenger:.4g})"
                    if launch.champion is not None and launch.challenger is not None else "")
            elif state == "promoted" and launch.new_version:
                text += f" to version {launch.new_version}"
            elif state in ("failed", "timed_out", "refused") and launch.detail:
                text += f", {launch.detail}"
            found.append((at, len(facts.changes) + place, text + "."))
    rows = "".join(f"<li><time>{instant(at)}</time> {escape(text)}</li>" for at, _, text in sorted(found))
    return f"<ol>{rows}</ol>"


def _drawings(facts: Facts) -> str:
    drawn = [column for column in facts.columns if column.bins]
    if not drawn:
        return ""
    return (f"<h2>Reference and window</h2><p>{counted(facts.events, 'event')} of the window against "
            f"{counted(facts.reference_events, 'event')} of the reference; the columns that the alarm names come first."
            '<span class="key"><span class="b"></span>reference<span class="w"></span>window</span></p>'
            f'<div class="drawings">{"".join(map(_drawing, drawn))}</div>')


def _drawing(column: ColumnFacts) -> str:
    """Two bars per bin, the same numbers as a table for those who cannot see them."""
    width, height, step = 320, 120, 320 / len(column.bins)
    top = max(*column.reference, *column.window, 1e-9)
    bars = []
    for place, (label, before, now) in enumerate(zip(column.bins, column.reference, column.window, strict=True)):
        said = escape(f"{label}: reference {before:.1%}, window {now:.1%}")
        bars += [f'<rect class="{kind}" x="{place * step + shift * step:.1f}" width="{max(0.38 * step, 0.5):.1f}" '
                 f'y="{height - share / top * height:.1f}" height="{share / top * height:.1f}"><title>{said}</title></rect>'
                 for kind, share, shift in (("b", before, 0.1), ("w", now, 0.5))]
    cells = "".join(f'<tr><td>{escape(label)}</td><td class="n">{before:.2%}</td><td class="n">{now:.2%}</td></tr>'
                    for label, before, now in zip(column.bins, column.reference, column.window, strict=True))
    mark = "" if column.named else ' <span class="soft">(not named by the alarm)</span>'
    return (f'<figure><figcaption>{escape(column.column)}{mark}</figcaption><svg viewBox="0 0 {width} {height + 1}" role="img" '
            f'aria-label="Shares of events per bin of {escape(column.column)}"><line class="axis" x1="0" '
            f'x2="{width}" y1="{height}" y2="{height}"/>{"".join(bars)}</svg><details><summary>numbers</summary><table><thead>'
            '<tr><th>bin</th><th class="n">reference</th><th class="n">window</th></tr></thead><tbody>'
            f"{cells}</tbody></table></details></figure>")


def _others(facts: Facts) -> str:
    if not facts.columns:
        return ""
    known = [name for name in _DISTANCES if any(name in column.distances for column in facts.columns)]
    heads = "".join(f'<th class="n">{escape(_DISTANCES[name])}</th>' for name in known)
    rows = "".join(
        f"<tr><td>{escape(column.column)}</td><td>{escape(column.role)}</td>" + "".join(
            f'<td class="n">{column.distances[name]:.3g}</td>' if name in column.distances else '<td class="n">–</td>'
            for name in known) + "</tr>" for column in facts.columns)
    left = facts.columns_total - len(facts.columns)
    return (f"<h2>Distances of all columns</h2><details><summary>{counted(len(facts.columns), 'column')}"
            + (f", {left} nearer ones left out" if left else "") + '</summary><div class="wide"><table><thead><tr><th>column</th>'
            f"<th>role</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>")


def _theirs(facts: Facts, frame: str) -> str:
    if frame:
        return (f"<p>evidently's own tests on a sample: {counted(facts.rows[0], 'row')} of the window against "
                f"{counted(facts.rows[1], 'row')} of the reference. Its words “detected” and “not detected” hold for its "
                f"tests and its thresholds, and decide nothing: the decision is the one above."
                + (f" {escape(facts.why)}" if facts.why else "") + f"</p>{frame}")
    if facts.state == "waiting":
        return f'<p role="status">It is being made; this page looks again every {REFRESH_SECONDS} seconds.</p>'
    if facts.state == "failed":
        return f"<p>It could not be made: {escape(facts.why)}. <code>tidemark report {escape(facts.name)}</code> tries again.</p>"
    return f"<p>There is none: {escape(facts.why or 'its file is gone')}.</p>"


def counted(count: int, word: str) -> str:
    """A number with its noun."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def instant(seconds: float) -> str:
    """A time with date and zone, which is UTC; a dash where there is none."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds > 0 else "–"
    except (OverflowError, ValueError, OSError):    # beyond what a calendar holds
        return "–"
