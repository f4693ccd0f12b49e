"""Finetuning of one child with several settings: KL on text that is neither trained on nor held out, and the curve.

    python tests/benchmarks/bench_finetune.py PARENT CHILD TEXT VALIDATION --trials tokens=3072 \\
        tokens=12288,learning_rate=2e-4,schedule=linear,cosine_weight=0

TEXT and VALIDATION are splits of a corpus (`build_corpus`). A trial is a list of settings of `finetune`, and of

- `tokens`: the budget;
- `text`: the tokens of TEXT that are trained on; fewer than the budget are several passes;
- `seed`: 0 takes the first tokens of TEXT, 1 the next as many, and so on, each in another order;
- `eight_bits`: `trained` (matrices of 8 bits are trained as floats, then rounded again) or `frozen`;
- `train`: `all` weights, those of the `changed` subblocks alone, those of the layers `near` a change (it, and one on
  either side), norms and `outputs` (`o_proj`, `down_proj`), or an adapter `lora-RANK` of every matrix, which is merged
  at the end.

Prints a JSON object a trial: settings, KL before and after with their difference's standard error over sequences, KL
and the learning curve before matrices of 8 bits are rounded again, processor seconds. With `--forecast N` also the KL
at the end that a power law of the curve's points up to N tokens predicts, with its interval.
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from tangram.activations import Activations, StreamedActivations, open_activations
from tangram.config import Finetune
from tangram.corpus.tokens import read_tokens
from tangram.finetune import Distillation, TextKL, budget_of
from tangram.library.requantize import round_again, to_float
from tangram.models.families import decoder_layers
from tangram.models.loading import load_model
from tangram.models.quantized import ScaledLinear
from tangram.report.learning_curve import PowerLaw
from tangram.tables import VALIDATION_KL
from tangram.training.loop import Validation, train
from tangram.training.parallel import World


class HeldActivations:
    """All hidden states of a text in memory, those between layers in bfloat16."""

    def __init__(self, parent: Any, tokens: torch.Tensor):
        streamed, layers = StreamedActivations(parent, tokens, 4), len(decoder_layers(parent))
        self._states = [streamed.hidden(layer).bfloat16() for layer in range(layers)]
        self._states.append(streamed.hidden(layers))

    def hidden(self, layer: int) -> torch.Tensor:
        """Return the input of a layer."""
        return self._states[layer].float()

    def of_sequences(self, sequences: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Return the inputs of some layers for some sequences."""
        return [self._states[layer][sequences].float() for layer in layers]


