"""The network and its training loop: one process or many, CPU or CUDA, killed and resumed, always the same result.

    Network   a perceptron over the encoder's matrix; saved as layer0.weight, layer0.bias, layer1.weight ...
    train     epochs until the checked rows stop improving; one progress line and one checkpoint per epoch
    answers   predictions and scores of many rows

The invariant: the result is a function of the rows, the options and the number of processes. Everything random is
drawn anew from (seed, epoch), so that a training that was killed goes on from its last checkpoint and ends with the
very weights of one that was not. Under `torchrun` every process takes its share of each batch (DDP over NCCL on CUDA,
over gloo without); only the first writes. On CUDA the forward pass runs in bfloat16, or in float16 with a scaled loss
where the card has no bfloat16.

Rows lie in memory once per process; data-loader workers copy whole batches through /dev/shm, never single rows.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional

T = TypeVar("T")
Floats = NDArray[np.float64]
#: Torch's own format for tensors and plain values, read back with weights_only, so that no code is ever loaded.
CHECKPOINT_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """How to train; a checkpoint is only taken up again by an equal plan on the same rows."""

    task: str                                       # "classification" or "regression"
    outputs: int                                    # classes, or 1
    hidden: tuple[int, ...]
    epochs: int
    batch_size: int                                 # rows per step, over all processes together
    learning_rate: float
    patience: int                                   # epochs without a better loss on the checked rows
    workers: int
    seed: int


@dataclass(frozen=True)
class Rows(torch.utils.data.Dataset[Any]):
    """Tensors of one role: inputs (n, width), targets (n,), weights (n,)."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        return self.inputs[chosen], self.targets[chosen], self.weights[chosen]


class Network(nn.Module):
    """Linear layers with ReLU and a little dropout between them."""

    def __init__(self, width: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        sizes = [width, *hidden, outputs]
        for i, (before, after) in enumerate(pairwise(sizes)):
            setattr(self, f"layer{i}", nn.Linear(before, after))
        self.depth = len(sizes) - 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes), or values (n, 1)."""
        values = inputs
        for i in range(self.depth):
            values = getattr(self, f"layer{i}")(values)
            if i < self.depth - 1:
                values = functional.dropout(functional.relu(values), 0.1, self.training)
        return values


class Shares:
    """The batches of one process in one epoch: lists of row numbers, every process equally many."""

    def __init__(self, rows: int, batch: int, *, seed: int, epoch: int, rank: int, world: int) -> None:
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        # Padded by rows from its front: a process with one batch fewer would leave the others waiting in allreduce.
        padded = np.resize(order, -(-rows // world) * world)
        self.mine = padded[rank::world]
        self.batch = max(1, batch // world)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.mine), self.batch):
            yield self.mine[start:start + self.batch].tolist()

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch)


class Precision:
    """Mixed precision where CUDA offers it, plain float32 elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind: torch.dtype | None = None
        if device.type == "cuda":
            self.kind = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        # float16 has too few exponents for small gradients; bfloat16 needs no scaling.
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.kind is torch.float16)

    def __call__(self) -> Any:
        """The context of a forward pass."""
        return nullcontext() if self.kind is None else torch.autocast(self.device.type, self.kind)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """One optimiser step."""
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(optimizer)
        self.scaler.update()


