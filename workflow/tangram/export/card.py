"""The model card of an exported child: what it is, what was cut where, how good and fast it is, how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tangram.blocks.architecture import Architecture
from tangram.blocks.base import KINDS, PARENT, Variant
from tangram.blocks.registry import get_block
from tangram.engines import DECILM, GGUF, HF, LLAMA_CPP, PARENT_TYPES
from tangram.models.families import Shape

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 1.96  # standard errors of a two-sided 95 % interval
LEVELS = " ▁▂▃▄▅▆▇█"  # shares of the parent's weights, from none to all
COLUMNS = 10  # layers between two numbers of the picture
FILES = {f"{PARENT}@{name}": f"parent, {name.upper()}" for name in PARENT_TYPES}
MODELS = {
    **{"parent": "parent", "packed parent": "parent, packed", "child": "child, not finetuned", **FILES},
    "finetuned": "child",
}
QUALITY = {
    "perplexity": "perplexity",
    "kl": "KL to the parent, nats per token",
    "agreement": "same next token as the parent",
}
SPEED = {"throughput": "tokens/s", "speedup": "times the parent's throughput"}
OF_FILES = {"bytes": "MB", "kl": QUALITY["kl"], **SPEED}
LOADING = {
    GGUF: ("llama.cpp, Ollama, LM Studio", "sh", "llama-server --model model.gguf"),
    DECILM: ("vLLM (remote code for the config only)", "sh", "vllm serve decilm --trust-remote-code"),
    HF: (
        "a transformers whose models read `per_layer_config`; stock ones if all layers are alike",
        "python",
        'model = transformers.AutoModelForCausalLM.from_pretrained("hf")',
    ),
}


@dataclass(frozen=True)
class Facts:
    """The facts of a card.

    Attributes:
        run: name of the run.
        target: name of the target.
        solution: name of the solution.
        formats: the formats in the folder.
        parent: content of the parent's `provenance.json`.
        architecture: the child's variants.
        shape: the parent's sizes.
        evaluation: rows of `tables.EVALUATION` of the parent and the child in torch; empty if there are none.
        engine: the target's engine.
        files: those of child and parent in that engine; empty for a target in torch.
        config: the run's config, with this target as primary one.
    """

    run: str
    target: str
    solution: str
    formats: Sequence[str]
    parent: Mapping[str, Any]
    architecture: Architecture
    shape: Shape
    evaluation: pd.DataFrame
    engine: str
    files: pd.DataFrame
    config: Mapping[str, Any]


def card(facts: Facts) -> str:
    """Return the card as Markdown with YAML front matter, as the hub of Hugging Face reads it."""
    parts = [
        _front_matter(facts),
        f"# {facts.run}, {facts.target}, solution {facts.solution}",
        f"A faster child of {_name_of(facts.parent)}. Tangram chose the variant of every subblock and of the LM head, "
        "and finetuned the child on the parent's outputs.",
        _license(facts.parent),
        "## Loading",
        *(_loading(*LOADING[name]) for name in facts.formats),
        "## Architecture",
        _fenced("text", picture(facts.architecture, facts.shape)),
        "A column is a layer, and its height is the share of the parent's weights that remains; an empty column was "
        "removed.",
        architecture_table(facts.architecture),
        *_tables(facts.evaluation, facts.engine, facts.files),
        "## Reproduction",
        "Save this config as `config.yaml` in a checkout of Tangram, and run",
        _fenced("sh", f"snakemake --cores all --configfile config.yaml {_files(facts)}"),
        _fenced("yaml", yaml.safe_dump(dict(facts.config), sort_keys=False, allow_unicode=True, width=100).rstrip()),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: Facts) -> str:
    source = facts.parent.get("source", {})
    entries: dict[str, Any] = {
        **{key: facts.parent.get(key) for key in ("license", "license_name", "license_link")},
        "base_model": source.get("repo"),
        "pipeline_tag": "text-generation",
        "library_name": "transformers" if HF in facts.formats else None,
        "tags": ["tangram", "distillation", "pruning", *facts.formats],
    }
    known = {key: value for key, value in entries.items() if value is not None}
    return f"---\n{yaml.safe_dump(known, sort_keys=False)}---"


def _name_of(parent: Mapping[str, Any]) -> str:
    """Return the parent's name: the repository, the file in a package, or the folder's last part."""
    source = parent.get("source", {})
    name = source.get("repo") or source.get("member") or Path(source.get("path", "its parent")).name
    weights = parent.get("weights", "as published")
    return f"`{name}`" if weights == "as published" else f"`{name}` (weights {weights})"


def _license(parent: Mapping[str, Any]) -> str:
    """Return a sentence on the license."""
    name, link = parent.get("license_name") or parent.get("license"), parent.get("license_link")
    if name is None:
        return "The parent's license is not recorded: look it up before you pass this model on."
    return f"The parent's license, `{name}`{f' ({link})' if link else ''}, holds for this model, too."


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _loading(engine: str, language: str, code: str) -> str:
    return f"With {engine}:\n\n{_fenced(language, code)}"


def _files(facts: Facts) -> str:
    """Return the files whose request makes Snakemake write all of the formats."""
    folder = f"results/{facts.run}/targets/{facts.target}/{facts.solution}/export"
    names = {GGUF: "model.gguf", DECILM: "decilm/model.safetensors", HF: "hf/model.safetensors"}
    return " ".join(f"{folder}/{names[name]}" for name in facts.formats)


def picture(architecture: Architecture, shape: Shape) -> str:
    """Return a line of bars per kind of subblock: the share of the parent's weights that remains in each layer."""
    numbers = "".join(f"{layer:<{COLUMNS}}" for layer in range(0, len(architecture.layers), COLUMNS))
    lines = [f"{'layer':<10}{numbers}".rstrip()]
    for kind in KINDS:
        bars = (_bar(kind, getattr(choice, kind), shape) for choice in architecture.layers)
        lines.append(f"{kind:<10}{''.join(bars)}".rstrip())
    return "\n".join(lines)


