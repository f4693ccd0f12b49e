"""The rules that a change reruns: the tables of `docs/reruns.md`, which a test compares with Snakemake's plan.

`KEYS` maps a config key to the first rules that it reruns, `READS` a rule to the rules whose outputs it reads; `onward`
follows `READS`. For a module, the first rules are those whose command imports it, directly or not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from tangram.blocks.base import FORMATS, PARENT, Variant
from tangram.blocks.registry import modules_of_variants, registry
from tangram.engines import SPEED_TIMERS, TIMERS
from tangram.provenance import ROOT, modules_of

_SPLITS = ("distill", "score", "finetune", "heldout")
_CALIBRATION = ("fetch_parent", "build_corpus distill", "capture_activations distill")
_TEXT_OF_SCORES = ("fetch_parent", "build_corpus score", "capture_activations score")
_PIECES = ("distill_blocks", "distill_pairs", "quantize_blocks trained", "quantize_blocks parent")
_FITTED = ("measure_moments", *_PIECES)
_ENGINES = tuple(TIMERS)
_SPEEDS = tuple(f"measure_speed {engine}" for engine in _ENGINES)
_SEARCHES = ("search_rival", "drop_by_influence", "evolve_child")
_COST_TABLES = tuple(f"{rule} {engine}" for rule in ("collect_costs", "calibrate_costs") for engine in _ENGINES)
_TABLES = ("fetch_parent", "collect_scores", "score_screened", *_COST_TABLES)

# The rules whose outputs a rule reads. `build_corpus distill` is the job of one split. `score_blocks trained`,
# `score_blocks quantized` and `score_blocks parent` are the jobs of trained pieces, of pieces quantized from those
# (`linear@int8`), and of the parent's quantized weights (`parent@int8`), which depend on no trained piece;
# `score_blocks pairs` are those of coupled pairs.
# `measure_costs torch` is the job of one engine; a target reads the tables of its engine alone.
READS: dict[str, tuple[str, ...]] = {
    "fetch_parent": (),
    **{f"build_corpus {split}": ("fetch_parent",) for split in _SPLITS},
    **{f"capture_activations {split}": ("fetch_parent", f"build_corpus {split}") for split in _SPLITS},
    "try_text": ("fetch_parent", "build_corpus heldout", "capture_activations heldout"),
    "try_texts": ("try_text",),
    "measure_moments": _CALIBRATION,
    "distill_blocks": (*_CALIBRATION, "measure_moments"),
    "distill_pairs": (*_CALIBRATION, "distill_blocks"),
    "quantize_blocks trained": (*_CALIBRATION, "distill_blocks"),
    "quantize_blocks parent": _CALIBRATION,
    "score_blocks trained": (*_TEXT_OF_SCORES, "distill_blocks"),
    "score_blocks quantized": (*_TEXT_OF_SCORES, "quantize_blocks trained"),
    "score_blocks parent": (*_TEXT_OF_SCORES, "quantize_blocks parent"),
    "score_blocks pairs": (*_TEXT_OF_SCORES, "distill_pairs"),
    "score_layers": _TEXT_OF_SCORES,
    "extract_score_tasks": (),
    "score_tasks trained": ("fetch_parent", "extract_score_tasks", "distill_blocks"),
    "score_tasks quantized": ("fetch_parent", "extract_score_tasks", "quantize_blocks trained"),
    "score_tasks parent": ("fetch_parent", "extract_score_tasks", "quantize_blocks parent"),
    "collect_scores": (
        *(f"score_blocks {of}" for of in ("trained", "quantized", "parent", "pairs")),
        *(f"score_tasks {of}" for of in ("trained", "quantized", "parent")),
    ),
    **{f"measure_costs {engine}": ("fetch_parent",) for engine in _ENGINES},
    **{f"collect_costs {engine}": (f"measure_costs {engine}",) for engine in _ENGINES},
    **{f"calibrate_costs {engine}": ("fetch_parent", f"collect_costs {engine}") for engine in _ENGINES},
    "score_screened": (*_TEXT_OF_SCORES, *_PIECES, *_COST_TABLES),  # instead of the exact scores of all pieces
    "solve_mip": _TABLES,
    "drop_layers": (*_TABLES, "score_layers"),
    "uniform_precision": _TABLES,
    "search_rival": _TABLES,
    "drop_by_influence": (*_TABLES, "build_corpus score", "capture_activations score"),
    "evolve_child": (*_TABLES, "build_corpus score", "capture_activations score", *_PIECES),
    "pin_candidates": ("solve_mip", *_PIECES),
    "select_child": ("fetch_parent", "build_corpus score", "pin_candidates"),
    # And the finetune split, which `IN_WORDS` tells of: most runs have no rounds.
    "iterate_child": (*_TABLES, *_PIECES, "build_corpus score", "capture_activations score"),
    "pin_architecture": (
        *("solve_mip", "drop_layers", "uniform_precision", *_SEARCHES, "select_child", "iterate_child"),
        *_PIECES,
    ),
    "assemble_child": ("fetch_parent", "pin_architecture", "iterate_child"),
    "finetune_child": (
        "assemble_child",
        *("build_corpus finetune", "capture_activations finetune"),
        *("build_corpus score", "capture_activations score"),
    ),
    "evaluate_parent": ("fetch_parent", "build_corpus heldout", "capture_activations heldout"),
    "evaluate_model": ("finetune_child", "build_corpus heldout", "capture_activations heldout"),
    "measure_speed torch": ("fetch_parent", "assemble_child"),
    "extract_tasks": (),
    "evaluate_parent_tasks": ("fetch_parent", "extract_tasks"),
    "evaluate_tasks": ("finetune_child", "extract_tasks"),
    "evaluate_parent_perplexity": ("fetch_parent",),
    "evaluate_perplexity": ("finetune_child",),
    "evaluate_parent_long_context": ("fetch_parent", "build_corpus heldout"),
    "evaluate_long_context": ("finetune_child", "build_corpus heldout"),
    **{f"export_{name}": ("finetune_child",) for name in FORMATS},
    "evaluate_readout": ("finetune_child",),
    "export_parent": ("fetch_parent",),
    "evaluate_parent_engine": ("export_parent", "build_corpus heldout", "capture_activations heldout"),
    "evaluate_engine": ("export_gguf", "export_decilm", "build_corpus heldout", "capture_activations heldout"),
    "measure_speed llama.cpp": ("export_parent", "export_gguf"),
    "measure_speed vllm": ("fetch_parent", "export_decilm"),
    "write_card": ("evaluate_parent", "evaluate_model", *_SPEEDS, "evaluate_parent_engine", "evaluate_engine"),
    "build_report": (
        *("select_child", "evaluate_model", "evaluate_tasks", "evaluate_perplexity"),
        *("evaluate_readout", "evaluate_engine", "evaluate_parent", "evaluate_parent_tasks"),
        *("evaluate_parent_perplexity", "evaluate_parent_engine"),
        *("evaluate_long_context", "evaluate_parent_long_context"),
        *_SPEEDS,
        "try_texts",
    ),
}

_CORPUS = tuple(f"build_corpus {split}" for split in _SPLITS)
_CAPTURE = tuple(f"capture_activations {split}" for split in _SPLITS)
_TASKS = ("evaluate_parent_tasks", "evaluate_tasks")
_IN_ENGINES = ("evaluate_parent_engine", "evaluate_engine")
_ON_TEXT = ("evaluate_parent", "evaluate_model", *_IN_ENGINES)
_PERPLEXITY = ("evaluate_parent_perplexity", "evaluate_perplexity")
_LONG_CONTEXT = ("evaluate_parent_long_context", "evaluate_long_context")
_SEEDED = (*_SPEEDS, *_TASKS, *_LONG_CONTEXT, "evaluate_readout")
_ROUNDS = ("iterate_child",)  # of targets with several rounds
_BASELINES = ("drop_layers", "uniform_precision", *_SEARCHES)
_MEASURE = tuple(f"measure_costs {engine}" for engine in _ENGINES)
_CALIBRATE = tuple(f"calibrate_costs {engine}" for engine in _ENGINES)
_SCORE = (
    *("score_blocks trained", "score_blocks quantized", "score_blocks parent", "score_blocks pairs"),
    *("score_layers", "score_screened"),
)
_ANSWERED = ("score_tasks trained", "score_tasks quantized", "score_tasks parent")
_ON_DEVICE = (*_CAPTURE, *_FITTED, *_SCORE, *_ANSWERED, *_MEASURE, *_CALIBRATE, "finetune_child")
EVERYTHING = ("fetch_parent",)

# The longest matching prefix of a key counts.
KEYS: dict[str, tuple[str, ...]] = {
    "seed": (
        *(*_CORPUS, "try_text", "distill_blocks", "distill_pairs", "score_screened", *_MEASURE, *_CALIBRATE),
        *("search_rival", "evolve_child"),
        *("select_child", "iterate_child", "finetune_child"),
        *_SEEDED,
    ),
    "device": (
        *(*_CORPUS, "try_text", *_ON_DEVICE, *_SEARCHES[1:], "select_child", *_ROUNDS),
        *(*_ON_TEXT, *_PERPLEXITY, *_SEEDED),
    ),
    "dtype": EVERYTHING,
    "parent": EVERYTHING,
    "parent.by_layer": (),
    "parent.sizes": (),
    "corpus": (*_CORPUS, "try_text"),
    **{f"corpus.{split}": (f"build_corpus {split}",) for split in _SPLITS},
    "text_trials": ("try_text",),
    "activations.mode": ("try_text", *_FITTED, *_SCORE, *_SEARCHES[1:], *_ROUNDS, "finetune_child", *_ON_TEXT),
    "activations.batch_size": _CAPTURE,
    "activations.local_copy": (),
    "library.layers_per_shard": _FITTED,
    "library.shared_smoothing": _PIECES[2:],
    "library.coupled.start": ("distill_pairs",),
    "library.bld": ("distill_blocks", "distill_pairs"),
    "library.bld.ridge": _PIECES,
    "library.pruning": ("distill_blocks", "distill_pairs"),  # of variants that remove channels or heads
    **{f"library.bld.{key}": _FITTED for key in ("batch_size", "holdout_fraction", "normalize")},
    "library.bld.checkpoint_seconds": (),
    "scores": (*_SCORE, "evolve_child", *_ROUNDS),
    "scores.batch_size": (*_SCORE, *_SEARCHES[1:], *_ROUNDS),
    "scores.compute": _SCORE,
    "scores.label_samples": ("score_screened",),
    "scores.tasks": ("extract_score_tasks", "extract_tasks"),
    "scenarios": (
        *(*_MEASURE, *_CALIBRATE, "score_screened", "solve_mip", *_BASELINES, *_ROUNDS),
        *_SPEEDS,
    ),
    "costs": (*_MEASURE, *_CALIBRATE),
    "search": ("score_screened", "solve_mip"),
    "search.objective": ("solve_mip", *_BASELINES, *_ROUNDS),
    "search.sensitivity": ("solve_mip",),
    "search.time_limit": ("score_screened", "solve_mip", "search_rival", "evolve_child", *_ROUNDS),
    "search.evolution": ("evolve_child",),
    "targets.<name>": ("score_screened", "solve_mip"),
    "targets.<name>.constraints": ("score_screened", "solve_mip", *_BASELINES, *_ROUNDS),
    "targets.<name>.export": ("score_screened", "solve_mip", *_BASELINES, *_ROUNDS),
    "targets.<name>.objective": ("solve_mip", *_BASELINES, *_ROUNDS),
    "targets.<name>.selection": ("select_child",),
    "assembly.compensate": ("assemble_child",),
    "finetune": ("try_text", *_ROUNDS, "finetune_child"),
    "finetune.budget": (*_ROUNDS, "finetune_child"),
    "finetune.parallel": ("finetune_child",),
    "finetune.checkpoint_seconds": (),
    "evaluation.batch_size": _ON_TEXT,
    "evaluation.throughput_repeats": _SPEEDS,
    "evaluation.tasks": ("extract_tasks",),
    "evaluation.task_archive": ("extract_tasks", "extract_score_tasks", "evaluate_readout"),
    "evaluation.task_limit": _TASKS,
    "evaluation.perplexity": _PERPLEXITY,
    "evaluation.long_context": _LONG_CONTEXT,
    "evaluation.readout": ("evaluate_readout",),
    "studies": (),
}

# Changes that add, remove or move jobs, described in words.
IN_WORDS = {
    "scores.method": "the scores' jobs come or go, then the search; with `screened`, `score_screened` reruns for every "
    "new variant, cost or target, and scores no piece exactly that an earlier job did",
    "run": "everything, in another folder",
    "library.attention, library.ffn": "a new variant: its own `distill_blocks`, `score_blocks` and `measure_costs`, "
    "then the tables and what reads them",
    "library.coupled.pairs": "a new pair: its own `distill_pairs` and `score_blocks`, then the tables and what reads "
    "them",
    "targets.<name>.engine": "the target's `solve_mip` and its baselines; the costs in an engine that no other "
    "target names, and the evaluation there, come or go",
    "library.head, library.precisions": "a new variant with a precision: its own `quantize_blocks`, `score_blocks` and "
    "`measure_costs`, then the tables and what reads them; with a precision that all kinds now have, its baseline's "
    "jobs, too",
    "targets": "a new target: its own `solve_mip`, `drop_layers`, children and evaluations, then `measure_speed`, "
    "which times all children together, and the report",
    "targets.<name>.compare_layers_dropped, targets.<name>.compare_uniform, targets.<name>.compare": "the jobs of the "
    "baseline or search come or go, and `measure_speed`",
    "assembly.ridge": "with `compensate`, `assemble_child`, as a change of `device` or `corpus.distill` then does",
    "targets.<name>.rounds": "the target's `iterate_child` comes, reruns or goes, then its solution 0; with several "
    "rounds, a change of `corpus.finetune` reruns `iterate_child`, too",
    "targets.<name>.selection.metric": "`select_child`; with `finetuned`, a change of `corpus.finetune`, or of "
    "`finetune` without its budget, reruns `select_child`, too",
    "text_trials.sources, text_trials.draws": "a new text or draw: its own `try_text`, then `try_texts` and the report",
    "primary_target": "`evaluate_tasks`, `evaluate_readout` and the baselines of uniform precision of the new primary "
    "target, and the report",
}

# Changes in place of files that the config names by path.
SOURCES = {
    "the checkpoint of a local parent": "`fetch_parent`",
    "a local text of `corpus.<split>`, or which files its patterns match": "`build_corpus` (that split)",
    "a local text of `text_trials`": "`try_text` (that text)",
    "a file of `evaluation.tasks`; of a YAML file or a folder, all `.yaml`, `.jsonl`, `.json` and `.py` files in the "
    "folder": "`extract_tasks`; these files must stay",
    "a file of `scores.tasks.names`": "`extract_score_tasks`, `extract_tasks`",
    "a local text of `evaluation.perplexity`": "`evaluate_parent_perplexity`, `evaluate_perplexity`",
    "the file of `studies.image_file`": "the studies of images",
}

# Rules that compute with blocks, whose modules are imported by name: those of the job's variant, or those of the whole
# library.
OF_A_VARIANT = (
    *("distill_blocks", "distill_pairs", "quantize_blocks", "score_blocks", "score_tasks"),
    "measure_costs",
)
# Rules that import an engine's module by name, too: the one that times pieces, or trained models.
IN_AN_ENGINE = {"measure_costs": TIMERS, "calibrate_costs": TIMERS, "measure_speed": SPEED_TIMERS}
OF_THE_LIBRARY = (
    "score_screened", "calibrate_costs", "evolve_child", "select_child", "iterate_child", "assemble_child",
    "write_card", "build_report",
)  # fmt: skip

COMMANDS = {
    "evaluate_parent": "evaluate_model",
    "evaluate_parent_tasks": "evaluate_tasks",
    "evaluate_parent_perplexity": "evaluate_perplexity",
    "evaluate_parent_long_context": "evaluate_long_context",
    "collect_scores": "collect_tables",
    "collect_costs": "collect_tables",
    **{f"export_{name}": "export_child" for name in (*FORMATS, PARENT)},
    "evaluate_parent_engine": "evaluate_engine",
}


def onward(first: Iterable[str]) -> set[str]:
    """Return the given rules and all that read their outputs, directly or not."""
    rules = set(first)
    for rule, sources in READS.items():  # in the order of the data flow
        if rules.intersection(sources):
            rules.add(rule)
    return rules


def first_of_key(key: str) -> tuple[str, ...]:
    """Return the first rules that a change of a config key reruns.

    Raises:
        KeyError: `KEYS` holds no prefix of the key.
    """
    key = re.sub(r"^(targets|scenarios)\.[^.]+", r"\1.<name>", key)
    while key not in KEYS:
        key, separator, _ = key.rpartition(".")
        if not separator:
            raise KeyError(key)
    return KEYS[key]


def command_of(rule: str) -> str:
    """Return the command that a rule runs."""
    name = rule.split()[0]
    return COMMANDS.get(name, name)


def modules() -> list[str]:
    """Return every module of this package, and the modules of other packages that its commands use."""
    names = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    commands = {f"tangram.commands.{command_of(rule)}" for rule in READS}
    engines = {module for modules in IN_AN_ENGINE.values() for module in modules.values()}
    return names + sorted(modules_of(*commands, *engines, *modules_of_variants()).keys() - set(names))


def imports(rule: str, module: str, variants: Iterable[Variant | str] | None) -> bool:
    """Return whether the command of a rule imports a module, directly or not.

    Args:
        rule: the rule's name.
        module: the module's dotted name.
        variants: the variants of the job, for rules that compute with blocks; all by default.
    """
    name, _, part = rule.partition(" ")
    if variants is not None and name in OF_THE_LIBRARY:
        variants = [PARENT, *variants]
    others = modules_of_variants(variants) if name in OF_A_VARIANT + OF_THE_LIBRARY else []
    others += [IN_AN_ENGINE[name][part]] if name in IN_AN_ENGINE else []
    return module in modules_of(f"tangram.commands.{command_of(rule)}", *others)


def first_of_module(module: str, variants: Iterable[Variant | str] | None = None) -> tuple[str, ...]:
    """Return the rules with a job that imports a module, directly or not.

    Args:
        module: the module's dotted name.
        variants: the library's; all families by default.
    """
    library = None if variants is None else list(variants)
    return tuple(rule for rule in READS if imports(rule, module, library))


def _first_in_words(module: str) -> str:
    """Return the first rules that a change of a module reruns as text, with a mark on those of some variants only."""
    first = first_of_module(module)
    families = [Variant(family) for family in registry()]
    partly = {
        rule
        for rule in first
        if rule.split()[0] in OF_A_VARIANT and not all(imports(rule, module, [family]) for family in families)
    }
    return _names(first, partly)


def _names(rules: Iterable[str], partly: Collection[str] = ()) -> str:
    """Return rules as text; the rules of all splits or pieces become one, and those in ``partly`` get a mark."""
    rules = list(rules)
    words = []
    for rule in rules:
        name = rule.split()[0]
        of_all = [other for other in READS if other.split()[0] == name]
        word = f"`{name}`" if all(other in rules for other in of_all) else f"`{name}` ({rule.split()[-1]})"
        words.append(f"{word} (of its variants)" if rule in partly else word)
    return ", ".join(dict.fromkeys(words)) or "nothing"


def page() -> str:
    """Return `docs/reruns.md`."""
    lines = [
        "# Reruns",
        "",
        "`python -m tangram.config.documentation` writes this file. `tests/e2e/test_reruns.py` changes every key and "
        "every module on a finished run and compares Snakemake's plan with the tables. `snakemake -n` shows the plan "
        "for your own change.",
        "",
        "A change reruns the rules in its row and all rules that read their outputs, in this order: "
        "corpus → activations → library → scores → search → architecture → child → finetuning → evaluation → report. "
        "A child is rebuilt only if its architecture or one of its pieces changed. A deleted or damaged file reruns "
        "its job and the jobs that read it. These changes rerun nothing: a fresh checkout, a comment or docstring in "
        "the code, and a run that was moved, restored from a backup, or copied with its times (`cp -a`; after `cp -r`, "
        "files over 1 MB count as new).",
        "",
        "## Keys of the config",
        "",
        "| key | reruns first |",
        "|---|---|",
    ]
    lines += [f"| `{key}` | {_names(first)} |" for key, first in KEYS.items()]
    lines += [f"| `{key.replace(', ', '`, `')}` | {text} |" for key, text in IN_WORDS.items()]
    lines += [
        "",
        "## Files that the config names",
        "",
        "Files that the config names by path are compared by content, up to 64 MiB per source, the smallest files "
        "first: a new modification time alone reruns nothing. Files beyond that limit (the weights of most parents) "
        "are compared by size and modification time: copy them with their times (`cp -p`, `rsync -t`). A local source "
        "may be deleted once the files made from it exist; nothing reruns unless those are deleted, too. A hub "
        "repository or dataset is read only when it is fetched: name a commit.",
        "",
        "| changed in place | reruns first |",
        "|---|---|",
    ]
    lines += [f"| {source} | {first} |" for source, first in SOURCES.items()]
    groups: dict[str, list[str]] = {}
    for module in modules():
        groups.setdefault(_first_in_words(module), []).append(module.removeprefix("tangram."))
    groups.pop(_names(()), None)
    lines += ["", "## Modules of the package", "", "A module that is not in the table reruns nothing.", ""]
    lines += ["| a change in (of `tangram`, unless the package is named) | reruns first |", "|---|---|"]
    lines += [f"| {', '.join(f'`{module}`' for module in members)} | {names} |" for names, members in groups.items()]
    templates = sorted((Path(ROOT).parents[1] / "workflow" / "report").glob("*.j2"))
    lines += [f"| `workflow/report/{path.name}` | `build_report` |" for path in templates]
    return "\n".join(lines) + "\n"
