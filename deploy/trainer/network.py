"""The networks: a perceptron for tables, a small convolutional one for images, and how they are kept and asked.

    Perceptron   layers of the encoder's matrix; saved as layer0.weight, layer0.bias, layer1.weight ...
    Convolution  the pixels through three convolutions, then the same layers on what they found and on all other columns
    answers      predictions and scores of many rows
    restore      a network as model.json and model.safetensors describe it, ready to answer

The invariant: a network is a function of its layout (plain data, in model.json) and its weights (safetensors), so that
serving code needs neither the events nor the trainer's options. An input that was 0 in all training rows has the weight
0: a category bucket that training never filled changes no answer.

Every row is one float32 vector, pixels first, channels x height x width. Normalisation is by groups, not by batches: the
answer to a row does not depend on its neighbours, and several processes agree without talking. Neighbour: `loop` trains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from encode import Encoder
from events import Values
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Floats = NDArray[np.float64]
#: Channels after each convolution; each but the first halves height and width where there is room.
CHANNELS = (16, 32, 64)
#: Rows that go through the network at once when it only answers: fits a small card.
ANSWER_ROWS = 8_192


@dataclass(frozen=True)
class Layout:
    """What a network is made of.

    width   : numbers per row           outputs : classes, or 1 for a regression
    hidden  : sizes of the layers       image   : (channels, height, width) of the first numbers, None for a table
    dropout : share of the layers' values that training leaves out
    """

    width: int
    outputs: int
    hidden: tuple[int, ...]
    image: tuple[int, int, int] | None = None
    dropout: float = 0.1


class Perceptron(nn.Module):
    """Linear layers with ReLU and a little dropout between them."""

    def __init__(self, width: int, hidden: Sequence[int], outputs: int, dropout: float) -> None:
        super().__init__()
        sizes = [width, *hidden, outputs]
        for i, (before, after) in enumerate(pairwise(sizes)):
            setattr(self, f"layer{i}", nn.Linear(before, after))
        self.depth, self.dropout = len(sizes) - 1, dropout

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes), or values (n, 1)."""
        values = inputs
        for i in range(self.depth):
            values = getattr(self, f"layer{i}")(values)
            if i < self.depth - 1:
                values = functional.dropout(functional.relu(values), self.dropout, self.training)
        return values

    def last(self) -> nn.Linear:
        """The layer that answers."""
        layer: nn.Linear = getattr(self, f"layer{self.depth - 1}")
        return layer


