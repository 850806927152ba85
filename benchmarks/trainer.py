"""An epoch of the trainer: against torch's usual loop over single rows, and on a GPU against the CPU where there is one.

The peer is what a tutorial writes: a DataLoader over a TensorDataset, which takes rows one by one and stacks them. Ours
takes the rows of a batch at once. Both train the same network on the same batches and must end with the same weights.

Where CUDA is found, the same epochs run there in mixed precision; wall-clock seconds and the ratio are stated. Without
it the row says so, and nothing about GPUs is claimed.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.measure import Bench

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "deploy" / "trainer"))

import loop
import network

PLAN = loop.Plan(task="classification", epochs=1, batch_size=256, learning_rate=2e-3, patience=9, workers=0, seed=7)
#: Numbers per row and hidden layers of the table; images of 1 x 28 x 28 pixels.
TABLE = network.Layout(100, 10, (128, 64), None, 0.0)
IMAGE = network.Layout(784, 10, (128, 64), (1, 28, 28), 0.0)


def rows(n: int, width: int) -> loop.Rows:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((n, width), dtype=np.float32)
    targets = np.argmax(inputs[:, :10], axis=1)
    return loop.Rows(torch.from_numpy(inputs), torch.from_numpy(targets), torch.ones(n))


def by_single_rows(layout: network.Layout, data: loop.Rows) -> dict[str, torch.Tensor]:
    """The usual loop, one epoch."""
    torch.manual_seed(PLAN.seed)
    net = network.build(layout)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PLAN.learning_rate, weight_decay=1e-2)
    batches = loop.Shares(len(data), PLAN.batch_size, seed=PLAN.seed, epoch=1, rank=0, world=1)
    dataset = torch.utils.data.TensorDataset(data.inputs, data.targets)
    net.train()
    for inputs, targets in torch.utils.data.DataLoader(dataset, batch_sampler=[part.tolist() for part in batches]):
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    return network.snapshot(net)


def ours(layout: network.Layout, data: loop.Rows) -> dict[str, torch.Tensor]:
    """One epoch of the trainer's loop on the CPU."""
    torch.manual_seed(PLAN.seed)
    net = network.build(layout)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PLAN.learning_rate, weight_decay=1e-2)
    batches = loop.Shares(len(data), PLAN.batch_size, seed=PLAN.seed, epoch=1, rank=0, world=1)
    loop.one_epoch(PLAN, net, optimizer, loop.Precision(torch.device("cpu")), data, batches)
    return network.snapshot(net)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def seconds(act: Callable[[], object], turns: int) -> float:
    """Median wall-clock seconds; the first call, which warms up, is not counted."""
    act()
    taken = []
    for _ in range(turns):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def epoch_on(device: torch.device, layout: network.Layout, data: loop.Rows) -> Callable[[], float]:
    """One epoch after the other of one network, as `loop.train` runs them on this device."""
    net = network.build(layout).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PLAN.learning_rate, weight_decay=1e-2)
    precision, placed = loop.Precision(device), loop.on_card(data, PLAN, device)
    numbers = iter(range(1, 1_000_000))

    def epoch() -> float:
        batches = loop.Shares(len(data), PLAN.batch_size, seed=PLAN.seed, epoch=next(numbers), rank=0, world=1)
        return loop.one_epoch(dataclasses.replace(PLAN), net, optimizer, precision, placed, batches)

    return epoch


def main() -> int:
    bench = Bench("trainer: one epoch", repeat=5)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    table = rows(bench.sized(50_000, 512), TABLE.width)
    images = rows(bench.sized(5_000, 256), IMAGE.width)
    bench.compare(f"{len(table):,} rows of {TABLE.width} numbers", peer=lambda: by_single_rows(TABLE, table),
                  ours=lambda: ours(TABLE, table), target=1.2, equal=same, peer_name="TensorDataset")
    cuda = torch.device("cuda") if torch.cuda.is_available() else None
    for name, layout, data in (("table", TABLE, table), ("image", IMAGE, images)):
        cpu = seconds(epoch_on(torch.device("cpu"), layout, data), bench.repeat)
        bench.fact(f"{name}: epoch of {len(data):,} rows, CPU", cpu, "s", f"{torch.get_num_threads()} threads, float32")
        if cuda is not None:
            gpu = seconds(epoch_on(cuda, layout, data), bench.repeat)
            bench.fact(f"{name}: the same, GPU", gpu, "s",
                       f"{torch.cuda.get_device_name(cuda)}, {loop.Precision(cuda).name}, {cpu / gpu:.1f} times as fast")
    if cuda is None:
        bench.fact("GPU", 0, "devices", "no CUDA here: not measured")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
