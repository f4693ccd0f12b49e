"""What reruns when: the table in `config/README.md`, and what a test holds Snakemake's own plan against.

`KEYS` names the rules that a key of the config reaches first; `READS` says which rules read which; what follows is
`onward`. For modules, the first rules are those whose command imports the module, directly or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tangram.provenance import ROOT, modules_of

_SPLITS = ("distil", "score", "finetune", "heldout")

# Which rules a rule reads. `build_corpus distil` is the job of one split.
READS: dict[str, tuple[str, ...]] = {
    "fetch_parent": (),
    **{f"build_corpus {split}": ("fetch_parent",) for split in _SPLITS},
    **{f"capture_activations {split}": ("fetch_parent", f"build_corpus {split}") for split in _SPLITS},
    "distill_blocks": ("fetch_parent", "build_corpus distil", "capture_activations distil"),
    "score_blocks": ("fetch_parent", "build_corpus score", "capture_activations score", "distill_blocks"),
    "collect_scores": ("score_blocks",),
    "measure_costs": ("fetch_parent",),
    "collect_costs": ("measure_costs",),
    "calibrate_costs": ("fetch_parent", "collect_costs"),
    "solve_mip": ("fetch_parent", "collect_scores", "collect_costs", "calibrate_costs"),
    "drop_layers": ("fetch_parent", "collect_scores", "collect_costs", "calibrate_costs"),
    "pick_pieces": ("solve_mip", "drop_layers", "distill_blocks"),
    "select_child": ("fetch_parent", "build_corpus score", "pick_pieces"),
    "assemble_child": ("fetch_parent", "pick_pieces", "select_child"),
    "finetune_child": ("assemble_child", "build_corpus finetune", "capture_activations finetune"),
    "evaluate_parent": ("fetch_parent", "build_corpus heldout", "capture_activations heldout"),
    "evaluate_model": ("finetune_child", "build_corpus heldout", "capture_activations heldout"),
    "evaluate_tasks": ("finetune_child",),
    "evaluate_readout": ("finetune_child",),
    "build_report": ("select_child", "evaluate_model", "evaluate_tasks", "evaluate_readout", "evaluate_parent"),
}
# A search has a job for its solver and one for its baseline, each with children of its own.
OF_SOLVER, OF_BASELINE = "solve_mip", "drop_layers"

_CORPUS = tuple(f"build_corpus {split}" for split in _SPLITS)
_CAPTURE = tuple(f"capture_activations {split}" for split in _SPLITS)
_EVALUATE = ("evaluate_parent", "evaluate_model", "evaluate_tasks", "evaluate_readout")
_ON_DEVICE = (*_CAPTURE, "distill_blocks", "score_blocks", "measure_costs", "calibrate_costs", "finetune_child")
EVERYTHING = ("fetch_parent",)

# The longest beginning of a key counts.
KEYS: dict[str, tuple[str, ...]] = {
    "seed": (
        *(*_CORPUS, "distill_blocks", "measure_costs", "calibrate_costs", "select_child", "finetune_child"),
        *_EVALUATE,
    ),
    "device": (*_CORPUS, *_ON_DEVICE, "select_child", *_EVALUATE),
    "dtype": EVERYTHING,
    "parent": EVERYTHING,
    "parent.by_layer": (),
    "parent.sizes": (),
    "corpus": _CORPUS,
    **{f"corpus.{split}": (f"build_corpus {split}",) for split in _SPLITS},
    "activations.mode": ("distill_blocks", "score_blocks", "finetune_child", "evaluate_parent", "evaluate_model"),
    "activations.batch_size": _CAPTURE,
    "activations.local_copy": (),
    "library.layers_per_shard": ("distill_blocks",),
    "library.bld": ("distill_blocks",),
    "library.bld.checkpoint_seconds": (),
    "scores": ("score_blocks",),
    "scenarios": ("measure_costs", "calibrate_costs", "solve_mip", "drop_layers", "evaluate_parent", "evaluate_model"),
    "costs": ("measure_costs", "calibrate_costs"),
    "search": ("solve_mip",),
    "search.metric": ("solve_mip", "drop_layers"),
    "targets.<name>": ("solve_mip",),
    "targets.<name>.constraints": ("solve_mip", "drop_layers"),
    "targets.<name>.selection": ("select_child",),
    "finetune": ("finetune_child",),
    "finetune.checkpoint_seconds": (),
    "evaluation": ("evaluate_parent", "evaluate_model"),
    "evaluation.tasks": ("evaluate_tasks",),
    "evaluation.task_archive": ("evaluate_tasks",),
    "evaluation.task_limit": ("evaluate_tasks",),
    "evaluation.readout": ("evaluate_readout",),
    "studies": (),
}

# What no set of rules says: jobs come, go, or move.
IN_WORDS = {
    "run": "everything, in another folder",
    "library.attention, library.ffn": "a new variant: its own `distill_blocks`, `score_blocks` and `measure_costs`, "
    "then the tables and what reads them",
    "targets": "a new target: its own `solve_mip`, `drop_layers`, children and evaluations, then the report",
    "targets.<name>.compare_layers_dropped": "the baseline's jobs come or go",
    "headline": "`evaluate_tasks` and `evaluate_readout` of the new headline, and the report",
}

# Files that the config names by path, changed in place.
SOURCES = {
    "the checkpoint of a local parent": "`fetch_parent`",
    "a local text of `corpus.<split>`, or which files its patterns match": "`build_corpus` (that split)",
    "the file of `studies.image_file`": "the studies of images",
}

_COMMANDS = {
    "evaluate_parent": "evaluate_model",
    "collect_scores": "collect_tables",
    "collect_costs": "collect_tables",
}


def onward(first: Iterable[str]) -> set[str]:
    """Return the rules that run again when some do: these and all that read them, directly or not."""
    found = set(first)
    for rule, sources in READS.items():  # in the order of the data flow
        if found.intersection(sources):
            found.add(rule)
    return found


def first_of_key(key: str) -> tuple[str, ...]:
    """Return the rules that a key of the config reaches first.

    Raises:
        KeyError: nothing is known of the key.
    """
    key = re.sub(r"^(targets|scenarios)\.[^.]+", r"\1.<name>", key)
    while key not in KEYS:
        key, found, _ = key.rpartition(".")
        if not found:
            raise KeyError(key)
    return KEYS[key]


def command_of(rule: str) -> str:
    """Return the command that a rule runs."""
    name = rule.split()[0]
    return _COMMANDS.get(name, name)


def modules() -> list[str]:
    """Return every module of the package."""
    names = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def first_of_module(module: str) -> tuple[str, ...]:
    """Return the rules whose command imports a module, directly or not."""
    return tuple(rule for rule in READS if module in modules_of(f"tangram.commands.{command_of(rule)}"))


def _names(rules: Iterable[str]) -> str:
    """Return rules in words: a rule of all splits once."""
    rules = list(rules)
    words = []
    for rule in rules:
        name = rule.split()[0]
        of_all = [other for other in READS if other.split()[0] == name]
        words.append(f"`{name}`" if all(other in rules for other in of_all) else f"`{name}` ({rule.split()[-1]})")
    return ", ".join(dict.fromkeys(words)) or "nothing"


def markdown() -> str:
    """Return the section of `config/README.md`."""
    lines = [
        "## What reruns when",
        "",
        "A change reruns the rules below, and all that read what they write: "
        "corpus → activations → library → scores → search → pieces → child → finetuning → evaluation → report. "
        "After `pick_pieces`, a child is made again only if its architecture or a piece of it came out differently. "
        "A deleted or damaged file reruns its own job, and goes on likewise. A fresh checkout, a run moved to another "
        "folder, copied with its times (`cp -a`; after `cp -r`, files beyond 1 MB look new) or restored from a backup, "
        "and a comment rerun nothing.",
        "",
        "| key | reruns first |",
        "|---|---|",
    ]
    lines += [f"| `{key}` | {_names(first)} |" for key, first in KEYS.items()]
    lines += [f"| `{key}` | {text} |".replace(", library", "`, `library") for key, text in IN_WORDS.items()]
    lines += [
        "",
        "Files that the config names by path count by what they hold. Of each source, up to 64 MiB are read whenever "
        "Snakemake starts, its smallest files first: there, a new time of change alone reruns nothing. Files beyond "
        "that (the weights of most parents) count by size and time of change: copy them with their times (`cp -p`, "
        "`rsync -t`). A local source may be deleted once what is made from it is there: nothing reruns, until that is "
        "deleted, too. What a hub repository or dataset holds is looked up only when it is fetched: name a commit.",
        "",
        "| changed in place | reruns first |",
        "|---|---|",
    ]
    lines += [f"| {what} | {first} |" for what, first in SOURCES.items()]
    groups: dict[str, list[str]] = {}
    for module in modules():
        groups.setdefault(_names(first_of_module(module)), []).append(module.removeprefix("tangram."))
    lines += ["", "| a real change in (of `tangram`) | reruns first |", "|---|---|"]
    lines += [f"| {', '.join(f'`{module}`' for module in members)} | {names} |" for names, members in groups.items()]
    lines += [f"| `{path}` | `build_report` |" for path in sorted(_templates())]
    return "\n".join(lines) + "\n"


def _templates() -> list[str]:
    folder = Path(ROOT).parents[1] / "workflow" / "report"
    return [f"workflow/report/{path.name}" for path in folder.glob("*.j2")]