def _bar(kind: str, variant: str, shape: Shape) -> str:
    size = get_block(kind, Variant.parse(variant).source, shape).relative_size()
    return LEVELS[0] if size == 0 else LEVELS[max(1, min(8, round(8 * size)))]


def architecture_table(architecture: Architecture) -> str:
    """Return the variants as a table, with one row for adjacent layers that are alike."""
    rows: list[list[str]] = []
    for choice, group in groupby(enumerate(architecture.layers), key=lambda item: item[1]):
        layers = [layer for layer, _ in group]
        numbers = str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
        together = " (trained together)" if choice.coupled else ""
        rows.append([numbers, choice.attention, f"{choice.ffn}{together}"])
    table = _table(["layers", "attention", "FFN"], rows)
    head = "the parent's" if architecture.head == PARENT else f"`{architecture.head}`"
    return f"{table}\n\nThe LM head is {head}."


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tables(evaluation: pd.DataFrame, engine: str, files: pd.DataFrame) -> list[str]:
    """Return the sections on quality and speed; none without measurements."""
    parts: list[str] = []
    quality = evaluation[evaluation["task"] == "heldout"]
    if len(quality):
        parts += ["## Quality on held-out text", _by_model(quality, QUALITY)]
    for scenario, rows in evaluation[evaluation["metric"].isin(SPEED)].groupby("task", sort=False):
        parts += [f"## Speed in torch, scenario `{scenario}`", _by_model(rows, SPEED)]
    files = files.assign(value=files["value"].where(files["metric"] != "bytes", files["value"] / 1e6))
    reference = "F16 parent" if engine == LLAMA_CPP else "parent"
    metrics = OF_FILES | {"speedup": f"times the {reference}'s throughput"}
    title = "Files" if engine == LLAMA_CPP else "Speed"
    for scenario in files[files["metric"].isin(SPEED)]["task"].unique():
        rows = files[files["task"].isin(["file", "heldout", scenario])]
        parts += [f"## {title} in {engine}, scenario `{scenario}`", _by_model(rows, metrics)]
    return [*parts, "Values are means with their 95 % intervals."] if parts else []


def _by_model(rows: pd.DataFrame, metrics: Mapping[str, str]) -> str:
    """Return a table with a row per model and a column per metric."""
    present = [metric for metric in metrics if metric in set(rows["metric"])]
    values = {
        (row["model"], row["metric"]): _interval(row["value"], row["standard_error"]) for row in rows.to_dict("records")
    }
    body = [
        [name, *(values.get((model, metric), "-") for metric in present)]
        for model, name in MODELS.items()
        if model in set(rows["model"])
    ]
    return _table(["model", *(metrics[metric] for metric in present)], body)


def _interval(value: float, error: float | None) -> str:
    """Return a value with its 95 % interval."""
    if error is None or not error > 0:
        return f"{value:.4g}"
    return f"{value:.4g} ({value - CONFIDENCE * error:.4g} to {value + CONFIDENCE * error:.4g})"


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return a checkpoint's `provenance.json`; empty without one."""
    path = Path(folder) / "provenance.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}
