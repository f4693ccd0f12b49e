"""A run in bfloat16 trains like one in float32: weights are kept and gradients are added up in float32."""

import copy

import pytest
import torch
from replaced import replaced
from safetensors import safe_open
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tangram.activations import StreamedActivations
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import build_config, save_child
from tangram.config import BlockDistillation, Finetune
from tangram.finetune import Distillation, finetune
from tangram.library.distill import LayerDistillation, LocalLoss
from tangram.models.loading import load_model
from tangram.training.loop import Checkpointing, TrainingPlan, train
from tangram.training.parallel import World
from tangram.training.precision import fast_compute, promote, round_back

DTYPES = ("float32", "bfloat16")


def sequences(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 328, (count, 16), generator=torch.Generator().manual_seed(seed))


def disturbed(model):
    """A child in need of training: the model with noise on its matrices."""
    child, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in child.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += (0.3 * parameter.float().std() * noise).to(parameter.dtype)
    return child


def masters(checkpointing: Checkpointing) -> dict[str, torch.Tensor]:
    """The weights in the last state that a training left."""
    (path,) = checkpointing.path.glob("*.safetensors")
    with safe_open(path, framework="pt") as state:
        names = [name for name in state.keys() if name.startswith("parameter.")]  # noqa: SIM118
        return {name.removeprefix("parameter."): state.get_tensor(name) for name in names}


def share_moved(before: nn.Module, after: dict[str, torch.Tensor]) -> float:
    begin = {name: parameter.detach().float() for name, parameter in before.named_parameters()}
    moved = sum(int((after[name] != tensor).sum()) for name, tensor in begin.items())
    return moved / sum(tensor.numel() for tensor in begin.values())


SETTINGS = Finetune(budget={"epochs": 4}, batch_size=4, micro_batch_size=1, learning_rate=1e-3)


def test_finetuning_moves_an_equal_share_to_an_equal_loss(tiny_parent, tmp_path):
    tokens, heldout = sequences(16, 2), sequences(16, 3)
    shares, gains, last = [], [], []
    for dtype in DTYPES:
        parent = load_model(tiny_parent("llama"), dtype)
        begin = disturbed(parent)
        child = copy.deepcopy(begin)
        states, heldout_states = StreamedActivations(parent, tokens, 4), StreamedActivations(parent, heldout, 16)
        judged = [Distillation(model, parent, heldout_states, heldout, SETTINGS) for model in (begin, child)]
        checkpointing = Checkpointing(tmp_path / dtype, 0.0, "run")
        rows = finetune(child, parent, states, tokens, SETTINGS, 0, checkpointing=checkpointing)
        with torch.no_grad():
            before, after = (loss(torch.arange(16))[0].item() for loss in judged)
        assert child.dtype == getattr(torch, dtype)  # and so are the held-out losses: those of what is saved
        kept = masters(checkpointing)
        assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
        shares.append(share_moved(begin, kept))
        gains.append(before - after)
        last.append([row["value"] for row in rows if row["metric"] == "loss"][-1])
    assert shares[0] > 0.9  # tokens that never come keep their embeddings
    assert shares[1] == pytest.approx(shares[0], abs=0.01)
    assert last[1] == pytest.approx(last[0], rel=0.005)  # bfloat16 alone: 0.06
    assert gains[1] == pytest.approx(gains[0], rel=0.05)


@pytest.mark.parametrize(
    ("kind", "variant"),
    [("attention", "gqa-mean-1"), ("ffn", "width-0.5"), ("ffn", "lowrank-8"), ("ffn", "butterfly-8")],
)
def test_pieces_gain_the_same(tiny_parent, kind, variant):
    gains = []
    for dtype in DTYPES:
        model = load_model(tiny_parent("qwen3"), dtype).requires_grad_(False)
        states = StreamedActivations(model, sequences(32, 0), 8)
        settings = BlockDistillation(epochs=2, batch_size=4, learning_rate=1e-3)
        problem = LayerDistillation(model, 1, states.hidden(1), states.hidden(2), settings)
        piece = problem.distill(kind, variant, 0)
        assert {tensor.dtype for tensor in piece.weights.values()} == {model.dtype}
        assert piece.kept == "trained"
        assert piece.loss_after is not None
        # Judged as it is kept: the piece that a child gets has this very loss.
        assert problem.held_out_loss(replaced(model, 1, kind, variant, piece.weights), kind) == piece.loss_after
        gains.append(piece.loss_before - piece.loss_after)
    assert gains[1] == pytest.approx(gains[0], rel=0.1)  # bfloat16 alone: 12 to 77 % of it


