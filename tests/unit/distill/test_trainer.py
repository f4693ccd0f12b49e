"""The training loop: schedule, accumulation, exact resume."""

import math

import pytest
import torch
from torch import nn

from tangram.distill.trainer import Checkpointing, TrainingPlan, train
from tangram.errors import TangramError


def plan(**changes):
    options = {
        "examples": 12,
        "epochs": 3,
        "batch_size": 4,
        "micro_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_fraction": 0.2,
    }
    return TrainingPlan(**(options | changes))


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(12, 6, generator=generator), torch.randn(12, 2, generator=generator)
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))

    def loss(batch):
        value = (module(inputs[batch]) - targets[batch]).square().mean()
        return value, {"mse": value.item()}

    return module, loss


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_every_epoch_sees_every_sequence_once_in_its_own_order():
    chosen = plan()
    epochs = [torch.cat([chosen.batch(epoch * 3 + step) for step in range(3)]) for epoch in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_rate_rises_then_falls_to_a_tenth():
    chosen = plan(epochs=100)
    rates = [chosen.rate(step) for step in range(chosen.steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1e-2)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3, rel=0.01)


def test_accumulation_equals_one_large_batch():
    whole, loss = problem()
    train(whole, loss, plan())
    parts, loss = problem()
    train(parts, loss, plan(micro_batch_size=1))
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    undisturbed, loss = problem()
    expected = train(undisturbed, loss, plan())
    state = Checkpointing(tmp_path / "state", 0.0, "same")
    killed, loss = problem()
    calls = 0

    def loss_that_dies(batch):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return loss(batch)

    with pytest.raises(KeyboardInterrupt):
        train(killed, loss_that_dies, plan(), checkpointing=state)
    resumed, loss = problem(seed=0)
    steps = []

    def counted(batch):
        steps.append(batch)
        return loss(batch)

    rows = train(resumed, counted, plan(), checkpointing=state)
    assert len(steps) == 9 - 5
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert rows == expected


def test_a_state_of_another_training_is_not_resumed(tmp_path):
    module, loss = problem()
    train(module, loss, plan(), checkpointing=Checkpointing(tmp_path / "state", 0.0, "one"))
    fresh, loss = problem()
    train(fresh, loss, plan(), checkpointing=Checkpointing(tmp_path / "state", 1e9, "two"))
    assert torch.equal(weights(fresh), weights(module))


def test_a_damaged_state_is_named(tmp_path):
    state = Checkpointing(tmp_path / "state", 0.0, "one")
    module, loss = problem()
    train(module, loss, plan(), checkpointing=state)
    (kept,) = state.path.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(TangramError, match=rf"{kept.name} does not match its own checksum; delete it"):
        train(module, loss, plan(), checkpointing=state)


def test_a_diverged_loss_stops_the_run():
    module, loss = problem()
    with pytest.raises(TangramError, match="lower learning_rate"):
        train(module, lambda batch: (loss(batch)[0] * math.nan, {}), plan())