class SlicedActivations:
    """The hidden states of a text's sequences from ``start`` on."""

    def __init__(self, states: Activations, start: int):
        self._states, self._start = states, start

    def hidden(self, layer: int) -> torch.Tensor:
        """Return the input of a layer."""
        return self._states.hidden(layer)[self._start :]

    def of_sequences(self, sequences: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Return the inputs of some layers for some sequences."""
        return self._states.of_sequences(sequences + self._start, layers)


class Adapter(nn.Module):
    """A trained change of low rank of a frozen matrix ``(out, in)``; 0 at first (Hu et al., arXiv 2106.09685)."""

    def __init__(self, weight: torch.Tensor, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the changed matrix."""
        return weight + self.up @ self.down


def changed_layers(child: Any, parent: Any) -> set[int]:
    """Return the layers in which a child has other weights than the parent, or lacks some."""
    ours, theirs = dict(child.named_parameters()), dict(parent.named_parameters())
    both = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    same = {name for name in both if torch.equal(ours[name], theirs[name])}
    return {int(name.split(".")[2]) for name in (ours | theirs).keys() - same if name.startswith("model.layers.")}


def choose_weights(child: Any, parent: Any, which: str) -> list[nn.Linear]:
    """Let the chosen weights require gradients; return the matrices with adapters."""
    child.requires_grad_(which == "all")
    linears = [module for module in child.model.modules() if isinstance(module, nn.Linear)]
    if which == "changed":
        theirs = dict(parent.named_parameters())
        for name, parameter in child.named_parameters():
            same = name in theirs and theirs[name].shape == parameter.shape and torch.equal(theirs[name], parameter)
            parameter.requires_grad_(not same)
    if which in ("near", "outputs"):
        layers = changed_layers(child, parent)
        for name, parameter in child.named_parameters():
            inside = name.startswith("model.layers.")
            near = inside and any(abs(int(name.split(".")[2]) - layer) <= 1 for layer in layers)
            output = "norm" in name or name.endswith(("o_proj.weight", "down_proj.weight"))
            parameter.requires_grad_(near if which == "near" else output)
    if not which.startswith("lora-"):
        return []
    torch.manual_seed(0)
    for linear in linears:
        linear.weight.data = linear.weight.data.float()  # `perform` rounds the merged matrix
        parametrize.register_parametrization(linear, "weight", Adapter(linear.weight, int(which.removeprefix("lora-"))))
    return linears


def perform(
    child: Any,
    parent: Any,
    text: torch.Tensor,
    states: Activations,
    kl: TextKL,
    before: torch.Tensor,
    trial: dict[str, Any],
) -> dict[str, Any]:
    """Run one trial on a child, which it trains, and whose KL it was ``before``."""
    trained, budget, seed = trial.pop("train", "all"), int(trial.pop("tokens")), int(trial.pop("seed", 0))
    frozen = trial.pop("eight_bits", "trained") == "frozen"
    count = -(-int(trial.pop("text", budget)) // text.shape[1])
    tokens, states = text[seed * count : (seed + 1) * count], SlicedActivations(states, seed * count)
    settings = Finetune(budget={"tokens": budget}, **trial)
    scaled = {} if frozen else to_float(child)
    first = kl.by_sequence(8).mean().item()
    dtypes = {module: module.weight.dtype for module in child.model.modules() if isinstance(module, nn.Linear)}
    adapters = choose_weights(child, parent, trained)
    for module in child.modules():
        if isinstance(module, ScaledLinear):
            module.scale.requires_grad_(False)
    loss = Distillation(child, parent, states, tokens, settings)
    plan = budget_of(settings, len(tokens), tokens.shape[1], seed=seed)
    validation = Validation(lambda: kl.by_sequence(8).mean().item(), VALIDATION_KL, 8)
    begin = time.process_time()
    with World().distribute(loss, decoder_layers(child)) as shared:
        rows = train(child, shared, plan, validation=validation)
    seconds = time.process_time() - begin
    for linear in adapters:
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
        linear.weight.data = linear.weight.data.to(dtypes[linear])
    unrounded = kl.by_sequence()
    round_again(child, scaled, tokens)
    after, length = kl.by_sequence(), tokens.shape[1]
    curve = [(plan.sequences(r["step"]) * length, r["value"]) for r in rows if r["metric"] == VALIDATION_KL]
    curve = [(0, first), *curve, (plan.sequences(plan.steps) * length, unrounded[:8].mean().item())]
    change = (after - before).double()
    return {
        "before": before.mean().item(),
        "unrounded": unrounded.mean().item(),
        "after": after.mean().item(),
        "error": (change.std() / len(change) ** 0.5).item(),
        "by_sequence": [round(value, 5) for value in after.tolist()],
        "train_kl": [round(row["value"], 4) for row in rows if row["metric"] == "kl"],
        "curve": [(count, round(value, 5)) for count, value in curve],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Run all trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("parent", "child", "text", "validation"):
        parser.add_argument(name)
    parser.add_argument("--sequences", type=int, help="use the first sequences of the text alone")
    parser.add_argument("--activations", help="cached activations of all of TEXT, in place of copies in memory")
    parser.add_argument("--compute", default="bfloat16")
    parser.add_argument("--output", type=Path, help="file to which the printed lines are added")
    parser.add_argument("--forecast", type=int, help="fit the curve up to so many tokens, and predict its end")
    parser.add_argument("--trials", nargs="+", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parent = load_model(options.parent).requires_grad_(False)
    tokens = read_tokens(options.text)[: options.sequences]
    if options.activations:
        states: Activations = open_activations(options.activations, parent, tokens, 4)
    else:
        states = HeldActivations(parent, tokens)
    child = load_model(options.child)
    initial = copy.deepcopy(child.state_dict())
    kl = TextKL(child, parent, options.validation, None, 4)
    before = kl.by_sequence()
    for text in options.trials:
        trial: dict[str, Any] = {"compute": options.compute} | dict(part.split("=") for part in text.split(","))
        child.load_state_dict(initial)
        result = {"trial": text} | perform(child, parent, tokens, states, kl, before, trial)
        if options.forecast and result["curve"][-1][0] > options.forecast:
            law = PowerLaw.fit(*zip(*(point for point in result["curve"] if point[0] <= options.forecast), strict=True))
            end = result["curve"][-1][0]
            result["forecast"] = [round(float(value), 4) for value in (law.at(end), *law.interval(end))]
        line = json.dumps(result)
        print(line, flush=True)
        if options.output:
            with options.output.open("a") as lines:
                lines.write(line + "\n")


if __name__ == "__main__":
    main()