@pytest.mark.parametrize(("kind", "variant"), [("ffn", "butterfly-8"), ("ffn", "lowrank-8")])
def test_small_steps_are_not_lost_between_two_bfloat16_numbers(tiny_parent, kind, variant):
    """Rounding the fitted weights first would put all of them on the grid, which small steps do not leave."""
    gains = []
    for dtype in DTYPES:
        model = load_model(tiny_parent("qwen3"), dtype).requires_grad_(False)
        states = StreamedActivations(model, sequences(32, 0), 8)
        settings = BlockDistillation(epochs=2, batch_size=4, learning_rate=1e-4)
        piece = LayerDistillation(model, 1, states.hidden(1), states.hidden(2), settings).distill(kind, variant, 0)
        gains.append(piece.loss_before - piece.loss_after)
    assert gains[1] > 0.7 * gains[0]  # begun on the grid, butterfly-8: a tenth


def test_a_saved_child_has_the_loss_of_the_trained_one(tiny_parent, tmp_path):
    folder, tokens = tiny_parent("llama"), sequences(8, 2)
    parent = load_model(folder, "bfloat16")
    child = disturbed(parent)
    states = StreamedActivations(parent, tokens, 4)
    finetune(child, parent, states, tokens, SETTINGS, 0)
    config = build_config(parent.config, Architecture((LayerChoice(),) * parent.config.num_hidden_layers))
    save_child(World().gather(child, torch.bfloat16), config, folder, tmp_path / "child", {})
    saved = load_model(tmp_path / "child", "bfloat16")
    assert all(parameter.dtype == torch.bfloat16 for parameter in child.parameters())
    with torch.no_grad():
        losses = [
            Distillation(model, parent, states, tokens, SETTINGS)(torch.arange(8))[0].item() for model in (child, saved)
        ]
    assert losses[0] == losses[1]


def test_interrupted_training_in_bfloat16_equals_uninterrupted(tiny_parent, tmp_path):
    parent, tokens = load_model(tiny_parent("llama"), "bfloat16"), sequences(8, 2)
    states, begin = StreamedActivations(parent, tokens, 4), disturbed(parent)
    undisturbed, checkpointing = copy.deepcopy(begin), Checkpointing(tmp_path / "state", 0.0, "run")
    expected = finetune(undisturbed, parent, states, tokens, SETTINGS, 0)

    class KilledError(Exception):
        pass

    calls = 0

    def kill(*_):
        nonlocal calls
        calls += 1
        if calls > 14:  # micro-batches: in the middle of the fourth step
            raise KilledError

    killed = copy.deepcopy(begin)
    handle = killed.model.norm.register_forward_hook(kill)
    with pytest.raises(KilledError):
        finetune(killed, parent, states, tokens, SETTINGS, 0, checkpointing=checkpointing)
    handle.remove()
    assert (tmp_path / "state" / "latest").read_text() == "3"
    resumed = copy.deepcopy(begin)
    assert finetune(resumed, parent, states, tokens, SETTINGS, 0, checkpointing=checkpointing) == expected
    assert all(map(torch.equal, resumed.parameters(), undisturbed.parameters()))