def place() -> tuple[int, int, torch.device]:
    """This process's rank, the number of processes, its device; joins the process group when there are several."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    return rank, world, device


def losses(outputs: Tensor, targets: Tensor, task: str) -> Tensor:
    """Loss of every row, shape (n,)."""
    if task == "classification":
        return functional.cross_entropy(outputs.float(), targets, reduction="none")
    return functional.mse_loss(outputs.float().squeeze(1), targets, reduction="none")


def shared(value: T | None, world: int) -> T | None:
    """The first process's value, in every process."""
    if world == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def train(
    plan: Plan, rows: Rows, check: Rows, *, fingerprint: str,
    load: Callable[[], bytes | None], save: Callable[[bytes], None], progress: Callable[[str], None],
) -> tuple[Network, dict[str, float]]:
    """The network at its best epoch, and how it went.

    fingerprint : of rows and options; a checkpoint of another one is not taken up
    load, save  : the checkpoint's bytes, from and to where they outlive this process
    progress    : called with one line per epoch, in the first process only
    """
    rank, world, device = place()
    torch.manual_seed(plan.seed)
    network = Network(rows.inputs.shape[1], plan.hidden, plan.outputs).to(device)
    model: nn.Module = nn.parallel.DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=1e-2)
    precision = Precision(device)
    epoch, best, best_epoch, best_state = 0, float("inf"), 0, snapshot(network)
    stored = shared(load() if rank == 0 else None, world)
    if stored is not None and (point := checkpoint(stored, fingerprint)) is not None:
        network.load_state_dict(point["network"])
        optimizer.load_state_dict(point["optimizer"])
        precision.scaler.load_state_dict(point["scaler"])
        epoch, best, best_epoch, best_state = point["epoch"], point["best"], point["best_epoch"], point["best_state"]
        if rank == 0:
            progress(f"resumed after epoch {epoch}")
    while epoch < plan.epochs and epoch - best_epoch < plan.patience:
        epoch += 1
        torch.manual_seed(plan.seed * 1_000_003 + epoch * world + rank)     # dropout, alike in a resumed training
        trained = one_epoch(plan, model, optimizer, precision, rows,
                            Shares(len(rows), plan.batch_size, seed=plan.seed, epoch=epoch, rank=rank, world=world))
        checked, quality = shared(evaluate(plan, network, check, device), world) or (float("inf"), 0.0)
        if checked < best:
            best, best_epoch, best_state = checked, epoch, snapshot(network)
        if rank == 0:
            save(pack({"format": CHECKPOINT_FORMAT, "fingerprint": fingerprint, "epoch": epoch, "best": best,
                       "best_epoch": best_epoch, "best_state": best_state, "network": snapshot(network),
                       "optimizer": optimizer.state_dict(), "scaler": precision.scaler.state_dict()}))
            measure = "accuracy" if plan.task == "classification" else "mean absolute error (s.d.)"
            progress(f"epoch {epoch}/{plan.epochs} loss {trained:.4f} checked {checked:.4f} {measure} {quality:.4f}")
    network.load_state_dict(best_state)
    return network, {"epochs": float(epoch), "best_epoch": float(best_epoch), "check_loss": best}


def one_epoch(
    plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, rows: Rows, batches: Shares,
) -> float:
    """One pass over this process's share; the mean weighted loss."""
    device = precision.device
    loader: Any = torch.utils.data.DataLoader(
        rows, sampler=batches, batch_size=None, num_workers=plan.workers, pin_memory=device.type == "cuda")
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


@torch.no_grad()
def forward(network: Network, inputs: Tensor, device: torch.device) -> Tensor:
    """Outputs of many rows in float32 on the CPU, by chunks that fit a small card."""
    network.eval()
    chunks = [network(inputs[start:start + 8192].to(device)).float().cpu() for start in range(0, len(inputs), 8192)]
    return torch.cat(chunks) if chunks else torch.zeros((0, 1))


def evaluate(plan: Plan, network: Network, rows: Rows, device: torch.device) -> tuple[float, float]:
    """Mean loss and quality (accuracy, or mean absolute error) on rows that were not trained on."""
    outputs = forward(network, rows.inputs, device)
    loss = float(losses(outputs, rows.targets, plan.task).mean())
    if plan.task == "classification":
        return loss, float((outputs.argmax(1) == rows.targets).float().mean())
    return loss, float((outputs.squeeze(1) - rows.targets).abs().mean())


def answers(network: Network, inputs: NDArray[np.float32], task: str) -> tuple[Floats, Floats]:
    """Per row the class number or the value, and the score: the largest probability (NaN for a regression)."""
    outputs = forward(network, torch.from_numpy(inputs), next(network.parameters()).device)
    if task == "regression":
        values = outputs.squeeze(1).double().numpy()
        return values, np.full(len(values), np.nan)
    scores, classes = outputs.double().softmax(1).max(1)
    return classes.double().numpy(), scores.numpy()


def rescale(network: Network, mean: float, scale: float) -> None:
    """Fold the targets' mean and scale into the last layer: from then on the network answers in the label's unit."""
    last = getattr(network, f"layer{network.depth - 1}")
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.mul_(scale).add_(mean)


def snapshot(network: Network) -> dict[str, Tensor]:
    """A copy of the weights on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def pack(point: dict[str, Any]) -> bytes:
    """A checkpoint as bytes."""
    buffer = io.BytesIO()
    torch.save(point, buffer)
    return buffer.getvalue()


def checkpoint(stored: bytes, fingerprint: str) -> dict[str, Any] | None:
    """The checkpoint in these bytes, or None when it is not of this training."""
    try:
        point: dict[str, Any] = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception:
        return None                                     # half a file of a full disk: training again is always right
    same = point.get("format") == CHECKPOINT_FORMAT and point.get("fingerprint") == fingerprint
    return point if same else None