class Convolution(Perceptron):
    """Three convolutions over the pixels; the layers see what they found, averaged over a coarse grid, and the rest."""

    GRID = 4

    def __init__(self, layout: Layout, image: tuple[int, int, int]) -> None:
        channels, height, width = image
        pixels = channels * height * width
        grid = (min(self.GRID, height), min(self.GRID, width))
        found = CHANNELS[-1] * grid[0] * grid[1]
        super().__init__(found + layout.width - pixels, layout.hidden, layout.outputs, layout.dropout)
        self.shape, self.pixels, self.grid = image, pixels, grid
        for i, (before, after) in enumerate(pairwise((channels, *CHANNELS))):
            setattr(self, f"convolution{i}", nn.Conv2d(before, after, 3, padding=1))
            setattr(self, f"norm{i}", nn.GroupNorm(4, after))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes), or values (n, 1)."""
        values = inputs[:, :self.pixels].reshape(-1, *self.shape)
        for i in range(len(CHANNELS)):
            values = functional.relu(getattr(self, f"norm{i}")(getattr(self, f"convolution{i}")(values)))
            if i and min(values.shape[2:]) >= 2 * self.GRID:
                values = functional.max_pool2d(values, 2)
        values = coarse(values, self.grid).flatten(1)
        return super().forward(torch.cat((values, inputs[:, self.pixels:].to(values.dtype)), 1))


def coarse(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(n, c, h, w) averaged over a grid of cells, edges included; unlike torch's adaptive pooling it has one result on CUDA."""
    height, width = values.shape[2:]
    if height % grid[0] or width % grid[1]:
        values = functional.pad(values, (0, -width % grid[1], 0, -height % grid[0]))
        height, width = values.shape[2:]
    return functional.avg_pool2d(values, (height // grid[0], width // grid[1]))


def build(layout: Layout) -> Perceptron:
    """The network of a layout, with weights as torch draws them."""
    if layout.image is None:
        return Perceptron(layout.width, layout.hidden, layout.outputs, layout.dropout)
    return Convolution(layout, layout.image)


def silence(network: Perceptron, inputs: Tensor) -> None:
    """Weight 0 for inputs that are 0 in every training row: what was never seen must not steer an answer.

    It stays 0 in training: an input of 0 has a gradient of 0, and the weights' decay leaves 0 alone.
    """
    if isinstance(network, Convolution):
        inputs, first = inputs[:, network.pixels:], network.layer0.in_features - (inputs.shape[1] - network.pixels)
    else:
        first = 0
    unseen = (inputs == 0).all(0) if len(inputs) else torch.zeros(inputs.shape[1], dtype=torch.bool)
    with torch.no_grad():
        network.layer0.weight[:, first:][:, unseen.to(network.layer0.weight.device)] = 0.0


@torch.no_grad()
def forward(network: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """Outputs of many rows in float32 on the CPU."""
    network.eval()
    parts = [network(inputs[start:start + ANSWER_ROWS].to(device)).float().cpu()
             for start in range(0, len(inputs), ANSWER_ROWS)]
    return torch.cat(parts) if parts else torch.zeros((0, 1))


def answers(network: nn.Module, inputs: NDArray[np.float32], task: str) -> tuple[Floats, Floats]:
    """Per row the class number or the value, (n,), and the probability of every class, (n, classes); (n, 0) for values."""
    outputs = forward(network, torch.from_numpy(inputs), next(network.parameters()).device)
    if task == "regression":
        values = outputs.squeeze(1).double().numpy()
        return values, np.empty((len(values), 0))
    shares = outputs.double().softmax(1).numpy()
    return shares.argmax(1).astype(np.float64), shares


def rescale(network: Perceptron, mean: float, scale: float) -> None:
    """Fold the targets' mean and scale into the last layer: from then on the network answers in the label's unit."""
    with torch.no_grad():
        network.last().weight.mul_(scale)
        network.last().bias.mul_(scale).add_(mean)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def described(layout: Layout) -> dict[str, Any]:
    """A layout as plain data, for model.json."""
    return {"network": "tabular" if layout.image is None else "image"} | asdict(layout)


class Model:
    """A trained model that answers features by name, as serving code does.

    >>> model = Model(described_model, weights)          # doctest: +SKIP
    >>> answers, shares = model({"x": np.array([0.5])})  # doctest: +SKIP
    """

    def __init__(self, model: Mapping[str, Any], weights: bytes) -> None:
        from safetensors.torch import load

        image = model["layout"]["image"]
        self.layout = Layout(model["layout"]["width"], model["layout"]["outputs"], tuple(model["layout"]["hidden"]),
                             None if image is None else (image[0], image[1], image[2]), model["layout"]["dropout"])
        self.task, self.classes = str(model["task"]), list(model["classes"])
        self.encoder = Encoder(model["columns"])
        self.network = build(self.layout)
        self.network.load_state_dict(load(weights))

    def __call__(self, features: Mapping[str, Values]) -> tuple[Values, Floats]:
        """Answers (n,), classes or values, and the classes' probabilities (n, classes)."""
        numbers, shares = answers(self.network, self.encoder.matrix(features), self.task)
        return (np.array(self.classes, dtype=object)[numbers.astype(int)] if self.classes else numbers), shares


def restore(model_json: bytes, weights: bytes) -> Model:
    """The model of the files model.json and model.safetensors."""
    return Model(json.loads(model_json), weights)