class Sum(nn.Module):
    """The loss has gradient 1 in every weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0, dtype=torch.bfloat16))
        self.own = nn.Parameter(torch.zeros(3))  # float32 in any run, as a loss's own head
        self.seen: set[torch.dtype] = set()

    def forward(self, _: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        self.seen |= {self.weight.dtype, self.own.dtype}
        return (self.weight.float() + self.own).sum(), {}


def test_gradients_of_many_micro_batches_are_added_up_in_float32():
    module = Sum()
    with World().distribute(module, []) as loss:
        for _ in range(300):  # bfloat16 ends at 256: 256 + 1 is 256
            loss(torch.arange(1))[0].backward()
        assert module.weight.grad.tolist() == [300.0] * 3
        assert module.weight.dtype == torch.float32
    assert module.seen == {torch.bfloat16, torch.float32}  # computed as it will be saved; the float32 one as it is
    assert (module.weight.dtype, module.own.dtype) == (torch.bfloat16, torch.float32)


def test_steps_smaller_than_the_grid_add_up():
    module = Sum()
    plan = TrainingPlan(200, 200, 1, 1, learning_rate=1e-3, warmup_fraction=0.0)
    with World().distribute(module, []) as loss:
        train(module, loss, plan)
    moved = sum(plan.rate(step) for step in range(plan.steps))
    assert module.weight[0].item() == pytest.approx(2 - moved, abs=2**-8)  # one step is 2^-10, the grid 2^-7


def test_a_training_in_float32_is_left_as_it_is(tiny_parent):
    model = load_model(tiny_parent("llama"))
    with World().distribute(model, []) as loss:
        assert loss is model
    assert promote(model) == {}


def test_frozen_weights_stay_in_their_dtype():
    module = Sum()
    module.weight.requires_grad_(False)
    with World().distribute(module, []) as loss:
        assert loss is module
        assert module.weight.dtype == torch.bfloat16


def test_promoting_and_rounding_back_loses_nothing(tiny_parent):
    model = load_model(tiny_parent("llama", tie_word_embeddings=True), "bfloat16")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dtypes = promote(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    round_back(dtypes)
    after = model.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )


def test_the_loop_itself_refuses_weights_of_low_precision():
    module = Sum()
    with pytest.raises(ValueError, match=r"weight is torch\.bfloat16; train it as float32"):
        train(module, module, TrainingPlan(4, 4, 1, 1, 1e-3, 0.0))


def products_of(run) -> set[torch.dtype]:
    """Return the dtypes of the matrix products that a function computes."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
                seen.update(arg.dtype for arg in args if isinstance(arg, torch.Tensor))
            return func(*args, **(kwargs or {}))

    with Watch():
        run()
    return seen


@pytest.mark.parametrize("compute", DTYPES)
def test_compute_is_the_dtype_of_products_in_the_training_loss(tiny_parent, compute):
    parent, tokens = load_model(tiny_parent("llama")).requires_grad_(False), sequences(8, 2)
    states = StreamedActivations(parent, tokens, 4)
    problem = LayerDistillation(parent, 1, states.hidden(1), states.hidden(2), BlockDistillation(compute=compute))
    layer = replaced(parent, 1, "ffn", "parent", parent.model.layers[1].mlp.state_dict())
    layer.mlp.requires_grad_(True)
    child = copy.deepcopy(parent).requires_grad_(True)
    gkd = Distillation(child, parent, states, tokens, Finetune(compute=compute))
    for loss in (LocalLoss(problem, layer, "ffn", None), gkd):
        totals = []
        seen = products_of(lambda loss=loss, totals=totals: totals.append(loss(torch.arange(2))[0]))
        assert getattr(torch, compute) in seen
        assert compute == "bfloat16" or seen == {torch.float32}
        assert totals[0].dtype == torch.float32
    assert products_of(lambda: problem.held_out_loss(layer, "ffn")) == {torch.float32}


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_pieces_of_bfloat16_compute_are_good_and_reproducible(tiny_parent, kind):
    parent, tokens = load_model(tiny_parent("llama")).requires_grad_(False), sequences(16, 2)
    states, variant = StreamedActivations(parent, tokens, 4), {"attention": "gqa-1", "ffn": "width-0.5"}[kind]

    def distill(compute):
        settings = BlockDistillation(epochs=4, compute=compute)
        problem = LayerDistillation(parent, 1, states.hidden(1), states.hidden(2), settings)
        return problem.distill(kind, variant, seed=0)

    one, other, again = distill("float32"), distill("bfloat16"), distill("bfloat16")
    losses = [[row["value"] for row in piece.curve] for piece in (one, other, again)]
    assert losses[1] == losses[2]
    assert losses[1] != losses[0]
    # The CPU's units decide how a product is rounded: single losses differ by up to 2.2 %, their sums by 0.11 %.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert sum(losses[1]) == pytest.approx(sum(losses[0]), rel=0.005)
    assert other.loss_before == one.loss_before  # measured in float32
    assert other.loss_after == pytest.approx(one.loss_after, rel=0.01)
    for name, tensor in other.weights.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, again.weights[name])


@pytest.mark.parametrize(
    ("units", "expected"), [({"avx512_bf16": True}, "bfloat16"), ({"avx2": True, "avx512_bf16": False}, "float32")]
)
def test_fast_compute_is_bfloat16_where_it_has_units(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert fast_compute("cpu") == expected
    assert fast_compute("cuda") == "bfloat16"
