"""Dry runs of Snakemake: plans, lint, the profile, and the rules that depend on a key."""

import copy
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import shown_jobs
from warm_snakemake import warm_snakemake

from tangram.engines import PARENT_TYPES
from tangram.llama_cpp import find

ROOT = Path(__file__).parents[2]
MAIN_JOB = ROOT / "config" / "config.yaml"
FOR_LLAMA_CPP = ROOT / "config" / "smollm2-llama.cpp.yaml"
FOR_MEMORY = ROOT / "config" / "smollm2-memory.yaml"
OVERNIGHT = ROOT / "config" / "smollm2-cpu-overnight.yaml"
CONFIGS = sorted(
    {*(ROOT / "config").glob("*.yaml")} - {MAIN_JOB, OVERNIGHT, FOR_LLAMA_CPP, FOR_MEMORY}
)  # those without precisions
DEFAULT = yaml.safe_load((ROOT / "config" / "smollm2-structure.yaml").read_text())
pytestmark = pytest.mark.slow


def snakemake(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    return warm_snakemake("--snakefile", ROOT / "Snakefile", *arguments, folder=cwd)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict], dict[str, list[str]]]:
    """Return a function from a config to its plan in an empty folder: every rule's shell commands."""

    def plan(config: dict) -> dict[str, list[str]]:
        folder = tmp_path_factory.mktemp("plan")
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        done = snakemake("-n", "-p", "--directory", folder, "--configfile", folder / "config.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        commands: dict[str, list[str]] = {}
        for line in (done.stdout + done.stderr).splitlines():
            if jobs := shown_jobs(f"{line}\n"):
                rule = jobs[0][0]
            elif match := re.match(r"(?:    )?[Ss]hell(?: command)?: (python .*)", line):
                commands.setdefault(rule, []).append(match[1])
        return {rule: sorted(found) for rule, found in commands.items()}

    return plan


@pytest.fixture(scope="module")
def default_plan(plan: Callable[[dict], dict[str, list[str]]]) -> dict[str, list[str]]:
    return plan(DEFAULT)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_plans_one_job_per_piece_of_work(path: Path, plan: Callable[[dict], dict[str, list[str]]]) -> None:
    config = yaml.safe_load(path.read_text())
    jobs = Counter({rule: len(commands) for rule, commands in plan(config).items()})
    library = config["library"]
    pieces = len(library["attention"]) + len(library["ffn"])
    shards = -(-config["parent"]["num_layers"] // library.get("layers_per_shard", 32))
    children = sum(
        target.get("solutions", 1) + target.get("compare_layers_dropped", True) for target in config["targets"].values()
    )
    assert jobs["distill_blocks"] == jobs["score_blocks"] == pieces * shards
    assert jobs["measure_costs"] == pieces + 4  # the parent's attention, FFN and head, and the other parts
    assert jobs["capture_activations"] == (0 if config.get("activations", {}).get("mode") == "stream" else 4)
    assert jobs["solve_mip"] == len(config["targets"])
    of_children = ("pin_architecture", "assemble_child", "finetune_child", "evaluate_model")
    assert all(jobs[rule] == children for rule in of_children)
    assert all(
        jobs[rule] == 1
        for rule in ("fetch_parent", "collect_costs", "calibrate_costs", "measure_speed", "build_report")
    )


def test_the_main_job_plans_one_job_per_piece_of_work(plan: Callable[[dict], dict[str, list[str]]]) -> None:
    jobs = {rule: len(commands) for rule, commands in plan(yaml.safe_load(MAIN_JOB.read_text())).items()}
    assert jobs["distill_blocks"] == 2 + 1  # attention and FFN, sources of quantized pieces included
    assert jobs["quantize_blocks"] == 3 + 2 + 2  # and the head
    assert jobs["score_blocks"] == 4 + 3 + 2
    assert jobs["measure_costs"] == jobs["score_blocks"] + 4
    assert jobs["solve_mip"] == 3
    assert jobs["drop_layers"] == jobs["uniform_precision"] == 1
    of_children = ("pin_architecture", "assemble_child", "finetune_child", "evaluate_model")
    assert all(jobs[rule] == 3 + 1 + 2 for rule in of_children)


def test_a_memory_limit_plans_every_scenario_and_batch(plan: Callable[[dict], dict[str, list[str]]]) -> None:
    config = yaml.safe_load(FOR_MEMORY.read_text())
    commands = plan(config)
    sizes = {name: scenario["batch_sizes"] for name, scenario in config["scenarios"].items()}
    assert set(sizes) == {"chat", "generation", "summarization"}
    assert len(commands["measure_costs"]) == 3 + 3 + 1 + 4
    for command in (*commands["measure_costs"], *commands["solve_mip"], *commands["measure_speed"]):
        for name, batches in sizes.items():
            assert f'"{name}":{{"batch_sizes":{batches},'.replace(" ", "") in command
    assert all('"quantity":"memory"' in command for command in commands["solve_mip"])
    assert len(commands["evaluate_long_context"]) == len(commands["evaluate_parent_long_context"]) + 1 == 2


def test_answers_plan_one_job_per_piece_and_halve_tasks(plan: Callable[[dict], dict[str, list[str]]]) -> None:
    without = plan(DEFAULT)
    tasks = {"names": ["general_knowledge"], "questions": 32}
    commands = plan(DEFAULT | {"scores": {"tasks": tasks}, "search": {"objective": {"accuracy": 1.0}}})
    assert len(commands.pop("score_tasks")) == len(commands["score_blocks"])
    (extract,) = commands.pop("extract_score_tasks")
    assert '"names":["general_knowledge"],"questions":32' in extract
    (of_evaluation,) = commands["extract_tasks"]
    assert '"score_tasks":["general_knowledge"]' in of_evaluation
    assert "score_tasks" not in without["extract_tasks"][0]
    (collect,) = commands["collect_scores"]
    assert collect.count("/task_scores/") == len(commands["score_blocks"])
    changed = {rule for rule in without if commands.get(rule) != without[rule]}
    assert changed == {"extract_tasks", "collect_scores", "solve_mip", "drop_layers", "score_layers"}
    assert "score_layers" not in commands, "text has no answers to questions: no-ops order the layers"


@pytest.mark.skipif(find() is None, reason="llama.cpp is not installed")
def test_a_target_in_llama_cpp_plans_its_engine_s_jobs(plan: Callable[[dict], dict[str, list[str]]]) -> None:
    commands = plan(yaml.safe_load(FOR_LLAMA_CPP.read_text()))
    assert len(commands["measure_costs"]) == 4 + 5 + 1 + 4 + 3  # and the F16 parent, the reference
    assert all("llama.cpp" in command for command in commands["measure_costs"])
    mine = [f"results/smollm2-llama.cpp/targets/{name}/0/export/model.gguf" for name in ("fast", "as-q4_0")]
    assert len(commands["calibrate_costs"]) == 1
    assert all(len(commands[rule]) == 2 for rule in ("export_gguf", "evaluate_engine", "write_card"))
    written = [re.search(r"--floats=(\S+)", command)[1] for command in commands["export_parent"]]
    assert written == sorted(PARENT_TYPES)
    assert len(commands["evaluate_parent_engine"]) == 1
    in_llama_cpp, in_torch = sorted(commands["measure_speed"], key=lambda command: "--engine torch" in command)
    files = re.findall(r"\S+/model\.gguf", in_llama_cpp)
    assert files == [*(f"results/smollm2-llama.cpp/engines/parent/{name}/model.gguf" for name in PARENT_TYPES), *mine]
    assert "model.gguf" not in in_torch


@pytest.mark.parametrize("start", ["pieces", "closed-form"])
def test_pairs_add_their_jobs_and_change_no_other(
    plan: Callable[[dict], dict[str, list[str]]], default_plan: dict[str, list[str]], start: str
) -> None:
    coupled = {"pairs": ["gqa-1+width-.50", "no-op+linear"], "start": start}
    commands = plan(DEFAULT | {"library": DEFAULT["library"] | {"coupled": coupled, "layers_per_shard": 32}})
    trained, folder = commands.pop("distill_pairs"), "results/smollm2-structure/library"
    assert [re.search(r"--pieces (\S+)", command)[1] for command in trained] == [
        "block/gqa-1+width-0.5/00-29",
        "block/no-op+linear/00-29",
    ]
    given = f"--attention={folder}/attention/gqa-1/00-29.safetensors --ffn={folder}/ffn/width-0.5/00-29.safetensors "
    assert (given if start == "pieces" else "--attention= --ffn= ") in trained[0]
    scored = set(commands.pop("score_blocks")) - set(default_plan["score_blocks"])
    files = re.findall(r"--library (\S+) --output (\S+)", " ".join(sorted(scored)))
    assert files == [
        (f"{folder}/{name}.safetensors", f"results/smollm2-structure/scores/{name}.parquet")
        for name in ("block/gqa-1+width-0.5/00-29", "block/no-op+linear/00-29")
    ]
    (collected,) = commands.pop("collect_scores")
    assert all(score in collected for _, score in files)
    assert others(commands) == others(default_plan, "score_blocks", "collect_scores")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_target_in_vllm_plans_its_engine_s_jobs(
    plan: Callable[[dict], dict[str, list[str]]], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("TANGRAM_VLLM_PYTHON", sys.executable)
    config = copy.deepcopy(DEFAULT) | {"run": "mine", "device": device}
    limit = {"quantity": "throughput", "min": 1.3, "scenario": "chat"}
    config |= {"targets": {"fast": {"engine": "vllm", "constraints": [limit]}}, "primary_target": "fast"}
    commands = plan(config)
    variants = sum(len(config["library"][kind]) for kind in ("attention", "ffn"))
    assert len(commands["measure_costs"]) == variants + 4
    for rule in ("measure_costs", "calibrate_costs"):
        assert all("--engine=vllm" in command and f"device={device}" in command for command in commands[rule])
    assert all(len(commands[rule]) == 1 for rule in ("export_decilm", "evaluate_engine", "write_card"))
    assert "/export/decilm/model.safetensors" in commands["evaluate_engine"][0]
    assert not {"export_gguf", "export_parent", "evaluate_parent_engine"} & set(commands)
    in_torch, in_vllm = sorted(commands["measure_speed"], key=lambda command: "--engine vllm" in command)
    assert re.findall(r"\S+/model\.safetensors", in_vllm) == [
        f"results/mine/{folder}/model.safetensors" for folder in ("parent", "targets/fast/0/export/decilm")
    ]
    assert "decilm" not in in_torch
    assert "results/mine/speeds/vllm.parquet" in commands["write_card"][0]


def test_texts_and_files_of_tasks_plan_their_jobs(plan: Callable[[dict], dict[str, list[str]]], tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text("some text")
    (tmp_path / "mine.jsonl").write_text('{"question": "a?", "choices": ["x", "y"], "label": 0}')
    text = {"name": "wiki", "source": {"type": "local", "paths": [str(tmp_path / "wiki.txt")]}}
    tasks = [{"name": str(tmp_path / "mine.jsonl"), "num_fewshot": 5}, "arc_easy"]
    config = DEFAULT | {"evaluation": {"tasks": tasks, "perplexity": [text]}}
    commands = plan(config)
    assert len(commands["extract_tasks"]) == len(commands["evaluate_parent_perplexity"]) == 1
    for rule in ("extract_tasks", "evaluate_parent_perplexity"):
        assert re.search(r"--source-files=[0-9a-f]{16}", commands[rule][0])
    assert "evaluate_long_context" not in commands
    assert len(commands["evaluate_perplexity"]) == len(commands["evaluate_tasks"])
    assert all("--parent" not in command for command in commands["evaluate_perplexity"])


def test_long_context_plans_its_jobs_beside_the_others(plan: Callable[[dict], dict[str, list[str]]]) -> None:
    without = plan(DEFAULT)
    asked = DEFAULT["evaluation"] | {"long_context": {"lengths": [256, 512]}}
    commands = plan(DEFAULT | {"evaluation": asked})
    (parent,) = commands.pop("evaluate_parent_long_context")
    children = commands.pop("evaluate_long_context")
    assert "--child" not in parent
    assert "--corpus results/smollm2-structure/corpus/heldout.parquet" in parent
    assert len(children) == len(commands["evaluate_tasks"])
    assert all("--parent" not in command and "--finetuned" in command for command in children)
    assert others(commands) == others(without)


def _with_target(**settings: Any) -> dict:
    """Return the default targets with other settings of the primary one."""
    return {**DEFAULT["targets"], "speed-1.2": {**DEFAULT["targets"]["speed-1.2"], **settings}}


REACHES = {
    "scores.batch_size": (2, {"score_blocks", "score_layers"}),
    "scores.compute": ("bfloat16", {"score_blocks", "score_layers"}),
    "scores.label_samples": (9, set()),
    "corpus.score.sequence_length": (128, {"build_corpus"}),
    "targets": (_with_target(objective="cosine_distance"), {"solve_mip", "drop_layers"}),
    "library.bld.epochs": (9, {"distill_blocks"}),
    "finetune.schedule": ("linear", {"finetune_child"}),
    "finetune.budget": ({"epochs": 9}, {"finetune_child"}),
    "evaluation.task_limit": (9, {"evaluate_tasks", "evaluate_parent_tasks"}),
    "evaluation.batch_size": (9, {"evaluate_model", "evaluate_parent"}),
    "evaluation.throughput_repeats": (9, {"measure_speed"}),
    "search.time_limit": (9, {"solve_mip"}),
    "search.objective": ({"kl": 1, "lm_loss_increase": 0.5}, {"solve_mip", "drop_layers"}),
    "costs.repeats": (9, {"measure_costs", "calibrate_costs"}),
    "corpus.score.tokens": (99999, {"build_corpus"}),
    "activations.batch_size": (9, {"capture_activations"}),
    "parent.source.member": ("other.gguf", {"fetch_parent"}),
}


@pytest.mark.parametrize("key", REACHES)
def test_a_key_reaches_the_rules_that_depend_on_it_and_no_other(
    key: str, plan: Callable[[dict], dict[str, list[str]]], default_plan: dict[str, list[str]]
) -> None:
    value, expected = REACHES[key]
    changed = plan(_with(DEFAULT, key, value))
    assert {rule for rule in default_plan if changed[rule] != default_plan[rule]} == expected


def test_a_readout_is_one_more_job_and_changes_no_other(
    plan: Callable[[dict], dict[str, list[str]]], default_plan: dict[str, list[str]]
) -> None:
    changed = plan(_with(DEFAULT, "evaluation.readout", {"task": "intent_recognition"}))
    assert len(changed.pop("evaluate_readout")) == 1
    assert others(changed) == others(default_plan)


def test_trials_of_text_are_jobs_of_their_own(
    plan: Callable[[dict], dict[str, list[str]]], default_plan: dict[str, list[str]]
) -> None:
    texts = {"own": {"type": "parent-samples"}, "docs": {"type": "python-docs"}}
    two = plan(_with(DEFAULT, "text_trials", {"sources": texts}))
    assert len(two["try_text"]) == 2 * 3
    assert len(two["try_texts"]) == 1
    assert others(two, "try_text", "try_texts") == others(default_plan)
    three = plan(_with(DEFAULT, "text_trials", {"sources": {**texts, "code": {"type": "parent-samples"}}}))
    assert set(two["try_text"]) < set(three["try_text"]), "a new text reruns no other"
    assert len(three["try_text"]) == 3 * 3
    other = _with(_with(DEFAULT, "text_trials", {"sources": texts}), "finetune.learning_rate", 1e-3)
    assert not set(plan(other)["try_text"]) & set(two["try_text"])


STUDIES = {
    "study_triplet": {"fetch_fashion_mnist"},
    "study_spatial_contrast": {"fetch_bigbench_images"},
    "study_metric_embedding": {"fetch_bigbench_images"},
}


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_of_images_needs_only_images_in_any_folder(study: str, tmp_path: Path) -> None:
    done = snakemake("-n", study, "--directory", tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    local = snakemake(
        "-n",
        "-p",
        study,
        "--directory",
        tmp_path,
        "--config",
        f"studies={{image_file: {ROOT / 'README.md'}}}",
        cwd=ROOT,
    )
    text = local.stdout + local.stderr
    assert local.returncode == 0, text
    assert f" images={ROOT / 'README.md'} " in text
    assert {rule for rule, _ in shown_jobs(text)} == {study} | (
        STUDIES[study] if study == "study_spatial_contrast" else set()
    )


def test_a_new_variant_adds_jobs_and_changes_no_other_piece(
    plan: Callable[[dict], dict[str, list[str]]], default_plan: dict[str, list[str]]
) -> None:
    changed = plan(_with(DEFAULT, "library.ffn", [*DEFAULT["library"]["ffn"], "width-0.9"]))
    for rule in ("distill_blocks", "score_blocks", "measure_costs"):
        added = set(changed[rule]) - set(default_plan[rule])
        assert set(default_plan[rule]) <= set(changed[rule])
        assert added
        assert all("width-0.9" in command for command in added)
    assert all(changed[rule] == default_plan[rule] for rule in ("solve_mip", "assemble_child", "finetune_child"))


def test_compensation_reads_the_distill_split(
    plan: Callable[[dict], dict[str, list[str]]], default_plan: dict[str, list[str]]
) -> None:
    compensated = plan(_with(DEFAULT, "assembly", {"compensate": True, "ridge": 0.7}))
    assert len(compensated["assemble_child"]) == len(default_plan["assemble_child"])
    assert all("corpus/distill.parquet" in job and "--ridge=0.7" in job for job in compensated["assemble_child"])
    assert not any("--corpus=results" in job for job in default_plan["assemble_child"])
    assert all(compensated[rule] == default_plan[rule] for rule in default_plan if rule != "assemble_child")
    assert plan(_with(DEFAULT, "assembly", {"ridge": 0.7})) == default_plan


SCORED = ("score_blocks", "collect_scores", "score_screened")


@pytest.fixture(scope="module")
def screened_plan(plan: Callable[[dict], dict[str, list[str]]]) -> dict[str, list[str]]:
    return plan(_with(DEFAULT, "scores.method", "screened"))


def test_screened_scores_are_one_job(screened_plan: dict[str, list[str]], default_plan: dict[str, list[str]]) -> None:
    assert len(screened_plan["score_screened"]) == 1
    assert not {"score_blocks", "collect_scores"} & set(screened_plan)
    assert all(screened_plan[rule] == default_plan[rule] for rule in default_plan if rule not in SCORED)


OF_SCREENING = {
    "scores.label_samples": (9, {"score_screened"}),
    "scores.position_stride": (2, {"score_screened", "score_layers"}),
    "scores.compute": ("bfloat16", {"score_screened", "score_layers"}),
    "search.time_limit": (9, {"score_screened", "solve_mip"}),
    "search.sensitivity": (False, {"solve_mip"}),
    "targets": (_with_target(max_shared=0.5), {"score_screened", "solve_mip"}),
}


@pytest.mark.parametrize("key", OF_SCREENING)
def test_a_key_of_screening_reaches_its_job(
    key: str, plan: Callable[[dict], dict[str, list[str]]], screened_plan: dict[str, list[str]]
) -> None:
    value, expected = OF_SCREENING[key]
    changed = plan(_with(_with(DEFAULT, "scores.method", "screened"), key, value))
    assert {rule for rule in screened_plan if changed[rule] != screened_plan[rule]} == expected


@pytest.fixture(scope="module")
def quantized_plan(plan: Callable[[dict], dict[str, list[str]]]) -> dict[str, list[str]]:
    """The plan of two quantized FFNs, of which one has a source outside the library, and everything in int8."""
    ffn = [*DEFAULT["library"]["ffn"], "width-0.9@bf16"]
    precisions = {"attention": ["int8"], "head": ["int8"], "ffn": ["int8"]}
    return plan(_with(_with(DEFAULT, "library.ffn", ffn), "library.precisions", precisions))


def test_quantized_pieces_are_made_from_trained_ones(quantized_plan: dict[str, list[str]]) -> None:
    jobs = {re.search(r"--pieces (\S+)", command)[1]: command for command in quantized_plan["quantize_blocks"]}
    of_int8 = {f"{kind}/{name}@int8/00-29" for kind in ("attention", "ffn") for name in ("parent", "linear")}
    of_int8 |= {"attention/gqa-1@int8/00-29", "head/parent@int8/00-00"}
    of_int8 |= {f"ffn/width-{ratio}@int8/00-29" for ratio in (0.75, 0.5, 0.25)}
    assert jobs.keys() == {*of_int8, "ffn/width-0.9@bf16/00-29"}
    for pieces, command in jobs.items():
        kind, variant, shard = pieces.split("/")
        source = variant.partition("@")[0]
        path = "" if source == "parent" else f"results/smollm2-structure/library/{kind}/{source}/{shard}.safetensors"
        assert re.search(r" --source=(\S*) ", command)[1].strip("'") == path
        assert " --library results/smollm2-structure/library/" + pieces + ".safetensors " in command


def test_a_source_alone_is_trained_but_neither_scored_nor_timed(quantized_plan: dict[str, list[str]]) -> None:
    trained, scored, timed = (
        {command for command in quantized_plan[rule] if "width-0.9" in command}
        for rule in ("distill_blocks", "score_blocks", "measure_costs")
    )
    assert (len(trained), len(scored), len(timed)) == (1, 1, 1)
    assert all("@bf16" in command for command in scored | timed)
    assert not any("@" in command for command in quantized_plan["distill_blocks"])


def test_precisions_change_no_job_of_the_other_pieces(
    quantized_plan: dict[str, list[str]], default_plan: dict[str, list[str]]
) -> None:
    for rule in ("distill_blocks", "score_blocks", "measure_costs", "solve_mip", "drop_layers"):
        assert set(default_plan[rule]) <= set(quantized_plan[rule])
    assert "quantize_blocks" not in default_plan
    assert "uniform_precision" not in default_plan


def test_a_uniform_rival_is_a_child_of_the_primary_target(
    quantized_plan: dict[str, list[str]], default_plan: dict[str, list[str]]
) -> None:
    (search,) = quantized_plan["uniform_precision"]
    assert " --solutions results/smollm2-structure/targets/speed-1.2/solutions/uniform.json " in search
    for rule in ("pin_architecture", "assemble_child", "finetune_child", "evaluate_model"):
        (rival,) = (command for command in quantized_plan[rule] if "/uniform-" in command or "uniform-int8" in command)
        assert len(quantized_plan[rule]) == len(default_plan[rule]) + 1
        assert "speed-1.2" in rival


def others(commands: dict[str, list[str]], *rules: str) -> dict[str, list[str]]:
    """Return the commands of all rules but these and the report's, which knows what the config asks for."""
    return {rule: jobs for rule, jobs in commands.items() if rule not in (*rules, "build_report")}


def _with(config: dict, key: str, value: Any) -> dict:
    config = copy.deepcopy(config)
    *parents, last = key.split(".")
    section = config
    for name in parents:
        section = section.setdefault(name, {})
    section[last] = value
    return config


def test_lint_is_clean() -> None:
    done = snakemake("--lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_slurm_profile_parses() -> None:
    done = snakemake("--profile", "slurm", "-n", "--quiet", "rules")
    assert done.returncode == 0, done.stdout + done.stderr
