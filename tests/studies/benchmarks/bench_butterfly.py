"""Times of structured operators relative to dense ones, and the table of `StructuredLinear.lower`.

Run: ``python tests/studies/benchmarks/bench_butterfly.py [--sizes 576 1536] [--device cuda] [--dtype bfloat16]
[--table]``.
Operators are timed round-robin with the dense layer of their size, including torch-structured's butterfly if installed
(``pip install torch-structured einops triton``). ``--table`` prints the rows of `tangram.models.operators.MEASURED` for
this device, and the slowdown of the form that they select relative to the fastest form.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable

import torch
from torch import nn

from tangram.models.operators import LowRankLinear, StructuredLinear
from tangram.timing import interleaved
from tangram_studies.blocks.operators import ButterflyLinear, MonarchLinear

TOKENS = (1, 8, 64, 1024)


def public_butterfly(n: int, device: str) -> nn.Module | None:
    """Return torch-structured's butterfly, if it is installed: log n stages of 2 x 2, padded to a power of two."""
    try:
        from torch_structured.butterfly import Butterfly
    except ImportError:
        return None
    return Butterfly(n, n, bias=False).to(device)


def call(module: nn.Module, form: str, x: torch.Tensor, backward: bool) -> Callable[[], object]:
    """Return the function to time."""

    def training() -> object:
        module.zero_grad()
        return module(x).square().mean().backward()

    @torch.inference_mode()
    def inference() -> object:
        if isinstance(module, StructuredLinear):
            return module.compute(form, x, *module._frozen(form))
        return module(x)

    return training if backward else inference


def stage_by_stage(operator: ButterflyLinear, x: torch.Tensor) -> Callable[[], object]:
    """Return a token-major forward pass through unfused stages, the baseline of fusing."""

    @torch.inference_mode()
    def run() -> object:
        y = operator.j1.pad(x)
        for stage in operator.j1.stages:
            higher, lower, radix, _ = stage.shape
            y = torch.einsum("hlij,bhjl->bhil", stage, y.view(len(x), higher, radix, lower)).reshape(len(x), -1)
        return y

    return run


def measure(n: int, device: str, dtype: torch.dtype, repeats: int, rows: list[dict]) -> None:
    """Time one size and print a line per operator, form and number of tokens."""
    torch.manual_seed(0)
    butterfly = ButterflyLinear(n, n, n // 4, n // 4)
    whole = ButterflyLinear(n, n, n, n)
    equal = butterfly.stored_weights() // (2 * n)
    operators: dict[str, nn.Module] = {
        "dense": nn.Linear(n, n, bias=False),
        "gadget k=n/4": butterfly,
        "Monarch": MonarchLinear(n, n),
        f"low rank {equal} (weights of the gadget)": LowRankLinear(n, n, equal),
        f"low rank {n // 4} (rank of the gadget)": LowRankLinear(n, n, n // 4),
    }
    for name, module in operators.items():
        operators[name] = module.to(device, dtype)
    if (public := public_butterfly(n, device)) is not None:
        operators["torch-structured butterfly"] = public
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    for tokens, backward in [*itertools.product(TOKENS, (False,)), (TOKENS[-1], True)]:
        x = torch.randn(tokens, n, device=device, dtype=dtype)
        work = {}
        for name, module in operators.items():
            forms = [""] if backward or not isinstance(module, StructuredLinear) else list(module.kernels)
            for form in forms:
                if form != "dense":  # it equals the dense layer
                    work[f"{name}|{form}"] = call(module, form, x, backward)
        if not backward and device == "cpu" and dtype == torch.float32:
            work["J of the gadget|stage by stage"] = stage_by_stage(whole, x)
        samples = interleaved(work, repeats, synchronize=synchronize)
        seconds = {name: statistics.median(values) for name, values in samples.items()}
        for name, value in seconds.items():
            operator, _, form = name.partition("|")
            module = operators.get(operator)
            phase = "forward + backward" if backward else "forward"
            print(
                f"n {n:6} tokens {tokens:5} {phase:18} {operator:42} {form:15} {value * 1e6:11.1f} us "
                f"{seconds['dense|'] / value:8.2f} x dense",
                flush=True,
            )
            if not backward and (operator == "dense" or isinstance(module, StructuredLinear)):
                structured = isinstance(module, StructuredLinear)
                rows.append(
                    {
                        "kernel": module.kernels[form] if structured else "dense",
                        "tokens": tokens,
                        "seconds": value,
                        "calls": module.calls(form) if structured else 1,
                        "macs": tokens * (module.macs(form) if structured else n * n),
                        "operator": (n, operator, tokens),
                        "picked": structured and module.lower(tokens, device) == form,
                    }
                )


def table(rows: list[dict]) -> None:
    """Fit seconds = calls · call + MACs / rate by relative least squares, and print it with its regret."""
    import numpy as np
    from scipy.optimize import nnls

    fitted = {}
    for kernel, tokens in itertools.product(("dense", "feature", "token"), TOKENS):
        own = [row for row in rows if (row["kernel"], row["tokens"]) == (kernel, tokens)]
        design = np.array([[row["calls"], row["macs"]] for row in own]) / np.array([[row["seconds"]] for row in own])
        scale = design.max(0)
        (call_seconds, per_mac), _ = nnls(design / scale, np.ones(len(own)))
        fitted[kernel, tokens] = call_seconds / scale[0], max(per_mac / scale[1], 1e-15)
    for kernel in ("dense", "feature", "token"):
        entries = [(t, fitted[kernel, t][0], 1 / fitted[kernel, t][1]) for t in TOKENS]
        print(f'"{kernel}": [' + ", ".join(f"({t}, {a:.1e}, {b:.1e})" for t, a, b in entries) + "],")
    for name, pick in (("this run's table", None), ("MEASURED", "picked")):
        regrets = []
        for n, operator, tokens in sorted({row["operator"] for row in rows if row["operator"][1] != "dense"}):
            group = [row for row in rows if row["operator"] in ((n, operator, tokens), (n, "dense", tokens))]
            if pick is None:
                chosen = min(group, key=lambda r: np.dot((r["calls"], r["macs"]), fitted[r["kernel"], r["tokens"]]))
            else:
                dense = next(row for row in group if row["operator"][1] == "dense")
                chosen = next((row for row in group if row["picked"]), dense)
            regrets.append(chosen["seconds"] / min(row["seconds"] for row in group))
        print(f"picked by {name} / best: median {statistics.median(regrets):.2f}, worst {max(regrets):.2f}")


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[576, 1536, 4096, 14336])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict] = []
    for n in arguments.sizes:
        measure(n, arguments.device, getattr(torch, arguments.dtype), arguments.repeats, rows)
    if arguments.table:
        table(rows)


if __name__ == "__main__":
    main()
