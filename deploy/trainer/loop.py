"""The training loop: one process or many, CPU or CUDA, killed and resumed, always the same result.

    train     epochs until the checked rows stop improving; one progress line and one checkpoint per epoch
    Shares    which rows each process trains on in an epoch: disjoint, equally many, together all
    Precision mixed precision: bfloat16, or float16 with a scaled loss where the card has no bfloat16

The invariant: the result is a function of rows, options and number of processes. Everything random is drawn anew from
(seed, epoch), so that a training that was killed goes on from its last checkpoint and ends with the very weights of one
that was not. Every step takes the same rows whatever the number of processes (DDP over NCCL on CUDA, over gloo without):
without dropout two processes end with the weights of one but for rounding. Only the first process writes.

A checkpoint says what it belongs to (launch, code, columns, options, events) and is refused, in one line, by anything
else. It is a tensor file that is read with weights_only: no code is ever loaded from it. Rows lie in memory once per
process; on CUDA, on the card where they fit.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from contract import BadInput, duration, one_line
from network import Layout, Perceptron, build, forward, silence, snapshot
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional

T = TypeVar("T")
Order = NDArray[np.int64]
CHECKPOINT_FORMAT = 2
#: Processes wait for one another at most this long: the first writes its results to a slow bucket meanwhile.
TOGETHER = timedelta(minutes=30)
#: Rows are kept on the card where they take at most this share of its free memory.
CARD_SHARE = 0.25
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """How to train; a checkpoint is only taken up again by an equal plan on the same rows."""

    task: str                                       # "classification" or "regression"
    epochs: int
    batch_size: int                                 # rows per step, over all processes together
    learning_rate: float
    patience: int                                   # epochs without a better loss on the checked rows
    workers: int
    seed: int
    precision: str = "auto"                         # or float32, bfloat16, float16


@dataclass(frozen=True)
class Rows(torch.utils.data.Dataset[Any]):
    """Tensors of one role: inputs (n, width), targets (n,), weights (n,)."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, chosen: Order) -> tuple[Tensor, Tensor, Tensor]:
        places = torch.from_numpy(chosen).to(self.inputs.device)
        return self.inputs[places], self.targets[places], self.weights[places]

    def to(self, device: torch.device) -> Rows:
        """The same rows elsewhere."""
        return Rows(self.inputs.to(device), self.targets.to(device), self.weights.to(device))


