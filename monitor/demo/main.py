"""`tidemark demo`: the whole loop on one machine, in under three minutes, with real parts throughout.

    1 a broker inside this process and a topic                5 the camera is bumped: the alarm, severe, a launch
    2 the trainer makes the first model and its reference     6 new events are collected; the trainer makes a challenger
    3 the model is served, its answers go to the topic        7 the verdict, the promotion, the cut-over, the alarm clears
    4 tidemark watches: quiet                                 8 quiet again: the loop is closed, exit code 0

The service is the one of `tidemark run`, from a configuration file that is written to a folder and could be run by hand;
only its broker lives in this process. It runs in a thread of its own and keeps all its state; the director below runs in
the main thread, hears of every decided pane, and reads the ledger. Nothing is staged: when something does not happen
within its time, the demo says what and ends with 1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from monitor import config as configuration
from monitor.demo.broker import InProcessBroker
from monitor.demo.serve import ServedModel, Serving
from monitor.demo.view import SCORES_SHOWN, Scene, Story, story
from monitor.demo.watching import DemoFailed, Watching
from monitor.demo.world import PIXELS, Camera, write_events
from monitor.errors import TidemarkError
from monitor.flow import FINAL_STATES, Alarm, Evaluation, Launch

#: Six partitions, since this broker keeps 5 MiB of each: together half a minute of events, if the machine is busy.
MODEL, TOPIC, PARTITIONS = "digits", "digits.inference", 6
VERSION = "1"
#: Events of the first training; half of them are held out and become the reference.
HISTORY_EVENTS = 24_000
#: Labelled events since the alarm began that a retraining waits for: half train, half describe the new world.
COLLECT_EVENTS = 8_000
QUIET_PANES = 15
#: Seconds that the serving side gets to take up a promoted model before the new reference judges.
SETTLE_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    """How the demo runs.

    rate    : events a second        seconds : after which it gives up        listen : where /metrics is served
    folder  : keep everything here instead of in a folder that is removed at the end
    stay    : when the loop has closed, go on until Ctrl-C
    """

    as_json: bool = False
    rate: float = 1_000.0
    seed: int = 11
    seconds: float = 175.0
    listen: str = "127.0.0.1:0"
    folder: str | None = None
    stay: bool = False


def run_demo(options: Options, teller: Story | None = None) -> int:
    """Run the loop once; 0 when it has closed, 1 when not. The reason stands in the last line."""
    folder = Path(options.folder or tempfile.mkdtemp(prefix="tidemark-demo-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    demo = Demo(options, folder, teller or story(as_json=options.as_json))
    try:
        with demo.story:
            try:
                demo.run()
                return 0
            except (TidemarkError, OSError) as error:
                demo.tell("failed", f"The loop did not close: {error}", reason=str(error))
                return 1
            finally:
                demo.stop()
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


class Demo:
    """The director: starts the parts, waits for what must happen, tells the story."""

    def __init__(self, options: Options, folder: Path, teller: Story) -> None:
        self.options, self.folder, self.story = options, folder, teller
        self.begun = time.monotonic()
        self.phase = "starting"
        self.camera = Camera(options.seed)
        self.broker: InProcessBroker | None = None
        self.serving: Serving | None = None
        self.watching: Watching | None = None
        self.latest: Evaluation | None = None
        self.alarms: list[Alarm] = []
        self.scores: deque[float] = deque(maxlen=SCORES_SHOWN)
        self.rates: deque[tuple[float, int]] = deque(maxlen=30)
        self._told_progress = ""
        self._told_states: set[str] = set()

    # ---- the story ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Steps 1 to 8 of the module's docstring."""
        self.broker = InProcessBroker()                                                         # 1
        self.broker.create_topic(TOPIC, PARTITIONS)
        self.tell("started", "A Kafka broker runs in this process.", broker=self.broker.bootstrap_servers)
        first = self.train_first_model()                                                        # 2
        config_file = self.write_configuration(first)
        serving = self.serving = Serving(                                                       # 3
            self.camera, ServedModel(first / "model.json"), self.broker.producer(), TOPIC, partitions=PARTITIONS,
            rate=self.options.rate, promotion=self.folder / "promoted.json", switched=self.note_switch)
        watching = self.watching = Watching(configuration.load(config_file))                    # 4
        watching.start()
        serving.start()
        self.tell("watching", f"tidemark watches {len(PIXELS)} pixels, predictions and scores; look at it: {watching.address}",
                  page=watching.address, address=f"{watching.address}metrics", config=str(config_file))
        self.be_quiet(QUIET_PANES, "quiet before the change")
        before = serving.traffic().accuracy
        self.tell("quiet", f"{QUIET_PANES} panes without an alarm, accuracy {before:.1%}.", accuracy=before)
        serving.tilt()                                                                          # 5
        self.tell("changed", "The camera is bumped: tilted, darker, noisier.")
        self.phase = "the camera is tilted"
        severe = self.wait_for("a severe alarm", self.severe_alarm, 20)
        self.wait_for("a launch", watching.launch, 10)
        launch = self.follow_launch()                                                           # 6, 7
        drifted = serving.traffic().accuracy
        self.phase = "cut over to the new reference"
        self.wait_for("the alarm's clearing", lambda: self.cleared(severe), 30)
        self.be_quiet(QUIET_PANES, "quiet with the new model", version=launch.new_version)      # 8
        after = serving.traffic().accuracy
        if launch.champion is None or not after > launch.champion:
            raise DemoFailed(f"expected a better accuracy than the champion's {launch.champion}, got {after:.3f}")
        self.tell(
            "closed", f"The loop is closed. Accuracy {before:.1%} before the change, {launch.champion:.1%} after it, "
            f"{after:.1%} with the new model.", accuracy_before=before, accuracy_drifted=launch.champion,
            accuracy_after=after, accuracy_at_promotion=drifted, launch=launch.id)
        if self.options.stay:
            self.stay()

    def stay(self) -> None:
        """Serve and watch on, so that somebody can look at the page, until Ctrl-C."""
        assert self.watching is not None
        self.phase = "the loop is closed; Ctrl-C ends"
        address = self.watching.address
        self.tell("staying", f"Everything goes on. Look at it: {address}  Ctrl-C ends it.", page=address)
        try:
            while True:
                self.look(lambda evaluation: None)
                time.sleep(0.1)
        except KeyboardInterrupt:
            self.tell("ended", "Ended.")

    def train_first_model(self) -> Path:
        """The first model by the very trainer that retrains later; returns its folder."""
        self.phase = "training the first model"
        data, output = self.folder / "history", self.folder / "first-model"
        frames = self.camera.frames(np.zeros(HISTORY_EVENTS, bool))
        start = int(time.time() * 1000 - HISTORY_EVENTS * 1000 / self.options.rate)
        write_events(data, frames, start, self.options.rate)
        environment = os.environ | trainer_environment() | {
            "TIDEMARK_LAUNCH_ID": "first", "TIDEMARK_MODEL": MODEL, "TIDEMARK_VERSION": VERSION,
            "TIDEMARK_DATA_URI": str(data), "TIDEMARK_OUTPUT_URI": str(output)}
        command = [sys.executable, *trainer_command(), "--holdout-share", "0.5", "--epochs", "12",
                   "--new-version", VERSION]
        log = self.folder / "first-model.log"
        with log.open("w") as out:
            trainer = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

        def ended() -> bool:
            self.phase = f"training the first model: {last_line(log) or 'starting'}"
            return trainer.poll() is not None

        try:
            self.wait_for("the first model", ended, 90)
        finally:
            trainer.kill()
            trainer.wait()
        last = last_line(log) or "nothing was printed"
        if trainer.returncode != 0:
            raise DemoFailed(f"the first training ended with {trainer.returncode}: {last}")
        result = json.loads((output / "result.json").read_text(encoding="utf-8"))
        self.tell("trained", f"The first model is trained: accuracy {result['metrics']['accuracy']:.1%} on "
                  f"{result['metrics']['holdout_events']:,} events that it did not see.",
                  accuracy=result["metrics"]["accuracy"], version=VERSION)
        return output

    def write_configuration(self, first: Path) -> Path:
        """A configuration file as a user would write it."""
        assert self.broker is not None
        document: dict[str, Any] = {
            "service": {"listen": self.options.listen, "state": f"sqlite:///{self.folder / 'state.db'}",
                        "dead_letters": f"file:{self.folder / 'dead-letters.jsonl'}"},
            "kafka": {"bootstrap_servers": self.broker.bootstrap_servers.split(","), "group": "tidemark-demo",
                      "idle_seconds": 5, "session_timeout_seconds": 10},
            "monitors": [{
                "model": MODEL, "version": VERSION, "topic": TOPIC, "reference": str(first / "reference.json"),
                "schema": {"prefix": "features", "timestamp": "ts", "id": "id", "columns": {
                    "prediction": {"path": "prediction", "role": "prediction"},
                    "score": {"path": "score", "role": "score"},
                    "label": {"path": "label", "kind": "category", "role": "label"}}},
                "pane": {"seconds": 1, "lateness_seconds": 1},
                "alarm": {"max_false_alarms": "1 per 30 days"},
                "retrain": {
                    "above": 0.3, "cooldown_hours": 24, "collect_events": COLLECT_EVENTS,
                    "capture_events": 40_000, "capture_uri": str(self.folder / "captured"),
                    "launcher": {"type": "local", "deadline_hours": 0.05, "environment": trainer_environment(),
                                 "command": ["{python}", *trainer_command(), "--holdout-share", "0.5",
                                             "--older-events", "4000", "--epochs", "25"]},
                    "promote": {"type": "file", "path": str(self.folder / "promoted.json"),
                                "settle_seconds": SETTLE_SECONDS},
                },
            }],
        }
        path = self.folder / "tidemark.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path

    def be_quiet(self, panes: int, phase: str, version: str = VERSION) -> None:
        """Wait for so many decided panes of a version, none of which alarms."""
        self.phase = phase
        seen, known = 0, len(self.alarms)

        def enough() -> bool:
            nonlocal seen
            if len(self.alarms) > known:
                alarm = self.alarms[known]
                names = ", ".join(mover.column for mover in alarm.movers[:3])
                raise DemoFailed(f"expected no alarm while nothing changes, got one (score {alarm.score:.2f}: {names})")
            return seen >= panes

        def count(evaluation: Evaluation) -> None:
            nonlocal seen
            seen += evaluation.window.version == version and evaluation.window.profile.events > 0

        self.wait_for(f"{panes} quiet panes of version {version}", enough, panes + 25, count)

    def follow_launch(self) -> Launch:
        """Wait until the launch has ended well, telling its progress and each of its states once."""
        self.phase = "retraining"

        def ended() -> Launch | None:
            assert self.watching is not None
            launch = self.watching.launch()
            if launch is not None:
                self.tell_launch(launch)
            return launch if launch is not None and launch.state in FINAL_STATES else None

        launch: Launch = self.wait_for("the end of the retraining", ended, 120)
        if launch.state != "promoted":
            raise DemoFailed(f"expected a promotion, got a launch that is {launch.state}: {launch.detail}")
        return launch

    # ---- what is told ---------------------------------------------------------------------------------------------

    def tell(self, event: str, sentence: str, **facts: object) -> None:
        """One event of the story."""
        self.story.tell(event, time.monotonic() - self.begun, sentence, facts)

    def tell_launch(self, launch: Launch) -> None:
        """What is new about a launch."""
        for state, _ in launch.steps:
            if state in self._told_states:
                continue
            self._told_states.add(state)
            if state == "approved":
                self.tell("launch", f"Launch {launch.id}: a retraining is worth it; collecting {COLLECT_EVENTS:,} "
                          "labelled events of the new world.", launch=launch.id, reason=json.loads(launch.reason))
            elif state == "judged":
                self.tell("verdict", f"Verdict: {launch.verdict}. Champion {launch.champion or 0:.1%}, challenger "
                          f"{launch.challenger or 0:.1%} on events that neither was trained on; difference "
                          f"{launch.difference_lower or 0:+.3f} to {launch.difference_upper or 0:+.3f}.",
                          launch=launch.id, verdict=launch.verdict, champion=launch.champion,
                          challenger=launch.challenger, difference=[launch.difference_lower, launch.difference_upper])
            elif state == "promoted":
                self.tell("promoted", f"Version {launch.new_version} is promoted.", launch=launch.id,
                          version=launch.new_version)
        if launch.state in ("submitted", "running") and launch.progress not in ("", self._told_progress):
            self._told_progress = launch.progress
            self.tell("training", f"Training: {launch.progress}", launch=launch.id, progress=launch.progress)

    def note_switch(self, version: str) -> None:
        """Called in the serving thread when a promoted model took over."""
        self.tell("switched", f"The serving side answers with version {version}.", version=version)

    def tell_alarm(self, alarm: Alarm) -> None:
        """An alarm that was raised, became severe, or was cleared."""
        self.alarms.append(alarm)
        names = [mover.column for mover in alarm.movers[:5]]
        facts: dict[str, object] = {"episode": alarm.episode, "kind": alarm.kind, "score": round(alarm.score, 3),
                                    "columns": names, "version": alarm.version}
        if alarm.state == "raised":
            self.tell("alarm", f"Alarm: score {alarm.score:.1f} (1 is an alarm); {', '.join(names)} moved.", **facts)
        elif alarm.state == "severe":
            self.tell("severe", f"Severe: surely more than 0.3 standard deviations (score {alarm.severe_score:.1f}).",
                      **facts)
        else:
            self.tell("cleared", f"The alarm is cleared: {alarm.reason}.", reason=alarm.reason, **facts)

    # ---- waiting --------------------------------------------------------------------------------------------------

    def wait_for(self, what: str, happened: Callable[[], Any], seconds: float,
                 count: Callable[[Evaluation], None] = lambda evaluation: None) -> Any:
        """Wait until something has happened, and return it; DemoFailed when its time or the demo's is over."""
        end = time.monotonic() + seconds
        while True:
            self.look(count)
            if found := happened():
                return found
            now = time.monotonic()
            if now > end or now - self.begun > self.options.seconds:
                raise DemoFailed(f"expected {what} within {seconds:.0f} s, got none ({self.phase})")
            time.sleep(0.05)

    def look(self, count: Callable[[Evaluation], None]) -> None:
        """Hear what the service decided, show how things stand, and end with whatever has ended."""
        watching, serving = self.watching, self.serving
        if watching is not None:
            watching.check()
            while not watching.decided.empty():
                self.latest = watching.decided.get()
                self.scores.append(self.latest.scores.score)
                count(self.latest)
            for alarm in watching.alarms()[len(self.alarms):]:
                self.tell_alarm(alarm)
        if serving is not None and serving.failure is not None:
            raise DemoFailed(f"serving ended: {serving.failure}") from serving.failure
        traffic = serving.traffic() if serving is not None else None
        now = time.monotonic()
        if traffic is not None:
            self.rates.append((now, traffic.events))
        (t0, n0), (t1, n1) = (self.rates[0], self.rates[-1]) if self.rates else ((0.0, 0), (0.0, 0))
        self.story.show(Scene(
            now - self.begun, self.phase, watching.address if watching else "", (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0,
            watching.lag() if watching else 0, traffic, self.latest, watching.launch() if watching else None,
            tuple(self.scores)))

    def severe_alarm(self) -> Alarm | None:
        """The first severe alarm."""
        return next((alarm for alarm in self.alarms if alarm.state == "severe"), None)

    def cleared(self, severe: Alarm) -> Alarm | None:
        """The clearing of this episode."""
        return next((alarm for alarm in self.alarms if alarm.state == "cleared" and alarm.episode == severe.episode), None)

    def stop(self) -> None:
        """End everything, the newest first."""
        if self.serving is not None:
            self.serving.stop()
        if self.watching is not None:
            self.watching.stop()
        if self.broker is not None:
            self.broker.close()


def last_line(log: Path) -> str:
    """The newest line of a small log; empty while there is none."""
    return (log.read_text(encoding="utf-8").strip().splitlines() or [""])[-1]


def trainer_command() -> list[str]:
    """The trainer's script and what it must know of our events: from the wheel, or from the checkout."""
    here = Path(__file__).resolve().parent
    script = here / "trainer" / "train.py"
    if not script.exists():
        script = here.parents[1] / "deploy" / "trainer" / "train.py"
    return [str(script), "--score", "score"]


def trainer_environment() -> dict[str, str]:
    """One thread, because two cores also serve and watch; and `detectors` from where we have it ourselves."""
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(configuration.__file__).resolve().parents[1])}
