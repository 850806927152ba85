"""The demo's model in production: answers what the camera shows and logs every answer to a Kafka topic.

One thread answers a steady number of events a second, in ticks of some fifty events, as JSON
`{id, ts, features: {p00 ... p77}, prediction, score, label}` with `ts` in milliseconds. Before every tick it looks at
the promotion file; a model that it names answers from the next tick on. That is all that a serving system has to do to
take part in the loop, and this one is as dumb on purpose.

The model is a few matrix products in numpy from model.json and model.safetensors, as the trainer leaves them: no torch
in this process. Cost: about 15 us an event, most of it JSON, on the one core that the demo may take. A producer queue
that is full drops nothing: the tick waits.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from monitor.demo.world import PIXELS, Camera, Frames
from monitor.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = NDArray[np.float64]

TICK_SECONDS = 0.05
#: After a pause of the machine at most this much is caught up, so that one stall is no burst.
CATCH_UP_SECONDS = 1.0
#: Events that the accuracy on show is taken over: a few seconds, so that it follows the world.
ACCURACY_EVENTS = 3_000


class ServedModel:
    """A perceptron as the trainer left it.

    version : as model.json names it       classes : its answers, in the order of its outputs
    """

    def __init__(self, model_json: str | Path) -> None:
        path = Path(str(model_json).removeprefix("file://"))
        try:
            from safetensors.numpy import load_file

            described = json.loads(path.read_text(encoding="utf-8"))
            weights = load_file(path.with_name("model.safetensors"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: expected a model that the trainer left, got: {error}") from None
        self.version = str(described["version"])
        self.classes: list[str] = described["classes"]
        columns = described["columns"]
        if [column["name"] for column in columns] != list(PIXELS):
            raise ConfigError(f"{path}: expected a model of the {len(PIXELS)} pixels, got {len(columns)} other columns")
        self._mean = np.array([column["mean"] for column in columns])
        self._scale = np.array([column["scale"] for column in columns])
        self._layers = [(weights[f"layer{i}.weight"].astype(float).T, weights[f"layer{i}.bias"].astype(float))
                        for i in range(len(weights) // 2)]

    def __call__(self, images: Floats) -> tuple[list[str], Floats]:
        """Answers and their probabilities for images (n, 64)."""
        values = np.clip((images - self._mean) / self._scale, -8.0, 8.0)        # the trainer's encoder
        for i, (weight, bias) in enumerate(self._layers):
            values = (values if i == 0 else np.maximum(values, 0.0)) @ weight + bias
        exponents = np.exp(values - values.max(axis=1, keepdims=True))
        scores = exponents.max(axis=1) / exponents.sum(axis=1)
        return [self.classes[i] for i in values.argmax(axis=1).tolist()], scores


@dataclass(frozen=True)
class Traffic:
    """What the serving side knows: events answered, and how good the newest answers were."""

    events: int
    version: str
    accuracy: float                                  # over the newest ACCURACY_EVENTS answers; NaN before the first
    tilted: bool


class Serving:
    """The thread that answers and logs.

    rate      : events a second                     promotion : the file that names the model to serve
    switched  : called in the thread with the new version when a promoted model took over
    """

    def __init__(
        self, camera: Camera, model: ServedModel, producer: Any, topic: str, *, partitions: int, rate: float,
        promotion: Path, switched: Callable[[str], None] = lambda version: None,
    ) -> None:
        self._camera, self._model, self._producer, self._topic = camera, model, producer, topic
        self._partitions, self._rate, self._promotion, self._switched = partitions, rate, promotion, switched
        self._right: deque[bool] = deque(maxlen=ACCURACY_EVENTS)
        self._events = 0
        self._tilt_ms: float = float("inf")
        self._promoted: tuple[int, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="serving", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more; returns when the last event is delivered or ten seconds have passed."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(10)
        self._producer.flush(10)

    def tilt(self) -> float:
        """Bump the camera at the next whole second, which is returned; the world is another from then on."""
        second = float(int(time.time()) + 1)
        self._tilt_ms = second * 1000
        return second

    def traffic(self) -> Traffic:
        """The serving side's numbers now."""
        right = list(self._right)
        accuracy = sum(right) / len(right) if right else float("nan")
        return Traffic(self._events, self._model.version, accuracy, time.time() * 1000 >= self._tilt_ms)

    def _serve(self) -> None:
        try:
            done = time.time()
            while not self._stop.wait(max(0.0, done + TICK_SECONDS - time.time())):
                now = time.time()
                done = max(done, now - CATCH_UP_SECONDS)
                count = int((now - done) * self._rate)
                if count:
                    self._look_for_promotion()
                    self._answer(done * 1000 + (np.arange(count) + 1) * 1000 / self._rate)
                    done += count / self._rate
                self._producer.poll(0)
        except BaseException as error:               # the demo ends with it; a thread must not die in silence
            self.failure = error

    def _answer(self, times: Floats) -> None:
        frames = self._camera.frames(times >= self._tilt_ms)
        answers, scores = self._model(frames.images)
        labels = [str(label) for label in frames.labels.tolist()]
        for place, value in enumerate(encode(self._events, times, frames, answers, scores, labels)):
            while True:
                try:
                    self._producer.produce(self._topic, value, partition=(self._events + place) % self._partitions,
                                           timestamp=int(times[place]))
                    break
                except BufferError:                  # the broker is behind: wait for it rather than lose events
                    self._producer.poll(0.1)
        self._right.extend(answer == label for answer, label in zip(answers, labels, strict=True))
        self._events += len(labels)

    def _look_for_promotion(self) -> None:
        try:
            status = self._promotion.stat()
        except FileNotFoundError:
            return
        if (seen := (status.st_ino, status.st_mtime_ns)) == self._promoted:
            return
        self._promoted = seen
        self._model = ServedModel(json.loads(self._promotion.read_text(encoding="utf-8"))["model_uri"])
        self._right.clear()                          # the accuracy on show is one model's
        self._switched(self._model.version)


def encode(
    first: int, times: Floats, frames: Frames, answers: list[str], scores: Floats, labels: list[str],
) -> list[bytes]:
    """The events of one tick as JSON; `first` numbers them.

    Scores are not rounded: the reference was fitted on the trainer's own, and a rounded score is another quantity, with
    a heap of events at 1.
    """
    encoder = msgspec.json.Encoder()
    return [
        encoder.encode({"id": f"e{first + i}", "ts": int(moment), "features": dict(zip(PIXELS, image, strict=True)),
                        "prediction": answer, "score": score, "label": label})
        for i, (moment, image, answer, score, label) in enumerate(
            zip(times.tolist(), frames.images.tolist(), answers, scores.tolist(), labels, strict=True))
    ]