class Shares:
    """The batches of one process in one epoch: arrays of row numbers, every process equally many."""

    def __init__(self, rows: int, batch: int, *, seed: int, epoch: int, rank: int, world: int) -> None:
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        # Padded by rows from its front: a process with one batch fewer would leave the others waiting in allreduce.
        padded = np.resize(order, -(-rows // world) * world)
        self.mine = np.ascontiguousarray(padded[rank::world])
        self.batch = max(1, batch // world)

    def __iter__(self) -> Iterator[Order]:
        for start in range(0, len(self.mine), self.batch):
            yield self.mine[start:start + self.batch]

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch)


class Precision:
    """Mixed precision where CUDA offers it, plain float32 elsewhere, or what is asked for."""

    def __init__(self, device: torch.device, asked: str = "auto") -> None:
        self.device = device
        if asked == "auto":
            asked = "float32"
            if device.type == "cuda":
                asked = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        self.name, self.kind = asked, DTYPES[asked]
        # float16 has too few exponents for small gradients; bfloat16 needs no scaling.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.kind is torch.float16)

    def __call__(self) -> Any:
        """The context of a forward pass."""
        return nullcontext() if self.kind is None else torch.autocast(self.device.type, self.kind)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """One optimiser step."""
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(optimizer)
        self.scaler.update()


@dataclass
class Course:
    """Where a training stands; all of it goes into a checkpoint."""

    epoch: int
    best: float
    best_epoch: int
    best_state: dict[str, Tensor]


def place() -> tuple[int, int, torch.device]:
    """This process's rank, the number of processes, its device; joins the process group when there are several."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=TOGETHER)
    return rank, world, device


def losses(outputs: Tensor, targets: Tensor, task: str) -> Tensor:
    """Loss of every row, shape (n,)."""
    if task == "classification":
        return functional.cross_entropy(outputs.float(), targets, reduction="none")
    return functional.mse_loss(outputs.float().squeeze(1), targets, reduction="none")


def shared(value: T, world: int) -> T:
    """The first process's value, in every process."""
    if world == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def train(
    layout: Layout, plan: Plan, rows: Rows, check: Rows, *, belongs: Mapping[str, str], resume: str,
    load: Callable[[], bytes | None], save: Callable[[bytes], None], progress: Callable[[str], None],
) -> tuple[Perceptron, dict[str, Any]]:
    """The network at its best epoch, and how it went.

    belongs    : what a checkpoint must have been made for, by name
    resume     : "auto" takes a fitting checkpoint up and tells why another is refused, "require" ends there, "never"
    load, save : the checkpoint's bytes, from and to where they outlive this process
    progress   : called with one line per epoch
    """
    rank, world, device = place()
    torch.manual_seed(plan.seed)
    network = build(layout)
    silence(network, rows.inputs)
    network.to(device)
    model: nn.Module = nn.parallel.DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=1e-2)
    precision = Precision(device, plan.precision)
    course = Course(0, float("inf"), 0, snapshot(network))
    stored = None if resume == "never" else shared(load() if rank == 0 else None, world)
    if stored is not None:
        point = checkpoint(stored, belongs)
        if isinstance(point, str):
            refuse(point, resume, progress)
        else:
            network.load_state_dict(point["network"])
            optimizer.load_state_dict(point["optimizer"])
            precision.scaler.load_state_dict(point["scaler"])
            course = Course(point["epoch"], point["best"], point["best_epoch"], point["best_state"])
            progress(f"resumed after epoch {course.epoch}")
    rows = on_card(rows, plan, device)
    seconds: list[float] = []
    while course.epoch < plan.epochs and course.epoch - course.best_epoch < plan.patience:
        course.epoch += 1
        began = time.monotonic()
        torch.manual_seed(plan.seed * 1_000_003 + course.epoch * world + rank)     # dropout, alike in a resumed training
        shares = Shares(len(rows), plan.batch_size, seed=plan.seed, epoch=course.epoch, rank=rank, world=world)
        trained = one_epoch(plan, model, optimizer, precision, rows, shares)
        seconds.append(time.monotonic() - began)
        checked, quality = shared(evaluate(plan, network, check, device), world)
        if checked < course.best:
            course.best, course.best_epoch, course.best_state = checked, course.epoch, snapshot(network)
        if rank == 0:
            save(pack({"format": CHECKPOINT_FORMAT, "belongs": dict(belongs), "epoch": course.epoch,
                       "best": course.best, "best_epoch": course.best_epoch, "best_state": course.best_state,
                       "network": snapshot(network), "optimizer": optimizer.state_dict(),
                       "scaler": precision.scaler.state_dict()}))
        progress(line(plan, course, trained, checked, quality, time.monotonic() - began))
    if course.best == float("inf"):
        raise BadInput("training: expected a finite loss, got none in any epoch; lower --learning-rate, or look for "
                       "absurd values in the labels")
    network.load_state_dict(course.best_state)
    return network, {"epochs": course.epoch, "best_epoch": course.best_epoch, "check_loss": course.best,
                     "epoch_seconds": round(statistics.median(seconds), 4) if seconds else None,
                     "device": device_name(device), "precision": precision.name, "processes": world}


def line(plan: Plan, course: Course, trained: float, checked: float, quality: float, epoch_seconds: float) -> str:
    """The progress line of an epoch: what people see in the service while it trains."""
    measure = "accuracy" if plan.task == "classification" else "mean absolute error (s.d.)"
    to_go = min(plan.epochs - course.epoch, plan.epochs) * epoch_seconds
    best = "" if course.best_epoch == course.epoch else f" (best: epoch {course.best_epoch})"
    return (f"epoch {course.epoch}/{plan.epochs} loss {trained:.4f} held-back loss {checked:.4f} {measure} {quality:.4f} "
            f"eta {duration(to_go)}{best}")


def refuse(why: str, resume: str, progress: Callable[[str], None]) -> None:
    """A checkpoint of something else: training starts anew, unless the user asked for more."""
    if resume == "require":
        raise BadInput(f"checkpoint.pt: {why}; remove it, or leave out --resume require")
    progress(f"checkpoint.pt: {why}; training starts anew")


def on_card(rows: Rows, plan: Plan, device: torch.device) -> Rows:
    """The rows on the card where they fit: a step then waits for no copy."""
    if device.type != "cuda" or plan.workers:
        return rows
    free, _ = torch.cuda.mem_get_info(device)
    size = sum(part.numel() * part.element_size() for part in (rows.inputs, rows.targets, rows.weights))
    return rows.to(device) if size <= CARD_SHARE * free else rows


def one_epoch(
    plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, rows: Rows, batches: Shares,
) -> float:
    """One pass over this process's share; the mean weighted loss."""
    device = precision.device
    if plan.workers:
        loader: Any = torch.utils.data.DataLoader(
            rows, sampler=batches, batch_size=None, num_workers=plan.workers, pin_memory=device.type == "cuda",
            generator=torch.Generator())             # else it draws from ours, and dropout depends on the workers
    else:
        loader = (rows[chosen] for chosen in batches)
    model.train()
    total = torch.zeros((), device=device)
    for inputs, targets, weights in loader:
        inputs, targets, weights = (part.to(device, non_blocking=True) for part in (inputs, targets, weights))
        with precision():
            outputs = model(inputs)
        loss = (losses(outputs, targets, plan.task) * weights).mean()
        precision.step(loss, optimizer)
        total += loss.detach()
    return float(total) / max(1, len(batches))


def evaluate(plan: Plan, network: nn.Module, rows: Rows, device: torch.device) -> tuple[float, float]:
    """Mean loss and quality (accuracy, or mean absolute error) on rows that were not trained on."""
    outputs = forward(network, rows.inputs, device)
    loss = float(losses(outputs, rows.targets, plan.task).mean())
    if plan.task == "classification":
        return loss, float((outputs.argmax(1) == rows.targets).float().mean())
    return loss, float((outputs.squeeze(1) - rows.targets).abs().mean())


def device_name(device: torch.device) -> str:
    """What trained, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def pack(point: dict[str, Any]) -> bytes:
    """A checkpoint as bytes."""
    buffer = io.BytesIO()
    torch.save(point, buffer)
    return buffer.getvalue()


def checkpoint(stored: bytes, belongs: Mapping[str, str]) -> dict[str, Any] | str:
    """The checkpoint in these bytes, or why it is refused."""
    try:
        point: dict[str, Any] = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:                          # half a file, or no tensors at all: training again is right
        return f"expected a checkpoint of ours, got {len(stored):,} bytes that cannot be read ({one_line(error)[:60]})"
    if not isinstance(point, dict) or point.get("format") != CHECKPOINT_FORMAT or not isinstance(point.get("belongs"), dict):
        return "expected a checkpoint of this trainer, got another program's or version's"
    other = [name for name in belongs if point["belongs"].get(name) != belongs[name]]
    return f"expected a checkpoint of this training, got one of other {', '.join(other)}" if other else point
