"""The training loop: killed after any epoch, in several processes, in half precision, it ends where it should."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import loop
import network
import numpy as np
import pytest
import torch
from contract import BadInput
from hypothesis import given, settings
from hypothesis import strategies as st

LAYOUT = network.Layout(6, 2, (16, 8))
PLAN = loop.Plan(task="classification", epochs=6, batch_size=32, learning_rate=1e-2, patience=6, workers=0, seed=3)
BELONGS = {"launch": "a", "code": "b", "columns": "c", "options": "d", "events": "e"}
Weights = Mapping[str, torch.Tensor]


def rows(n: int = 300, seed: int = 1, width: int = 6) -> loop.Rows:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, width)).astype(np.float32)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int64)
    return loop.Rows(torch.from_numpy(inputs), torch.from_numpy(targets), torch.ones(n))


def trained(
    layout: network.Layout = LAYOUT, plan: loop.Plan = PLAN, *, data: loop.Rows | None = None, stored: bytes | None = None,
    resume: str = "auto", save: Callable[[bytes], None] = lambda point: None, belongs: Mapping[str, str] = BELONGS,
) -> tuple[Weights, list[str], dict[str, Any]]:
    lines: list[str] = []
    net, course = loop.train(layout, plan, rows() if data is None else data, rows(100, 2, layout.width), belongs=belongs,
                             resume=resume, load=lambda: stored, save=save, progress=lines.append)
    return network.snapshot(net), lines, course


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Weights, list[bytes]]:
    """The weights of a whole training, and its checkpoint after every epoch."""
    points: list[bytes] = []
    weights, _, _ = trained(save=points.append)
    return weights, points


@pytest.mark.parametrize("epoch", range(6))
def test_a_training_resumed_after_any_epoch_ends_with_the_very_weights_of_an_undisturbed_one(
    undisturbed: tuple[Weights, list[bytes]], epoch: int,
) -> None:
    weights, points = undisturbed
    torch.manual_seed(random.randrange(1_000))           # whatever was drawn in this process before
    again, lines, _ = trained(stored=points[epoch])
    assert lines[0] == f"resumed after epoch {epoch + 1}"
    assert len(lines) == 1 + 5 - epoch
    assert equal(weights, again)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    one, same = trained()[0], trained()[0]
    other = trained(plan=loop.Plan(**{**PLAN.__dict__, "seed": 4}))[0]
    assert (equal(one, same), equal(one, other)) == (True, False)


@pytest.mark.parametrize("name", sorted(BELONGS))
def test_a_checkpoint_of_something_else_is_refused_by_name_and_training_starts_anew(
    undisturbed: tuple[Weights, list[bytes]], name: str,
) -> None:
    weights, points = undisturbed
    again, lines, _ = trained(stored=points[2], belongs=BELONGS | {name: "other"})
    assert lines[0] == (f"checkpoint.pt: expected a checkpoint of this training, got one of other {name}; "
                        "training starts anew")
    assert equal(weights, again)
    with pytest.raises(BadInput, match=f"got one of other {name}; remove it"):
        trained(stored=points[2], belongs=BELONGS | {name: "other"}, resume="require")


@pytest.mark.parametrize("damage", [lambda point: point[:len(point) // 2], lambda point: b"", lambda point: b"PK" + point,
                                    lambda point: loop.pack({"format": 1}), lambda point: loop.pack([1, 2])])  # type: ignore[arg-type]
def test_a_damaged_checkpoint_is_refused_in_one_line_and_training_starts_anew(
    undisturbed: tuple[Weights, list[bytes]], damage: Callable[[bytes], bytes],
) -> None:
    weights, points = undisturbed
    again, lines, _ = trained(stored=damage(points[3]))
    assert lines[0].startswith("checkpoint.pt: expected a checkpoint")
    assert "\n" not in lines[0]
    assert equal(weights, again)


def test_a_checkpoint_that_holds_code_is_not_run(tmp_path: Any) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("sprung").touch, ())

    lines = trained(stored=pickle.dumps(Trap()))[1]
    assert (lines[0].startswith("checkpoint.pt: expected"), (tmp_path / "sprung").exists()) == (True, False)


def test_training_stops_when_the_checked_rows_stop_improving_and_keeps_the_best_epoch() -> None:
    noise = rows(200, 5)
    hopeless = loop.Rows(noise.inputs, torch.from_numpy(np.random.default_rng(1).integers(0, 2, 200)), noise.weights)
    plan = loop.Plan(**{**PLAN.__dict__, "epochs": 200, "patience": 3})
    points: list[bytes] = []
    weights, lines, course = trained(plan=plan, data=hopeless, save=points.append)
    assert course["epochs"] == course["best_epoch"] + 3 < 200
    best = loop.checkpoint(points[course["best_epoch"] - 1], BELONGS)
    assert isinstance(best, dict)
    assert equal(weights, best["network"])
    assert f"(best: epoch {course['best_epoch']})" in lines[-1]


def test_a_training_whose_loss_is_never_finite_says_so() -> None:
    data = rows()
    broken = loop.Rows(data.inputs, data.targets, torch.full((300,), float("nan")))
    with pytest.raises(BadInput, match="expected a finite loss, got none in any epoch; lower --learning-rate"):
        trained(data=broken)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_what_full_precision_learns(precision: str) -> None:
    """On the CPU, which has both; on CUDA `auto` chooses one of them."""
    plan = loop.Plan(**{**PLAN.__dict__, "epochs": 12, "patience": 12})
    half = trained(plan=loop.Plan(**{**plan.__dict__, "precision": precision}), data=rows(1_000))
    full = trained(plan=plan, data=rows(1_000))
    assert (half[2]["precision"], full[2]["precision"]) == (precision, "float32")
    assert not equal(half[0], full[0])
    assert half[2]["check_loss"] == pytest.approx(full[2]["check_loss"], abs=0.05)
    assert all(weight.dtype == torch.float32 for weight in half[0].values())


def test_a_resumed_training_in_float16_goes_on_with_its_loss_scale() -> None:
    plan = loop.Plan(**{**PLAN.__dict__, "precision": "float16"})
    points: list[bytes] = []
    weights, _, _ = trained(plan=plan, save=points.append)
    assert equal(weights, trained(plan=plan, stored=points[1])[0])


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 500), batch=st.integers(1, 64), world=st.integers(1, 8), epoch=st.integers(1, 9))
def test_processes_share_an_epoch_evenly_and_leave_nothing_out(n: int, batch: int, world: int, epoch: int) -> None:
    shares = [loop.Shares(n, batch, seed=1, epoch=epoch, rank=rank, world=world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert len({tuple(map(len, share)) for share in shares}) == 1
    everything = np.concatenate([part for share in shares for part in share])
    assert set(everything.tolist()) == set(range(n))
    assert len(everything) < n + world                  # padded by less than one row per process


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 50), steps=st.integers(1, 8), world=st.integers(2, 4))
def test_a_step_takes_the_same_rows_whatever_the_number_of_processes(n: int, steps: int, world: int) -> None:
    rows_, batch = n * world, steps * world
    alone = [sorted(part.tolist()) for part in loop.Shares(rows_, batch, seed=1, epoch=2, rank=0, world=1)]
    together = [sorted(np.concatenate(parts).tolist()) for parts in zip(
        *(loop.Shares(rows_, batch, seed=1, epoch=2, rank=rank, world=world) for rank in range(world)), strict=True)]
    assert alone == together


def test_a_data_loader_process_changes_nothing() -> None:
    # The workers' own /dev/shm need is small here; that a too small one is refused has its own test.
    with_worker = loop.Plan(**{**PLAN.__dict__, "workers": 1, "epochs": 2})
    assert equal(trained(plan=with_worker)[0], trained(plan=loop.Plan(**{**PLAN.__dict__, "epochs": 2}))[0])


@pytest.mark.parametrize(("image", "rest"), [((1, 8, 8), 0), ((3, 5, 7), 4), ((1, 2, 3), 1), ((4, 33, 17), 2), ((1, 1, 9), 0)])
def test_a_convolution_takes_images_of_any_shape_and_columns_beside_them(image: tuple[int, int, int], rest: int) -> None:
    width = int(np.prod(image)) + rest
    net = network.build(network.Layout(width, 3, (8,), image))
    outputs = net(torch.randn(5, width))
    assert (outputs.shape, bool(torch.isfinite(outputs).all())) == ((5, 3), True)
    net.eval()
    if rest:
        one = torch.zeros(1, width)
        other = one.clone()
        other[0, -1] = 5.0
        assert not torch.equal(net(one), net(other))


def test_an_answer_does_not_depend_on_the_rows_beside_it() -> None:
    net = network.build(network.Layout(66, 3, (8,), (1, 8, 8)))
    inputs = torch.randn(9, 66)
    whole = network.forward(net, inputs, torch.device("cpu"))
    alone = torch.cat([network.forward(net, row[None], torch.device("cpu")) for row in inputs])
    assert torch.allclose(whole, alone, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [LAYOUT, network.Layout(70, 2, (16,), (1, 8, 8))])
def test_a_gpu_learns_what_the_cpu_learns_and_the_same_twice(layout: network.Layout) -> None:
    data = rows(2_000, 1, layout.width)
    one, lines, course = trained(layout, data=data)
    assert "cpu" not in course["device"]
    assert course["precision"] in ("bfloat16", "float16")
    assert equal(one, trained(layout, data=data)[0])
    assert float(lines[-1].split("accuracy ")[1].split()[0]) > 0.8
