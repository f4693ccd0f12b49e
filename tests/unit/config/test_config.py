"""The config: every mistake is one line that names the key and what would be right."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tangram.config import Config, Corpus, Evaluation, Library, Scenario, Target, base, load, parse, parsing, slice_of
from tangram.errors import TangramError

CONFIGS = Path(__file__).parents[3] / "config"
DEFAULT = yaml.safe_load((CONFIGS / "smollm2-structure.yaml").read_text())
TEXT = [{"type": "python-docs"}]
TARGET = {"constraints": [{"quantity": "parameters", "max": 0.9}]}


def changed(path: str, value: Any) -> dict:
    """Return the default config with one key set (or removed, with None), at a path."""
    config = copy.deepcopy(DEFAULT)
    *parents, last = path.split("/")
    section = config
    for name in parents:
        section = section[int(name)] if isinstance(section, list) else section.setdefault(name, {})
    if value is None:
        del section[last]
    elif isinstance(section, list):
        section[int(last)] = value
    else:
        section[last] = value
    return config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load(path).run == path.stem.replace("config", "smollm2-cpu")


MISTAKES = {
    "unknown key": ("sede", 1, "config.sede: unknown key; did you mean 'seed'?"),
    "unknown key below": ("library/bld/epoch", 1, "config.library.bld.epoch: unknown key; did you mean 'epochs'?"),
    "unknown key in a list": ("corpus/distill/sources/0/wieght", 2, "unknown key; did you mean 'weight'?"),
    "unknown key of a target": ("targets/speed-1.2/solution", 2, "unknown key; did you mean 'solutions'?"),
    "missing section": ("corpus/score", None, "config.corpus.score: is required but missing"),
    "unknown engine": ("targets/speed-1.2/engine", "onnx", "config.targets.speed-1.2.engine: Input should be 'torch'"),
    "unknown format": ("targets/speed-1.2/export", ["onnx"], "Input should be 'gguf', 'decilm' or 'hf'"),
    "type of another engine": (
        "library/ffn",
        ["width-0.5@q8_0", "no-op"],
        "config: library.ffn: 'width-0.5@q8_0': engine torch has no precision q8_0, and no target has another engine; "
        "leave it out, or set targets.<name>.engine",
    ),
    "no pair": ("library/coupled", {"pairs": ["gqa-1"]}, "library.coupled.pairs[0]: 'gqa-1' is not a pair; write ATT"),
    "text for pairs": (
        "library/coupled",
        {"pairs": "gqa-1+linear"},
        "is not a list of pairs; write a list, such as [gqa",
    ),
    "pair of an unknown variant": (
        "library/coupled",
        {"pairs": ["gqa-1+widht-0.5"]},
        "'widht-0.5' is not in library.ffn; did you mean 'width-0.5'?; add it there, or leave the pair out",
    ),
    "pair in another order": (
        "library/coupled",
        {"pairs": ["width-0.5+gqa-1"]},
        "'width-0.5' is not in library.attent",
    ),
    "pair of a variant that is not listed": (
        "library/coupled",
        {"pairs": ["gqa-1+linear", "gqa-1+width-0.7"]},
        "library.coupled.pairs[1]: 'gqa-1+width-0.7': 'width-0.7' is not in library.ffn",
    ),
    "pair with a precision": (
        "library/coupled",
        {"pairs": ["gqa-1@int8+linear"]},
        "library.coupled.pairs[0]: 'gqa-1@int8+linear': a pair has no precision; leave '@int8' out",
    ),
    "pair with the parent's": (
        "library/coupled",
        {"pairs": ["parent+linear"]},
        "beside the parent's other subblock any",
    ),
    "pair of no weights": ("library/coupled", {"pairs": ["no-op+no-op"]}, "'no-op+no-op' has no weights to train"),
    "pair twice": (
        "library/coupled",
        {"pairs": ["gqa-1+width-.5", "gqa-1+width-0.50"]},
        "[1]: 'gqa-1+width-0.5' appears",
    ),
    "pair with the head": ("library/coupled", {"pairs": ["gqa-1+head"]}, "'head' is not in library.ffn"),
    "unknown type of tensors": ("library/ffn", ["width-0.5@q3_0"], "'q3_0' is not a precision; did you mean"),
    "wrong type": ("seed", "one", "config.seed: Input should be a valid integer"),
    "out of range": ("corpus/sequence_length", 4, "greater than or equal to 8 (got 4)"),
    "unknown variant": (
        "library/ffn",
        ["ffn_60"],
        "library.ffn[0]: 'ffn_60' is not a known variant; did you mean 'width-0.6'?",
    ),
    "unknown word": (
        "library/attention",
        ["liner"],
        "library.attention[0]: 'liner' is not a known variant; did you mean 'linear'?",
    ),
    "heads that do not divide": (
        "library/attention",
        ["gqa-2"],
        "2 KV heads do not divide the parent's 3; valid: gqa-1",
    ),
    "a window as long as the sequences": (
        "library/attention",
        ["no-op", "window-256@int8"],
        "library.attention[1]: 'window-256@int8' computes what the parent does on sequences of corpus.sequence_length "
        "(256) tokens; raise corpus.sequence_length, or choose a smaller number",
    ),
    "a window as long as the sequences of scores": (
        None,
        {
            "library": {"attention": ["no-op", "window-128"]},
            "corpus": DEFAULT["corpus"] | {"score": DEFAULT["corpus"]["score"] | {"sequence_length": 128}},
        },
        "library.attention[1]: 'window-128' computes what the parent does on sequences of corpus.score.sequence_length "
        "(128) tokens; raise corpus.score.sequence_length, or choose a smaller number",
    ),
    "heads that do not divide when mean-pooled": (
        "library/attention",
        ["gqa-mean-2"],
        "2 KV heads do not divide the parent's 3; valid: gqa-mean-1",
    ),
    "a constant in int8": (
        "library/ffn",
        ["constant@int8"],
        "library.ffn[0]: 'constant@int8': 'constant' has no precision int8; leave it out",
    ),
    "as many heads as the parent": ("library/attention", ["gqa-3"], "valid: gqa-1"),
    "a variant twice": ("library/ffn", ["linear", "linear"], "library.ffn[1]: 'linear' appears twice"),
    "a width above one": ("library/ffn", ["width-1.5"], "'width-1.5' is not a known variant"),
    "a misspelt operator": ("library/ffn", ["low-rank-32"], "not a known variant; did you mean 'lowrank-32'?"),
    "half a rank": ("library/attention", ["butterfly-0.5"], "not a known variant; did you mean 'butterfly-1'?"),
    "no rank": ("library/attention", ["ntk"], "not a known variant; did you mean 'ntk-64'?"),
    "a rank of zero": ("library/ffn", ["lowrank-0"], "not a known variant; did you mean 'lowrank-1'?"),
    "unknown headline": (
        "primary_target",
        "speed-12",
        "primary_target: 'speed-12' is not a target; did you mean 'speed-1.2'?",
    ),
    "unknown scenario": (
        "targets/speed-1.2/constraints/0/scenario",
        "chatt",
        "targets.speed-1.2.constraints[0].scenario: 'chatt' is not a scenario; did you mean 'chat'?",
    ),
    "an upper limit of throughput": (
        "targets/speed-1.2/constraints/0",
        {"quantity": "throughput", "max": 1.2, "scenario": "chat"},
        "throughput takes 'min', and only that",
    ),
    "no scenario": (
        "targets/speed-1.2/constraints/0",
        {"quantity": "latency", "max": 1.2},
        "latency needs a 'scenario'",
    ),
    "training on BIG-bench": (
        "corpus/finetune/sources",
        DEFAULT["corpus"]["heldout"]["sources"],
        "corpus.finetune: BIG-bench's canary forbids training on it",
    ),
    "micro batches that do not divide": (
        "finetune",
        {"batch_size": 4, "micro_batch_size": 3},
        "micro_batch_size (3) must divide batch_size (4)",
    ),
    "two units of a budget": (
        "finetune",
        {"budget": {"tokens": 3072, "minutes": 5}},
        "config.finetune.budget: give exactly one of epochs, tokens and minutes",
    ),
    "no unit of a budget": ("finetune/budget", {}, "config.finetune.budget: give exactly one of epochs, tokens"),
    "no time at all": ("finetune/budget", {"minutes": 0}, "budget.minutes: Input should be greater than 0 (got 0)"),
    "a part of an epoch": ("finetune/budget", {"epochs": 0.5}, "budget.epochs: Input should be a valid integer"),
    "a unit without its budget": (
        "finetune",
        {"epochs": 3},
        "config.finetune: epochs is a unit of budget; write budget: {epochs: 3}",
    ),
    "no loss": (
        "finetune",
        {"kl_weight": 0, "cosine_weight": 0},
        "at least one of kl_weight, cosine_weight, lm_weight, span_contrast.weight must be positive",
    ),
    "tasks from nowhere": ("evaluation", {"tasks": ["hellaswag", "group/first"]}, "tasks need a task_archive"),
    "a task of no kind": ("evaluation/tasks", [3], "config.evaluation.tasks.0.text: Input should be a valid string"),
    "a task with an unknown key": (
        "evaluation/tasks",
        [{"name": "arc_easy", "fewshot": 5}],
        "config.evaluation.tasks.0.task.fewshot: unknown key; did you mean 'num_fewshot'?",
    ),
    "a negative number of examples": (
        "evaluation/tasks",
        [{"name": "arc_easy", "num_fewshot": -1}],
        "config.evaluation.tasks.0.task.num_fewshot: Input should be greater than or equal to 0",
    ),
    "a text twice": (
        "evaluation/perplexity",
        [{"name": "wiki", "source": {"type": "hub", "repo": "some/text"}}] * 2,
        "perplexity: 'wiki' appears twice; give each text its own name",
    ),
    "a stride without tokens": (
        "evaluation/perplexity",
        [{"name": "wiki", "source": {"type": "hub", "repo": "some/text"}, "level": "word", "stride": 8}],
        "lm-eval's convention of level word has no stride; leave it out",
    ),
    "a text with a weight": (
        "evaluation/perplexity",
        [{"name": "wiki", "source": {"type": "hub", "repo": "some/text", "weight": 2}}],
        "source.weight has no meaning for a single text; leave it out",
    ),
    "a readout from nowhere": (
        "evaluation",
        {"readout": {"task": "intent_recognition"}},
        "config.evaluation: readout.task needs a task_archive",
    ),
    "a run that is no folder name": ("run", "../elsewhere", "config.run:"),
    "a run whose name is too long": ("run", "a" * 101, "config.run: String should have at most 100 characters"),
    "a time stamp of another age as seed": ("seed", 2**63, f"config: seed: {2**63} is beyond the largest integer"),
    "a number of any section beyond the largest": ("corpus/score/tokens", 10**30, "beyond the largest integer"),
    "an infinite limit": ("targets/speed-1.2/constraints/0/min", float("inf"), "should be a finite number"),
    "an infinite weight": ("finetune", {"kl_weight": float("inf")}, "kl_weight: Input should be a finite number"),
    "no number at all": ("library/bld", {"ridge": float("nan")}, "ridge: Input should be a finite number"),
    "infinity as text": ("finetune", {"learning_rate": "1e999"}, "learning_rate: Input should be a finite number"),
    "a learning rate that no training survives": (
        "finetune",
        {"learning_rate": 15},
        "less than or equal to 10 (got 15)",
    ),
    "a truth for a number": (
        "library/bld",
        {"epochs": True},
        "epochs: True is no number (YAML reads yes",
    ),
    "a truth in a list of numbers": ("scenarios/chat/batch_sizes", [1, True], "batch_sizes: True is no number"),
    "an unquoted no": (
        "library/ffn",
        [False],
        "should be a valid string (got False, which YAML makes of unquoted text",
    ),
    "an unquoted number": ("run", 2026, "(got 2026, which YAML makes of unquoted text: quote it)"),
    "a batch size twice": ("scenarios/chat/batch_sizes", [1, 2, 1], "scenarios.chat.batch_sizes: 1 appears twice"),
    "an empty batch": ("scenarios/chat/batch_sizes", [1, 0], "batch_sizes.1: Input should be greater than 0"),
    "labels twice": ("evaluation/readout", {"labels": [1, 1]}, "evaluation.readout.labels: 1 appears twice"),
    "a task twice": ("evaluation/tasks", ["a", "a"], "config.evaluation.tasks: 'a' appears twice"),
    "a depth twice": ("finetune", {"span_contrast": {"depths": [0.5, 0.5]}}, "depths: 0.5 appears twice"),
    "a source twice": (
        "corpus/distill/sources",
        [{"type": "parent-samples"}, {"type": "parent-samples", "weight": 1}],
        "config.corpus.distill.sources: [1] appears twice",
    ),
    "a source that gets nothing": (
        "corpus/distill/sources",
        [{"type": "parent-samples"}, {"type": "python-docs", "weight": 0.01}],
        "distill.sources[1].weight: 0.01 of 1.01 is less than half a sequence of the split's 12",
    ),
    "one sequence to train on": (
        "corpus/distill/tokens",
        256,
        "distill.tokens: 256 tokens are one sequence of 256; at least",
    ),
    "one sequence to score": ("corpus/score/tokens", 1, "score.tokens: 1 tokens are one sequence of 256"),
    "one held-out sequence": ("corpus/heldout/tokens", 256, "at least 257 are needed for two"),
    "all held out": (
        "library/bld",
        {"holdout_fraction": 0.99},
        "library.bld.holdout_fraction: 0.99 of corpus.distill's 12 sequences leaves none to train on",
    ),
    "prompts longer than sequences": (
        "targets/speed-1.2",
        {**DEFAULT["targets"]["speed-1.2"], "solutions": 2, "selection": {"prompt_tokens": 257}},
        "targets.speed-1.2.selection.prompt_tokens: 257 is more than corpus.sequence_length (256)",
    ),
    "spans longer than sequences": (
        "finetune",
        {"span_contrast": {"weight": 0.1, "longest": 300}},
        "finetune.span_contrast.longest: 300 is more than corpus.sequence_length (256)",
    ),
    "a split's own sequences that are too short": (
        "corpus/score",
        {**DEFAULT["corpus"]["score"], "sequence_length": 2},
        "corpus.score.sequence_length: Input should be greater than or equal to 8 (got 2)",
    ),
    "one long sequence to score": (
        "corpus/score",
        {**DEFAULT["corpus"]["score"], "sequence_length": 768},
        "score.tokens: 768 tokens are one sequence of 768; at least 769",
    ),
    "a stride over a split's own sequences": (
        None,
        {
            "corpus": {**DEFAULT["corpus"], "score": {**DEFAULT["corpus"]["score"], "sequence_length": 64}},
            "scores": {"position_stride": 65},
        },
        "scores.position_stride: 65 is more than corpus.score.sequence_length (64)",
    ),
    "an objective that screening cannot estimate": (
        None,
        {"scores": {"method": "screened"}, "search": {"objective": "lm_loss_increase"}},
        "search.objective: screened scores estimate the KL alone",
    ),
    "a target's mix that screening cannot estimate": (
        None,
        {
            "scores": {"method": "screened"},
            "targets": {
                **DEFAULT["targets"],
                "speed-1.2": {**DEFAULT["targets"]["speed-1.2"], "objective": {"kl": 1, "cosine_distance": 1}},
            },
        },
        "targets.speed-1.2.objective: screened scores estimate the KL alone",
    ),
    "accuracy of coupled pairs": (
        None,
        {
            "search": {"objective": "accuracy"},
            "scores": {"tasks": {"names": ["/a.jsonl"]}},
            "library": {**DEFAULT["library"], "coupled": {"pairs": "all"}},
        },
        "search.objective: library.coupled has no scores by accuracy; leave one of both out",
    ),
    "accuracy without questions": (
        "search/objective",
        {"kl": 1, "accuracy": 0.5},
        "search.objective: accuracy needs the questions of scores.tasks; name its tasks",
    ),
    "a target's margin without questions": (
        "targets/speed-1.2/objective",
        "margin",
        "targets.speed-1.2.objective: margin needs the questions of scores.tasks; name its tasks",
    ),
    "evolution on questions": (
        None,
        {
            "scores": {"tasks": {"names": ["./mine.jsonl"]}},
            "targets": {
                **DEFAULT["targets"],
                "speed-1.2": {**DEFAULT["targets"]["speed-1.2"], "objective": "accuracy", "compare": ["evolutionary"]},
            },
        },
        "targets.speed-1.2.compare: evolutionary measures children on text, not on questions; leave it out, or take",
    ),
    "questions of an archive without one": (
        None,
        {"scores": {"tasks": {"names": ["./mine.jsonl", "numbers"]}}, "evaluation": {}},
        "scores.tasks.names: 'numbers' needs evaluation.task_archive; set it, or name a file",
    ),
    "questions of a folder": (
        "scores",
        {"tasks": {"names": ["./tasks/"]}},
        "scores.tasks.names: [0]: './tasks/' may hold tasks without choices; name a .jsonl file or a task",
    ),
    "fewer questions than tasks": (
        "scores",
        {"tasks": {"names": ["a", "b", "c"], "questions": 2}},
        "scores.tasks: questions: 2 is less than one for each of 3 tasks; raise it",
    ),
    "questions of screened scores": (
        "scores",
        {"method": "screened", "tasks": {"names": ["numbers"]}},
        "scores: tasks: screened scores estimate the KL alone; leave tasks out, or set method: exact",
    ),
    "an unknown task of long context": (
        "evaluation",
        {"long_context": {"lengths": [256], "tasks": ["needles"]}},
        "evaluation.long_context.tasks.0: Input should be 'needle' or 'variable-tracking'",
    ),
    "a length of a long text twice": (
        "evaluation",
        {"long_context": {"lengths": [256, 256]}},
        "evaluation.long_context.lengths: 256 appears twice",
    ),
    "long texts without a length": ("evaluation", {"long_context": {}}, "evaluation.long_context.lengths"),
    "spans of no length": ("finetune", {"span_contrast": {"shortest": 9, "longest": 8}}, "shortest (9) is more than"),
    "a stride over whole sequences": ("scores", {"position_stride": 257}, "scores.position_stride: 257 is more than"),
    "KV heads that do not divide heads": (
        "parent/num_kv_heads",
        4,
        "num_kv_heads (4) must divide num_attention_heads (9)",
    ),
    "a width that heads do not divide": (
        "parent/sizes",
        {"hidden_size": 64, "intermediate_size": 8, "vocab_size": 8},
        "num_attention_heads (9) must divide sizes.hidden_size (64)",
    ),
    "layers dropped without no-op": (
        "library/ffn",
        ["linear"],
        "targets.speed-1.1.compare_layers_dropped: whole layers cannot be dropped without 'no-op'; add it to library.f",
    ),
    "layers dropped without any no-op": (
        "library",
        {"attention": ["linear"], "ffn": ["linear"]},
        "add it to library.attention and library.ffn, or set compare_layers_dropped: false",
    ),
    "an unknown precision": (
        "library/ffn",
        ["width-0.5@int7"],
        "library.ffn[0]: 'width-0.5@int7': 'int7' is not a precision; did you mean 'int8'?",
    ),
    "an unknown precision of all": (
        "library/precisions",
        {"head": ["int7"]},
        "config.library.precisions.head.0: 'int7' is not a precision; did you mean 'int8'?",
    ),
    "a precision twice": (
        "library/precisions",
        {"ffn": ["int8", "int8"]},
        "config.library.precisions.ffn: 'int8' appears twice",
    ),
    "precisions of an unknown kind": ("library/precisions", {"fnn": []}, "unknown key; did you mean 'ffn'?"),
    "a precision of nothing": (
        "library/attention",
        ["no-op@int8"],
        "library.attention[0]: 'no-op@int8': 'no-op' has no precision int8; leave it out",
    ),
    "a precision of factors": (
        "library/ffn",
        ["monarch@int8"],
        "library.ffn[0]: 'monarch@int8': 'monarch' has no precision int8; leave it out",
    ),
    "a misspelt variant with a precision": ("library/ffn", ["ffn_60@int8"], "did you mean 'width-0.6@int8'?"),
    "a misspelt parent": ("library/ffn", ["parnt@int8"], "is not a known variant; did you mean 'parent@int8'?"),
    "a variant with a precision twice": (
        "library/ffn",
        ["width-0.5@int8", "width-.50@int8"],
        "library.ffn[1]: 'width-0.5@int8' appears twice",
    ),
    "the parent as a variant": (
        "library/ffn",
        ["parent"],
        "library.ffn[0]: 'parent' is a choice anyway; leave it out, or add a precision: 'parent@bf16'",
    ),
    "the parent's head": ("library/head", ["parent"], "library.head[0]: 'parent' is a choice anyway; leave it out"),
    "a head that is none": (
        "library/head",
        ["lowrank-64"],
        "library.head[0]: 'lowrank-64' is not a known variant; valid: parent@bf16, parent@int8, parent@fp8",
    ),
    "a precision that is the run's dtype": (
        None,
        {"dtype": "bfloat16", "library": {"head": ["parent@bf16"]}},
        "library.head[0]: 'parent@bf16': bf16 is the run's dtype (dtype: bfloat16); leave the precision out",
    ),
    "a precision of all that is the run's dtype": (
        None,
        {"dtype": "bfloat16", "library": {"precisions": {"attention": ["int8", "bf16"]}}},
        "library.precisions.attention[1]: bf16 is the run's dtype",
    ),
    "a precision that is the device's dtype": (
        None,
        {"device": "cuda", "dtype": "auto", "library": {"head": ["parent@bf16"]}},
        "library.head[0]: 'parent@bf16': bf16 is the run's dtype (dtype: bfloat16); leave the precision out",
    ),
    "a dtype of nothing": ("dtype", "int8", "config.dtype"),
    "a precision that a CPU lacks": (
        "library/ffn",
        ["no-op", "width-0.5@fp8"],
        "library.ffn[1]: 'width-0.5@fp8': fp8 runs on cuda only, not on device: cpu",
    ),
    "shards of pieces with a precision": (
        None,
        {"finetune": {"parallel": {"strategy": "fsdp"}}, "library": {"precisions": {"ffn": ["int8"]}}},
        "finetune.parallel.strategy: fsdp cannot shard pieces with a precision, such as library.ffn's 'parent@int8'",
    ),
    "rounds in another engine": (
        None,
        {"targets": {"speed-1.2": {**TARGET, "rounds": 2, "engine": "vllm"}}},
        "rounds: 2 needs engine: torch, not vllm; leave rounds out",
    ),
    "rounds of several solutions": (
        None,
        {"targets": {"speed-1.2": {**TARGET, "rounds": 2, "solutions": 3}}},
        "rounds: 2 goes on with one solution of each round; leave solutions and selection out, or rounds",
    ),
    "rounds of compensated children": (
        None,
        {"targets": {"speed-1.2": {**TARGET, "rounds": 2}}, "assembly": {"compensate": True}},
        "assembly.compensate: the child of targets.speed-1.2.rounds has trained weights",
    ),
    "rounds of minutes": (
        None,
        {"targets": {"speed-1.2": {**TARGET, "rounds": 2}}, "finetune": {"budget": {"minutes": 3}}},
        "targets.speed-1.2.rounds: 2 divides finetune.budget, but not minutes; give tokens or epochs",
    ),
    "more rounds than batches": (
        None,
        {"targets": {"speed-1.2": {**TARGET, "rounds": 4}}, "finetune": {"budget": {"tokens": 1000}}},
        "targets.speed-1.2.rounds: 4 needs as many batches, and finetune.budget has 4 sequences in batches of 2; raise",
    ),
    "rounds in several processes": (
        None,
        {"targets": {"speed-1.2": {**TARGET, "rounds": 2}}, "finetune": {"parallel": {"processes_per_node": 2}}},
        "targets.speed-1.2.rounds: 2 trains in one process; leave finetune.parallel or rounds out",
    ),
    "rounds of coupled pairs": (
        None,
        {
            "targets": {"speed-1.2": {**TARGET, "rounds": 2}},
            "library": {**DEFAULT["library"], "coupled": {"pairs": ["gqa-1+width-0.5"]}},
        },
        "targets.speed-1.2.rounds: 2 scores single pieces, not library.coupled; leave one of both out",
    ),
    "rounds by answers to questions": (
        None,
        {
            "targets": {"speed-1.2": {**TARGET, "rounds": 2, "objective": {"kl": 1, "margin": 1}}},
            "scores": {"tasks": {"names": ["q.jsonl"]}},
        },
        "targets.speed-1.2.rounds: 2 scores children on text, which has no margin; take another objective, or leave",
    ),
    "too few tokens for finetuned candidates": (
        None,
        {"targets": {"speed-1.2": {**TARGET, "solutions": 8, "selection": {"metric": "finetuned", "tokens": 4000}}}},
        "targets.speed-1.2.selection.tokens: 4000 do not suffice for a step of 512 tokens of every candidate in each "
        "round; write at least 4096",
    ),
    "finetuned candidates of a sharded training": (
        None,
        {
            "targets": {"speed-1.2": {**TARGET, "solutions": 8, "selection": {"metric": "finetuned", "tokens": 9000}}},
            "finetune": {"parallel": {"strategy": "fsdp"}},
        },
        "targets.speed-1.2.selection.metric: finetuned trains in one process; set finetune.parallel.strategy: ddp",
    ),
    "nothing to choose from": ("library", {"attention": [], "ffn": []}, "attention and ffn are empty"),
    "two spellings of a width": (
        "library/ffn",
        ["width-0.5", "width-.50"],
        "library.ffn[1]: 'width-0.5' appears twice",
    ),
    "two spellings of a number of heads": ("library/attention", ["gqa-1", "gqa-01"], "'gqa-1' appears twice"),
    "two spellings of a rank": ("library/attention", ["lowrank-064", "lowrank-64"], "'lowrank-64' appears twice"),
    "the parent's own width": (
        "library/ffn",
        ["width-1.0"],
        "'width-1.0' is the parent's FFN, which is a choice in",
    ),
    "no width": ("library/ffn", ["width-0.0"], "'width-0.0' has no channels; did you mean 'no-op'?"),
    "a width in per cent": ("library/ffn", ["width-50"], "did you mean 'width-0.5'?"),
    "a sum of less than one parameter": (
        "targets/speed-1.2/constraints/0",
        {"quantity": "parameters", "max": 0.7, "relative_to_parent": False},
        "max: 0.7 of parameters is less than 1 in total; set relative_to_parent: true",
    ),
    "the packed parent in another engine": (
        "targets/speed-1.2",
        {
            "engine": "llama.cpp",
            "constraints": [{"quantity": "throughput", "min": 1.2, "scenario": "chat", "reference": "packed"}],
        },
        "targets.speed-1.2: constraints: reference: packed is torch's parent",
    ),
    "the packed parent in vLLM": (
        "targets/speed-1.2",
        {
            "engine": "vllm",
            "constraints": [{"quantity": "throughput", "min": 1.2, "scenario": "chat", "reference": "packed"}],
        },
        "torch's parent, and limits in vllm refer to the parent there; leave reference out",
    ),
    "a rival of a precision that the library lacks": (
        "targets/speed-1.2/constraints/0/reference",
        "uniform-int8",
        "targets.speed-1.2.constraints[0].reference: uniform-int8 needs 'parent@int8' in library.attention; add it",
    ),
    "a rival that the engine cannot run": (
        "targets/speed-1.2/constraints/0/reference",
        "uniform-q8_0",
        "reference: uniform-q8_0: engine torch has no precision q8_0; choose another precision",
    ),
    "an unknown reference": (
        "targets/speed-1.2/constraints/0/reference",
        "uniform-int4",
        "'uniform-int4' is not a reference; did you mean 'uniform-int8'?",
    ),
    "a package without version": (
        "evaluation/task_archive/package",
        "bigbench",
        "config.evaluation.task_archive.package: 'bigbench' is not a name and an exact version",
    ),
    "a package of many versions": ("evaluation/task_archive/package", "bigbench==1.*", "is not a name and an exact"),
    "a package and its extras": ("evaluation/task_archive/package", "bigbench[x]==1.0", "is not a name and an exact"),
    "an unquoted checksum of digits": (
        "evaluation/task_archive/archive_sha256",
        10**63,
        "0, which YAML makes of unquoted text: quote it)",
    ),
    "a rank of many digits": ("library/ffn", ["lowrank-" + "9" * 5000], "is not a known variant"),
    "heads of many digits": ("library/attention", ["gqa-" + "9" * 5000], "is not a known variant"),
    "half a checksum": (
        "evaluation/task_archive/archive_sha256",
        "1bb398",
        "archive_sha256: String should match pattern",
    ),
    "training on BIG-bench under another spelling": (
        "corpus/finetune/sources",
        [{**DEFAULT["corpus"]["heldout"]["sources"][0], "package": "Big_Bench == 1.0.0"}],
        "BIG-bench's canary forbids training on it",
    ),
    "training on BIG-bench from the hub": (
        "corpus/distill/sources",
        [{"type": "hub", "repo": "google/BIG_bench"}],
        "BIG-bench's canary forbids training on it",
    ),
    "a trial on BIG-bench": (
        "text_trials/sources",
        {"docs": TEXT[0], "quoref": DEFAULT["corpus"]["heldout"]["sources"][0]},
        "config.text_trials.sources: quoref: BIG-bench's canary forbids training on it",
    ),
    "a trial of one text": (
        "text_trials/sources",
        {"docs": TEXT[0]},
        "config.text_trials.sources: one text cannot be compared; name at least two",
    ),
    "a trial without an interval": ("text_trials/draws", 1, "config.text_trials.draws: Input should be greater than"),
    "a trial on one held-out sequence": (
        "text_trials",
        {"sources": {"docs": TEXT[0], "own": {"type": "parent-samples"}}, "heldout_tokens": 256},
        "text_trials.heldout_tokens: 256 tokens are one sequence of 256; at least 257 are needed",
    ),
    "documents of no tokens": ("corpus/min_document_tokens", 0, "min_document_tokens: Input should be greater than"),
    "a repository that is none": (
        "parent/source",
        {"type": "hub", "repo": "https://huggingface.co/a/b", "revision": "main"},
        "repo: String should match pattern",
    ),
    "an empty path": ("parent/source", {"type": "local", "path": ""}, "path: String should have at least 1 character"),
}


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_clear_line(path: str | None, value: Any, message: str) -> None:
    with pytest.raises(TangramError) as caught:
        parse(changed(path, value) if path else DEFAULT | value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run: [")
    with pytest.raises(TangramError, match="cannot be read as YAML"):
        load(path)
    path.write_text("- run")
    with pytest.raises(TangramError, match="expected a mapping"):
        load(path)
    with pytest.raises(TangramError, match="cannot be read"):
        load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("kind", "spelled", "name"),
    [
        ("ffn", "width-.5", "width-0.5"),
        ("ffn", "width-0.50", "width-0.5"),
        ("ffn", "width-00.500", "width-0.5"),
        ("ffn", "width-0.00001", "width-0.00001"),
        ("ffn", "lowrank-064", "lowrank-64"),
        ("attention", "gqa-01", "gqa-1"),
        ("attention", "butterfly-0064", "butterfly-64"),
        ("attention", "ntk-8", "ntk-8"),
        ("attention", "gqa-01@int8", "gqa-1@int8"),
        ("ffn", "width-.50@bf16", "width-0.5@bf16"),
    ],
)
def test_a_variant_has_one_name_however_it_is_spelled(kind: str, spelled: str, name: str) -> None:
    library = parse(changed(f"library/{kind}", [spelled, "no-op"])).library
    assert getattr(library, kind) == (name, "no-op")
    assert parse(changed(f"library/{kind}", [name, "no-op"])).library == library


def test_a_window_is_compared_with_the_scored_sequences() -> None:
    score = DEFAULT["corpus"]["score"] | {"sequence_length": 384}
    library = parse(changed("corpus/score", score) | {"library": {"attention": ["window-256", "no-op"]}}).library
    assert library.attention == ("window-256", "no-op")


def test_an_archive_has_one_name_however_it_is_spelled() -> None:
    archive = DEFAULT["evaluation"]["task_archive"]
    spelled = {"package": " BigBench == 1.0", "format": "sdist", "archive_sha256": archive["archive_sha256"].upper()}
    found = parse(changed("evaluation/task_archive", spelled)).evaluation.task_archive
    assert found.package == "bigbench==1.0"
    assert found.archive_sha256 == archive["archive_sha256"]


def test_the_largest_seed_is_taken_by_every_generator() -> None:
    torch = pytest.importorskip("torch")
    seed = parse(changed("seed", 2**63 - 1)).seed
    torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)


def test_numbers_may_be_text_as_the_command_line_gives_them() -> None:
    text = {"budget": {"epochs": "2"}, "learning_rate": "1e-4", "span_contrast": {"weight": "0"}}
    config = parse(changed("finetune", text))
    assert (config.finetune.budget.epochs, config.finetune.learning_rate) == (2, 1e-4)


def test_every_number_of_a_section_is_finite_and_bounded_below() -> None:
    """A new field cannot forget it: infinities and NaN are refused by all, negative numbers by each."""
    sections = [Config]
    for section in sections:
        assert section.model_config["allow_inf_nan"] is False
        assert section.model_config["extra"] == "forbid"
        for name, field in section.model_fields.items():
            sections += [inner for inner in parsing._sections_in(field.annotation) if inner not in sections]
            if base._kinds_in(field.annotation) & {int, float}:
                bounds = str(field.metadata) + str(field.annotation)
                assert "Gt(" in bounds or "Ge(" in bounds, f"{section.__name__}.{name}"
    assert len(sections) > 20


def test_a_key_twice_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text((CONFIGS / "config.yaml").read_text() + "\nseed: 7\n")
    with pytest.raises(TangramError, match=r"config\.yaml: 'seed' appears twice, in lines \d+ and \d+; keep one"):
        load(path)


def test_kv_heads_of_another_parent() -> None:
    config = changed("parent/num_kv_heads", 8)
    config["parent"]["num_attention_heads"] = 16
    config["library"]["attention"] = ["gqa-4", "gqa-2", "gqa-1", "no-op"]
    assert parse(config).library.attention == ("gqa-4", "gqa-2", "gqa-1", "no-op")


def test_slices_are_canonical_and_come_back_equal() -> None:
    config = parse(DEFAULT)
    for section in (
        config.parent,
        config.corpus,
        config.library.bld,
        config.scores,
        config.finetune,
        config.evaluation,
    ):
        assert type(section).model_validate_json(slice_of(section)) == section
    assert slice_of({"b": config.scores, "a": 1}) == slice_of({"a": 1, "b": config.scores})
    assert json.loads(slice_of({"scenarios": config.scenarios}))["scenarios"]["chat"]["prefill"] == 128


def test_slices_hold_defaults_so_that_naming_one_reruns_nothing() -> None:
    config = changed("scores", {"batch_size": Config.model_fields["scores"].default.batch_size})
    assert slice_of(parse(config).scores) == slice_of(parse(DEFAULT).scores)


def test_sections_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(DEFAULT).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("section", [Corpus, Evaluation, Scenario, Target])
def test_sections_are_closed(section: type) -> None:
    assert section.model_config["extra"] == "forbid"


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_structured_operators_stand_in_for_both_kinds(kind: str) -> None:
    names = ("butterfly-64", "monarch", "lowrank-32", "ntk-128", "no-op")
    assert getattr(parse(changed(f"library/{kind}", list(names))).library, kind) == names


def library_of(**keys: Any) -> Library:
    """Return the checked library of the default config with other keys."""
    return parse(DEFAULT | {"library": {"attention": ["no-op"], "ffn": ["no-op"], **keys}}).library


def test_without_precisions_all_variants_are_trained_ones() -> None:
    library = parse(DEFAULT).library
    assert library.variants("ffn") == library.distilled("ffn") == library.ffn
    assert library.variants("head") == library.distilled("head") == library.quantized("ffn") == ()
    assert library.uniform_precisions() == ()


def test_precisions_expand_the_list_by_what_is_missing() -> None:
    listed = ["width-0.5@int8", "linear", "no-op", "monarch", "width-0.5"]
    library = library_of(ffn=listed, precisions={"ffn": ["int8", "bf16"]})
    assert library.variants("ffn") == (
        *listed,
        *("parent@int8", "linear@int8", "parent@bf16", "linear@bf16", "width-0.5@bf16"),
    )
    assert library.distilled("ffn") == ("linear", "no-op", "monarch", "width-0.5")
    assert library.variants("attention") == ("no-op",)


def test_a_source_is_trained_and_not_an_option() -> None:
    library = library_of(ffn=["no-op", "width-0.5@int8", "width-0.5@bf16", "parent@int8"])
    assert library.variants("ffn") == ("no-op", "width-0.5@int8", "width-0.5@bf16", "parent@int8")
    assert library.distilled("ffn") == ("no-op", "width-0.5")
    assert library.quantized("ffn") == ("width-0.5@int8", "width-0.5@bf16", "parent@int8")


def test_a_listed_precision_and_an_expanded_one_are_equal() -> None:
    listed, expanded = library_of(head=["parent@bf16"]), library_of(precisions={"head": ["bf16"]})
    assert listed.variants("head") == expanded.variants("head") == ("parent@bf16",)
    assert listed.distilled("head") == ()


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("cuda", "bfloat16")])
def test_auto_is_the_dtype_of_the_device(device: str, dtype: str) -> None:
    assert parse(DEFAULT | {"device": device, "dtype": "auto"}) == parse(DEFAULT | {"device": device, "dtype": dtype})
    assert parse(DEFAULT | {"device": device}).dtype == "float32"


def test_a_gpu_has_all_precisions() -> None:
    precisions = {kind: ["bf16", "int8", "fp8"] for kind in ("attention", "ffn", "head")}
    library = DEFAULT["library"] | {"precisions": precisions}
    config = parse(DEFAULT | {"device": "cuda", "library": library})
    assert config.library.uniform_precisions() == ("bf16", "int8", "fp8")
    assert "uniform-fp8" in config.solutions(config.primary_target)


def test_other_searches_are_solutions_of_their_target() -> None:
    target = DEFAULT["targets"]["speed-1.2"] | {"compare": ["greedy", "evolutionary"]}
    config = parse(DEFAULT | {"targets": DEFAULT["targets"] | {"speed-1.2": target}})
    assert config.solutions("speed-1.2") == ["0", "layers-dropped", "greedy", "evolutionary"]
    assert config.solutions("speed-1.1") == ["0", "layers-dropped"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compare": ["gredy"]}, r"targets\.speed-1\.2\.compare.*'gredy' is not a search; did you mean 'greedy'\?"),
        ({"compare": ["greedy", "greedy"]}, r"targets\.speed-1\.2\.compare.*greedy"),
        (
            {"compare": ["dynamic-program"], "constraints": [{"quantity": "parameters", "max": 0.9}] * 2},
            r"targets\.speed-1\.2.*dynamic-program takes one constraint, and there are 2; leave it out",
        ),
    ],
)
def test_searches_that_cannot_run_are_refused(change: dict, message: str) -> None:
    targets = DEFAULT["targets"] | {"speed-1.2": DEFAULT["targets"]["speed-1.2"] | change}
    with pytest.raises(TangramError, match=message):
        parse(DEFAULT | {"targets": targets})


def test_pairs_have_one_spelling_and_may_be_all() -> None:
    library = {"attention": ["gqa-1", "no-op"], "ffn": ["width-0.5", "no-op", "linear@int8"]}
    pairs = parse(DEFAULT | {"library": library | {"coupled": {"pairs": ["gqa-01+width-.5"]}}}).library.pairs()
    assert pairs == ("gqa-1+width-0.5",)
    pairs = parse(DEFAULT | {"library": library | {"coupled": {"pairs": "all"}}}).library.pairs()
    assert pairs == ("gqa-1+width-0.5", "gqa-1+no-op", "no-op+width-0.5")
    with pytest.raises(TangramError, match="all finds no pair; name a variant in library"):
        parse(DEFAULT | {"library": {"attention": [], "ffn": ["width-0.5"], "coupled": {"pairs": "all"}}})
    with pytest.raises(TangramError, match=r"library.coupled: pairs are scored exactly; set scores.method: exact"):
        parse(DEFAULT | {"scores": {"method": "screened"}, "library": library | {"coupled": {"pairs": "all"}}})


def test_block_influence_needs_layers_that_can_be_dropped() -> None:
    target = DEFAULT["targets"]["speed-1.2"] | {"compare": ["block-influence"], "compare_layers_dropped": False}
    changes = {"targets": {"speed-1.2": target}, "library": {"attention": ["gqa-1"], "ffn": ["no-op"]}}
    with pytest.raises(TangramError, match=r"block-influence drops whole layers, .*; add it to library\.att"):
        parse(DEFAULT | changes)


def test_the_text_of_an_evolution_grows_to_all() -> None:
    for shares in ([0.5, 0.2, 1.0], [0.5]):
        with pytest.raises(TangramError, match=r"search\.evolution\.shares.*shares must grow to 1"):
            parse(DEFAULT | {"search": {"evolution": {"shares": shares}}})


def test_only_the_primary_target_has_uniform_rivals() -> None:
    precisions = {"attention": ["int8", "bf16"], "ffn": ["bf16"], "head": ["bf16", "int8"]}
    library = DEFAULT["library"] | {"precisions": precisions}
    library["ffn"] = [*library["ffn"], "parent@int8"]
    config = parse(DEFAULT | {"library": library})
    assert config.library.uniform_precisions() == ("bf16", "int8")
    assert config.solutions("speed-1.2") == ["0", "layers-dropped", "uniform-bf16", "uniform-int8"]
    assert config.solutions("speed-1.1") == ["0", "layers-dropped"]
    assert config.uniform_solutions("speed-1.1") == {}


def test_rivals_in_llama_cpp_are_files_and_no_children() -> None:
    precisions = {kind: ["bf16", "q8_0", "q4_0"] for kind in ("attention", "ffn", "head")}
    target = DEFAULT["targets"]["speed-1.2"] | {"engine": "llama.cpp"}
    changes = {"library": DEFAULT["library"] | {"precisions": precisions}, "targets": {"speed-1.2": target}}
    assert parse(DEFAULT | changes).solutions("speed-1.2") == ["0", "layers-dropped"]
    target["compare_uniform"] = False
    with pytest.raises(
        TangramError, match=r"targets\.speed-1\.2.*compare_uniform: false: [^\n]*leave compare_uniform out$"
    ):
        parse(DEFAULT | changes)


def test_rivals_can_be_left_out_and_selection_leaves_one() -> None:
    precisions = {kind: ["int8"] for kind in ("attention", "ffn", "head")}
    target = DEFAULT["targets"]["speed-1.2"] | {"solutions": 4, "selection": {}, "compare_uniform": False}
    changes = {"library": DEFAULT["library"] | {"precisions": precisions}, "targets": {"speed-1.2": target}}
    assert parse(DEFAULT | changes).solutions("speed-1.2") == ["0", "layers-dropped"]
    del target["compare_uniform"], target["selection"]
    assert parse(DEFAULT | changes).solutions("speed-1.2") == [*"0123", "layers-dropped", "uniform-int8"]


@pytest.mark.parametrize("library", [{"head": ["parent@int8"]}, {"precisions": {"ffn": ["int8"]}}])
def test_precisions_alone_are_a_search_space(library: dict) -> None:
    targets = {"speed-1.2": DEFAULT["targets"]["speed-1.2"] | {"compare_layers_dropped": False}}
    config = parse(DEFAULT | {"library": {"attention": [], "ffn": []} | library, "targets": targets})
    assert sum(len(config.library.variants(kind)) for kind in ("attention", "ffn", "head")) == 1


def test_decilm_needs_shared_smoothing_of_int8_attention() -> None:
    library = DEFAULT["library"] | {"precisions": {"attention": ["int8"]}}
    target = DEFAULT["targets"]["speed-1.2"] | {"export": ["decilm"]}
    config = DEFAULT | {"library": library, "targets": DEFAULT["targets"] | {"speed-1.2": target}}
    with pytest.raises(TangramError, match=r"'parent@int8'; set library\.shared_smoothing: true"):
        parse(config)
    assert parse(config | {"library": library | {"shared_smoothing": True}}).library.shared_smoothing
    assert parse(config | {"library": library | {"precisions": {"ffn": ["int8"]}}})
