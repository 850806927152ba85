"""How the page looks: a few colours with a meaning, the system's own fonts, one column that a phone can show.

The colours are those of the dashboards by name: orange is an alarm, red is one that is worth a retraining, purple is
what cannot be judged, grey is what is not known yet, green is quiet, yellow is half of an alarm. Each has a fill for
areas, and a tint with an ink that can be read on it; a test computes the contrast of every pair in both schemes.
There is no style in the markup itself, so that the page's policy can forbid it; nothing moves. The layout is `page.css`.

`STYLE` and `SCRIPT` are constants: their digests name them in links and in the policy.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

Scheme = Mapping[str, str]

#: Of states: the dashboards' names for the same colours, reduced to the hue.
HUES: Mapping[str, str] = {
    "learning": "blue", "insufficient_data": "grey", "reference_inadequate": "purple", "quiet": "green",
    "warning": "orange", "drift": "red",
}
#: Of states of a launch.
LAUNCH_HUES: Mapping[str, str] = {
    "proposed": "yellow", "approved": "blue", "submitted": "blue", "running": "blue", "succeeded": "green", "failed": "red",
    "timed_out": "red", "judged": "green", "promoted": "green", "refused": "orange",
}

LIGHT: Scheme = {
    "page": "#f6f7f9", "surface": "#ffffff", "ink": "#1a2029", "muted": "#566070", "line": "#dde2e9", "faint": "#eef1f5",
    "link": "#1c5cb8", "window": "#2f6fd0", "reference": "#b4bdca",
    "green-ink": "#1c6431", "green-tint": "#e2f2e5", "green-fill": "#73bf69",
    "yellow-ink": "#6b5300", "yellow-tint": "#fdf3c9", "yellow-fill": "#f2cc3f",
    "orange-ink": "#8a4300", "orange-tint": "#ffeedb", "orange-fill": "#ff9830",
    "red-ink": "#a01630", "red-tint": "#fde5e9", "red-fill": "#f2495c",
    "purple-ink": "#6a2e9b", "purple-tint": "#f1e7fa", "purple-fill": "#b877d9",
    "blue-ink": "#1d4f97", "blue-tint": "#e4eefc", "blue-fill": "#8ab8ff",
    "grey-ink": "#4c5564", "grey-tint": "#ebeef2", "grey-fill": "#c3cad4",
}
DARK: Scheme = {
    "page": "#0e1218", "surface": "#161b23", "ink": "#e7eaf0", "muted": "#a1aab9", "line": "#2b333f", "faint": "#1e252f",
    "link": "#8ab8ff", "window": "#6ea6ff", "reference": "#566173",
    "green-ink": "#90d98b", "green-tint": "#17301c", "green-fill": "#56a64b",
    "yellow-ink": "#f0d264", "yellow-tint": "#332c10", "yellow-fill": "#d0ab20",
    "orange-ink": "#ffb566", "orange-tint": "#3a270f", "orange-fill": "#f08a1d",
    "red-ink": "#ff8f9c", "red-tint": "#3d181f", "red-fill": "#e0384c",
    "purple-ink": "#d4a8ee", "purple-tint": "#2f1f3c", "purple-fill": "#a05fc4",
    "blue-ink": "#a6c9ff", "blue-tint": "#17283f", "blue-fill": "#5f93df",
    "grey-ink": "#b6beca", "grey-tint": "#252c36", "grey-fill": "#465060",
}
#: Every text colour with every ground that it stands on.
PAIRS: tuple[tuple[str, str], ...] = (
    *((ink, ground) for ink in ("ink", "muted", "link") for ground in ("page", "surface", "faint")),
    *((f"{hue}-ink", f"{hue}-tint") for hue in ("green", "yellow", "orange", "red", "purple", "blue", "grey")),
    *((f"{hue}-ink", "surface") for hue in ("green", "orange", "red", "blue", "grey")),
)

_HUE_RULES = "\n".join(
    f".{hue} {{ color: var(--{hue}-ink) }} .chip.{hue}, .tile.{hue} {{ background: var(--{hue}-tint) }} "
    f"svg .{hue} {{ fill: var(--{hue}-fill) }}" for hue in ("green", "yellow", "orange", "red", "purple", "blue", "grey"))


def _variables(scheme: Scheme) -> str:
    return ":root{" + ";".join(f"--{name}:{value}" for name, value in scheme.items()) + "}"


_LAYOUT = files("monitor.expose.page").joinpath("page.css").read_text(encoding="utf-8")
STYLE = f"{_variables(LIGHT)}\n@media (prefers-color-scheme: dark) {{{_variables(DARK)}}}\n{_LAYOUT}{_HUE_RULES}\n"

#: Seconds between two looks of a page that is open.
FRESH_SECONDS = 15
# Fetches the page it is on and puts its main part in the place of the old one, so that a reader's place stays. It waits
# while the page is not seen, while a text is selected, and while the focus is in what would be replaced.
SCRIPT = f"""(()=>{{const look=async()=>{{
const main=document.querySelector("main");
if(document.hidden||main.contains(document.activeElement)||String(getSelection()))return;
try{{const answer=await fetch(location.href,{{headers:{{accept:"text/html"}}}});if(!answer.ok)return;
const page=new DOMParser().parseFromString(await answer.text(),"text/html");
const open=[...main.querySelectorAll("details")].map(one=>one.open);
for(const part of ["main","header .when"]){{const fresh=page.querySelector(part),old=document.querySelector(part);
if(fresh&&old)old.replaceWith(fresh)}}
document.querySelectorAll("main details").forEach((one,i)=>{{one.open=open[i]??false}});
document.title=page.title}}catch{{}}}};
setInterval(look,{FRESH_SECONDS}000)}})()""".replace("\n", "")

STYLE_NAME = hashlib.sha256(STYLE.encode()).hexdigest()[:12]
_SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
#: What the page may load: its own style, an icon that it carries, the script above, and itself.
POLICY = ("default-src 'none'; style-src 'self'; img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
          f"frame-ancestors 'none'; script-src 'sha256-{_SCRIPT_DIGEST}'")


def contrast(one: str, other: str) -> float:
    """Contrast of two colours `#rrggbb` as WCAG 2.2 defines it, 1 to 21; texts need 4.5.

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place:place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
