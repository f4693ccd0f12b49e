"""The training loop: schedule, accumulation, exact resume."""

import math
import re

import pytest
import torch
from torch import nn

from tangram.errors import TangramError
from tangram.training.loop import Checkpointing, TrainingPlan, Validation, _restore, steps_of, train
from tangram.training.parallel import World


def plan(**changes):
    options = {
        "examples": 12,
        "steps": 9,
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


@pytest.mark.parametrize("seed", [0, 1, 7, 18_446_688_000_000])
def test_the_order_of_a_seed_is_the_one_that_it_always_had(seed):
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 2)
    assert plan(seed=seed).batch(7).tolist() == torch.randperm(12, generator=generator)[4:8].tolist()


@pytest.mark.parametrize("seed", [20_261_125_173_000, 2**63 - 1])
def test_large_seeds_have_their_own_orders(seed):
    orders = [plan(seed=other, batch_size=12).batch(step).tolist() for other in (seed, seed - 1) for step in (0, 1)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_rate_rises_then_falls_to_a_tenth():
    chosen = plan(steps=300)
    rates = [chosen.rate(step) for step in range(chosen.steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1e-2)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3, rel=0.01)


def test_a_linear_schedule_ends_at_zero():
    chosen = plan(steps=300, schedule="linear")
    rates = [chosen.rate(step) for step in range(301)]
    assert rates[60] == max(rates) == 1e-2
    assert rates[180] == pytest.approx(5e-3)
    assert rates[300] == 0


def test_a_constant_schedule_stays_at_the_peak():
    chosen = plan(steps=300, schedule="constant")
    assert [chosen.rate(step) for step in (29, 59, 60, 299)] == [pytest.approx(5e-3), 1e-2, 1e-2, 1e-2]


@pytest.mark.parametrize("sequences", [1, 4, 9, 10, 11, 20, 33])
def test_steps_read_the_sequences_of_a_budget(sequences):
    steps = steps_of(sequences, 10, 4)
    chosen = plan(examples=10, steps=steps)
    read = [len(chosen.batch(step)) for step in range(steps)]
    assert sum(read[:-1]) < sequences <= sum(read) < sequences + 4
    assert [chosen.sequences(count) for count in range(steps + 1)] == [sum(read[:count]) for count in range(steps + 1)]


def test_a_budget_in_seconds_trains_like_one_in_steps(capsys):
    timed, loss = problem()
    rows = train(timed, loss, plan(seconds=0.4, weight_decay=0.1))
    steps = rows[-1]["step"] + 1
    assert f"training: {steps} steps of " in capsys.readouterr().err
    assert steps > 1
    counted, loss = problem()
    assert train(counted, loss, plan(steps=steps, weight_decay=0.1)) == rows
    assert torch.equal(weights(counted), weights(timed))


def test_a_resumed_budget_in_seconds_keeps_its_steps(tmp_path, capsys):
    state = Checkpointing(tmp_path / "state", 0.0, "same")
    killed, loss = problem()

    def loss_that_dies(batch):
        if (tmp_path / "state" / "latest").exists():
            raise KeyboardInterrupt
        return loss(batch)

    with pytest.raises(KeyboardInterrupt):
        train(killed, loss_that_dies, plan(seconds=0.2), checkpointing=state)
    planned = int(re.search(r"(\d+) steps of", capsys.readouterr().err)[1])
    resumed, loss = problem()
    rows = train(resumed, loss, plan(seconds=1e-9), checkpointing=state)
    printed = capsys.readouterr().err
    assert f"resuming from step 1 of {planned}" in printed
    assert "steps of" not in printed
    undisturbed, loss = problem()
    assert rows == train(undisturbed, loss, plan(steps=planned))
    assert torch.equal(weights(resumed), weights(undisturbed))


def test_a_budget_of_no_time_is_one_step():
    module, loss = problem()
    assert {row["step"] for row in train(module, loss, plan(seconds=1e-9))} == {0}


@pytest.mark.parametrize(("sequences", "steps"), [(4, {1, 2, 4}), (5, {2, 4}), (16, {4}), (17, set())])
def test_validation_costs_no_more_than_the_training_between(sequences, steps):
    assert Validation(lambda: 0.0, "kl", sequences).milestones(plan(steps=9)) == steps


def test_validation_changes_no_training_and_resumes_with_it(tmp_path):
    undisturbed, loss = problem()
    expected = train(undisturbed, loss, plan())
    state = Checkpointing(tmp_path / "state", 0.0, "same")
    module, loss = problem()
    seen = []

    def measure():
        with torch.no_grad():
            seen.append(weights(module).norm().item())
        return seen[-1]

    validation = Validation(measure, "norm", 4)
    rows = train(module, loss, plan(), checkpointing=state, validation=validation)
    assert [row for row in rows if row["metric"] != "norm"] == expected
    assert [(row["step"], row["value"]) for row in rows if row["metric"] == "norm"] == list(
        zip((1, 2, 4), seen, strict=True)
    )
    assert torch.equal(weights(module), weights(undisturbed))
    again, loss = problem()
    assert train(again, loss, plan(), checkpointing=state, validation=validation) == rows
    assert len(seen) == 3


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


def test_a_parameter_without_gradient_lets_others_resume(tmp_path):
    """Under the cosine alone, the final norm and the LM head have none."""
    undisturbed, loss = problem()
    undisturbed.unused = nn.Parameter(torch.ones(2))
    expected = train(undisturbed, lambda batch: loss(batch), plan())
    state = Checkpointing(tmp_path / "state", 0.0, "same")
    for _ in range(2):  # the second one begins with the last state of the first
        module, loss = problem()
        module.unused = nn.Parameter(torch.ones(2))
        assert train(module, lambda batch, loss=loss: loss(batch), plan(), checkpointing=state) == expected
        assert torch.equal(weights(module), weights(undisturbed))


def test_states_are_put_back_where_the_parameters_are(tmp_path):
    """Also the count of steps: fused AdamW on a GPU wants it there. torch's `meta` device stands for one."""
    state = Checkpointing(tmp_path / "state", 0.0, "one")
    module, loss = problem()
    train(module, loss, plan(), checkpointing=state)
    parameters = dict(module.to("meta").named_parameters())
    optimizer = torch.optim.AdamW(parameters.values())
    optimizer.param_groups[0]["fused"] = True  # its constructor knows no fused kernel for `meta`
    assert _restore(parameters, optimizer, state, World())[0] == 8
    states = [optimizer.state[parameter] for parameter in parameters.values()]
    assert [sorted(kept) for kept in states] == [["exp_avg", "exp_avg_sq", "step"]] * 4
    assert {tensor.device.type for kept in states for tensor in kept.values()} == {"meta"}


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
