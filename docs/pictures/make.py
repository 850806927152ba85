"""`make pictures`: the pictures of README.md and of the documentation, from a real run, in some four minutes.

    1 a Prometheus that scrapes every second, and the service with its page (`town`: five models, one of which drifts)
    2 while the challenger is being trained: the page, light and dark, at a desk and on a phone
    3 when the loop has closed: the page again, and the dashboards' JSON drawn with what Prometheus holds (`drawing`)

Needs chromium, chromedriver and prometheus (tests/setup_components.sh). Every picture is below PICTURE_BYTES; a run that
did not drift, did not promote, or left a query without an answer ends with an error and writes nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from docs.pictures.drawing import Prometheus, drawn
from docs.pictures.town import ROOT, Run
from tests.browser import Browser, why_not
from tests.conftest import Process, free_port

FOLDER = Path(__file__).resolve().parent
PICTURE_BYTES = 200_000
_SCRAPE = """
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs: [{job_name: tidemark, static_configs: [{targets: ["127.0.0.1:PORT"]}]}]
"""
_DRIFTING = 'tidemark_state{model="loans",state="drift"} == 1'
#: Dashboard -> how many units of its grid are drawn, and what its variables stand for.
BOARDS: dict[str, tuple[int, dict[str, str]]] = {
    "fleet": (99, {"model": ".+"}), "model": (52, {"model": "loans", "column": "rate"}), "retraining": (99, {"model": "loans"})}
VARIABLES = {"version": ".+", "segment": ".+", "detector": "psi|js|tv|ks|wasserstein|chi2", "service": ""}


def main() -> int:
    """Make every picture; 0, or 1 with what lacks."""
    if lack := why_not() or ("" if shutil.which("prometheus") else "no prometheus on PATH; run tests/setup_components.sh"):
        print(f"pictures: {lack}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="tidemark-pictures-") as name:
        made = take(Path(name))
        for path in made:
            shutil.copy(path, FOLDER / path.name)
            print(f"docs/pictures/{path.name}: {path.stat().st_size:,} bytes")
    return 0


def take(folder: Path) -> list[Path]:
    """The pictures, in a folder that goes away."""
    shots = folder / "shots"
    run, port = Run(folder, pace=1.0), free_port()
    print("pictures: five models are watched; this takes some three minutes", flush=True)
    begun = time.time()
    run.start()
    (folder / "prometheus.yml").write_text(_SCRAPE.replace("PORT", str(run.server.port)))
    prometheus = Process(["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address=127.0.0.1:{port}",
                          f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"], folder / "prometheus.log")
    try:
        prometheus.wait_port(port)
        with Browser() as browser:
            _wait(run, lambda: any(one.state == "running" for one in run.exporter.published.service.launches), "a training")
            found = [_page(browser, run, shots / "models-light.png", "/", "light", 1180, 0, part="body"),
                     _page(browser, run, shots / "models-dark.png", "/", "dark", 1180, 0, part="body"),
                     _page(browser, run, shots / "model-dark.png", "/models/loans", "dark", 1180, 1250),
                     _page(browser, run, shots / "phone-light.png", "/models/loans", "light", 390, 1100)]
            _wait(run, run.finished.is_set, "the loop being closed")
            if not any(one.state == "promoted" for one in run.exporter.published.service.launches):
                raise SystemExit("pictures: expected a promotion, got none; the run is no picture of the loop")
            [drift] = Prometheus(port, begun, time.time(), {}).series({"expr": _DRIFTING})
            drifting = drift.points[-1][0]
            found += [_page(browser, run, shots / "model-light.png", "/models/loans", "light", 1180, 1250),
                      _page(browser, run, shots / "column-light.png", "/models/delivery#column", "light", 1180, 0,
                            part="#column")]
            for name, (rows, variables) in BOARDS.items():
                end = drifting if name == "model" else time.time()      # the bins of the column that drifts, while it does
                asked = Prometheus(port, begun, end, VARIABLES | variables)
                board = json.loads((ROOT / "dashboards" / "generated" / f"{name}.json").read_text(encoding="utf-8"))
                page = folder / f"{name}.html"
                page.write_bytes(drawn(board, asked, title=board["title"], rows=rows))
                browser.scheme("dark")
                browser.size(1400)
                browser.open(page.as_uri())
                found.append(small(browser.picture(shots / f"dashboard-{name}.png")))
        return found
    finally:
        run.stop()
        prometheus.stop()


def _wait(run: Run, happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 300
    while not happened():
        run.check()
        if time.monotonic() > end:
            raise SystemExit(f"pictures: expected {what} within 300 s, got none")
        time.sleep(0.2)


def _page(browser: Browser, run: Run, path: Path, address: str, scheme: str, width: int, height: int, part: str = "") -> Path:
    browser.scheme(scheme)
    browser.size(width)
    browser.open(f"{run.address}{address}")
    return small(browser.picture(path, height=height or None, part=part))


def small(path: Path) -> Path:
    """The picture as small as it can be; with 256 colours only where it must, since small dots lose theirs."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.save(path, optimize=True)
    if path.stat().st_size > PICTURE_BYTES:
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > PICTURE_BYTES:
        raise SystemExit(f"pictures: expected {path.name} below {PICTURE_BYTES:,} bytes, got {path.stat().st_size:,}; "
                         "show less of it")
    return path


if __name__ == "__main__":
    sys.exit(main())
