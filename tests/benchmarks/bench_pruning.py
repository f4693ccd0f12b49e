"""Seconds in which all FFN widths of all layers are pruned from saved moments, as the library's jobs do it.

    python tests/benchmarks/bench_pruning.py results/smollm2-cpu/parent MOMENTS --widths 0.75,0.5,0.25

MOMENTS is a file that `measure_moments` wrote for FFNs. A job prunes one width in all layers. Beside it, one nested
pass per layer orders the channels once for all widths, and fits an output matrix for each. Seconds are of one
processor, reading included.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from tangram.blocks import get_block
from tangram.blocks.calibration import Calibration
from tangram.blocks.moments import Moments, damped
from tangram.blocks.pruning import ROUNDS, refit, removal_order
from tangram.library.moments import read_moments
from tangram.models.families import Shape, decoder_layers
from tangram.models.loading import load_model

RIDGE = 0.1


def nested(parent: nn.Module, moments: Moments, numbers: list[int]) -> list[torch.Tensor]:
    """Return the fitted output matrix of every width from one order of the channels, the widest first."""
    weight = parent.down_proj.weight
    order = removal_order(damped(moments.inner_moment, RIDGE), weight, 1, ROUNDS, weight.shape[1] - min(numbers))
    fitted = []
    for number in numbers:
        remaining = torch.ones(weight.shape[1], dtype=torch.bool)
        remaining[order[: weight.shape[1] - number]] = False
        fitted.append(refit(moments, weight, None, remaining.nonzero().flatten(), RIDGE)[0])
    return fitted


def seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of some work."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


@torch.inference_mode()
def main() -> None:
    """Print the seconds of each width and of the nested pass, and whether both find the same matrices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parent")
    parser.add_argument("moments")
    parser.add_argument("--widths", default="0.75,0.5,0.25")
    parser.add_argument("--every", type=int, default=1, help="prune every n-th layer alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.parent, "float32", "cpu")
    shape, stored = Shape.of(model.config), read_moments(options.moments)
    layers = dict(list(enumerate(decoder_layers(model)))[:: options.every])
    blocks = [get_block("ffn", f"width-{ratio}", shape) for ratio in options.widths.split(",")]
    results: dict[str, dict[int, list[torch.Tensor]]] = {"jobs": {}, "nested": {}}
    none = torch.zeros(0)

    def job(block, place: int) -> None:
        for index, layer in layers.items():
            moments = stored(index)
            given = Calibration(none, none, none, 1e-3, pruning_ridge=RIDGE, measure=lambda m=moments: m)
            results["jobs"].setdefault(index, []).insert(place, block.initialize(layer.mlp, given)["down_proj.weight"])

    def all_widths() -> None:
        for index, layer in layers.items():
            results["nested"][index] = nested(layer.mlp, stored(index), [block.width for block in blocks])

    total = 0.0
    for place, block in enumerate(blocks):
        total += (took := seconds(lambda b=block, p=place: job(b, p)))
        print(f"{block.variant}: {took:.1f} s for {len(layers)} layers", flush=True)
    print(f"all widths, a job each: {total:.1f} s; in one nested pass: {seconds(all_widths):.1f} s", flush=True)
    pairs = [zip(results["jobs"][i], results["nested"][i], strict=True) for i in results["nested"]]
    equal = all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for pair in pairs for a, b in pair)
    print(f"the same matrices: {equal}")


if __name__ == "__main__":
    main()
