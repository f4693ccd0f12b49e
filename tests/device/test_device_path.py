"""Every stage's command on a device: all tensors are moved there, and results equal those of the CPU."""

import dataclasses
import functools
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pretend_device import pretend
from safetensors.torch import load_file

from tangram import timing
from tangram.activations import StreamedActivations
from tangram.blocks.architecture import Architecture, LayerChoice, pieces_of, save_architecture
from tangram.cli import Pieces, Runtime
from tangram.commands.assemble_child import assemble_child
from tangram.commands.build_corpus import build_corpus
from tangram.commands.calibrate_costs import calibrate_costs
from tangram.commands.capture_activations import capture_activations
from tangram.commands.collect_tables import collect_tables
from tangram.commands.distill_blocks import distill_blocks
from tangram.commands.evaluate_long_context import evaluate_long_context
from tangram.commands.evaluate_model import evaluate_model
from tangram.commands.evaluate_readout import evaluate_readout
from tangram.commands.evaluate_tasks import evaluate_tasks
from tangram.commands.extract_tasks import extract_tasks
from tangram.commands.finetune_child import finetune_child
from tangram.commands.measure_costs import measure_costs
from tangram.commands.measure_speed import measure_speed
from tangram.commands.score_blocks import score_blocks
from tangram.commands.score_tasks import score_tasks
from tangram.commands.select_child import select_child
from tangram.costs import torch_engine
from tangram.library.pieces import read_library
from tangram.models.by_layer import meta_model
from tangram.models.loading import load_model
from tangram.scores.questions import Asked, save_questions
from tangram.search.solutions import load_solutions
from tangram.selection.assembled import AssembledScores
from tangram.selection.candidates import layer_importance
from tangram.selection.judge import JudgedScores
from tangram.tables import CORPUS, write_table
from tangram.training.parallel import World
from tangram_studies.blocks import butterfly as butterfly_block


def by_field(command):
    """Let a command take the fields of its runtime as arguments."""

    @functools.wraps(command)
    def call(*arguments, **options):
        fields = {field.name: options.pop(field.name) for field in dataclasses.fields(Runtime) if field.name in options}
        return command(*arguments, **options, runtime=Runtime(**fields))

    return call


build_corpus, calibrate_costs, capture_activations = map(by_field, (build_corpus, calibrate_costs, capture_activations))
distill_blocks, evaluate_model, evaluate_readout = map(by_field, (distill_blocks, evaluate_model, evaluate_readout))
evaluate_tasks, finetune_child, assemble = map(by_field, (evaluate_tasks, finetune_child, assemble_child))
measure_costs, score_blocks, select_child = map(by_field, (measure_costs, score_blocks, select_child))
measure_speed, score_tasks, evaluate_long_context = map(by_field, (measure_speed, score_tasks, evaluate_long_context))

LAYERS, LENGTH = "00-02", 24
STRUCTURED = ("butterfly-4", "lowrank-4", "ntk-4", "monarch")
REMOVED = ("linear", "linear-unbiased", "constant", "no-op")
VARIANTS = [
    *(("attention", variant) for variant in ("gqa-1", "gqa-mean-1", "heads-2", "window-8", *REMOVED, *STRUCTURED)),
    *(("ffn", variant) for variant in ("width-0.5", *REMOVED, *STRUCTURED)),
]
LIBRARY = {kind: [v for k, v in VARIANTS if k == kind] for kind in ("attention", "ffn")}
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {},
}
SCENARIOS = {"chat": {"prefill": 8, "generate": 2, "batch_sizes": [2]}}
every_piece = pytest.mark.parametrize(("kind", "variant"), VARIANTS, ids=map(" ".join, VARIANTS))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Restore threads, seeds and modes after each test; shorten timing."""
    torch.set_num_threads(1)
    monkeypatch.setattr(torch_engine, "COPIES", (1, 1))
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 1e-9)
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True, scope="module")
def few_steps():
    """Learn the angles of butterflies for a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(butterfly_block, "LEARNING_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def parent(tiny_parent):
    return str(tiny_parent("llama", **FAMILIES["llama"]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder for the shared inputs of all tests."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def tokens(made):
    """Sequences of random tokens as a split's table."""
    ids = torch.randint(3, 300, (8, LENGTH), generator=torch.Generator().manual_seed(1))
    facts = {"source": "made", "documents": ["d"], "document_starts": [0]}
    rows = [{"sequence_id": i, "input_ids": row, **facts} for i, row in enumerate(ids.tolist())]
    write_table(rows, CORPUS, made / "corpus.parquet")
    return str(made / "corpus.parquet")


@pytest.fixture(scope="module")
def cache(made, parent, tokens):
    """The parent's activations, computed on the CPU."""
    capture_activations('{"batch_size": 4}', parent, tokens, str(made / "cache.npy"))
    return str(made / "cache.npy")


SPANS = {"weight": 0.5, "projection": 8, "spans": 3, "shortest": 2, "longest": 4}
BLD = {"epochs": 1, "batch_size": 2}


def distilled(folder, kind, variant, parent, corpus, settings=BLD, **options):
    """Run a distillation; return its folder."""
    paths = [str(folder / name) for name in ("state", "00-02.safetensors", "table.parquet", "curves.parquet")]
    distill_blocks(json.dumps(settings), Pieces(kind, variant, range(3)), parent, corpus, *paths, **options)
    return folder


@pytest.fixture(scope="module")
def pieces(made, parent, tokens, cache):
    """Return a function that gives a piece's folder in the library, as distilled on the CPU."""

    @functools.cache
    def piece(kind, variant):
        return distilled(made / "library" / kind / variant, kind, variant, parent, tokens, activations=cache)

    return piece


def finetuned(folder, child, parent, corpus, settings, **options):
    """Run a finetuning; return its folder."""
    paths = [str(folder / name) for name in ("state", "finetuned", "curves.parquet")]
    finetune_child(json.dumps(settings), parent, str(child), corpus, *paths, **options)
    return folder


@pytest.fixture(scope="module")
def child(made, parent, pieces):
    """A child of every kind of piece."""
    layers = (LayerChoice("gqa-1", "butterfly-4"), LayerChoice("linear", "width-0.5"), LayerChoice("monarch", "no-op"))
    for layer in layers:
        pieces("attention", layer.attention), pieces("ffn", layer.ffn)
    save_architecture(Architecture(layers), {}, made / "architecture.json")
    assemble_child(parent, str(made / "architecture.json"), str(made / "library"), LAYERS, str(made / "child"))
    return made / "child"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Write a package of two tasks into the folder of downloads; return its config entry."""
    monkeypatch.chdir(tmp_path)
    examples = [
        {"input": f"Is {i} odd or even, given that {i} is {i}?", "target_scores": {"odd": i % 2, "even": 1 - i % 2}}
        for i in range(20)
    ]
    content = json.dumps({"name": "parity", "examples": examples}).encode()
    (tmp_path / ".downloads").mkdir()
    path = tmp_path / ".downloads" / "bigbench-1.0.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("bigbench-1.0.0/bigbench/benchmark_tasks/parity/task.json")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"package": "bigbench==1.0.0", "format": "sdist", "archive_sha256": checksum}


def on_device(run, *arguments, **options):
    """Call a function with `device="cuda"`; check that it has matrix products, all on the device."""
    with pretend() as products:
        found = run(*arguments, **options, device="cuda")
    assert products["cuda"]
    assert not products["cpu"]
    return found


def on_both(run):
    """Call a function on the CPU and on the device; return both results."""
    return run(device="cpu"), on_device(run)


def assert_alike(here: Path, there: Path, rtol: float = 1e-3, atol: float = 1e-4):
    """Compare two files that a command wrote on two devices, except measured seconds."""
    if here.suffix == ".safetensors":
        one, other = load_file(here), load_file(there)
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
        return
    one, other = (pd.read_parquet(path) for path in (here, there))
    timed = [column for column in one if column.endswith(("seconds", "spread"))]
    pd.testing.assert_frame_equal(*(table.drop(columns=timed) for table in (other, one)), rtol=rtol, atol=atol)


def assert_folders_alike(here: Path, there: Path, *names: str, **tolerances: float):
    for name in names:
        assert_alike(here / name, there / name, **tolerances)


PIECE = ("00-02.safetensors", "table.parquet", "curves.parquet")
CHILD = ("finetuned/model.safetensors", "curves.parquet")


def test_a_parent_writes_the_same_corpus(parent, tmp_path):
    split = {"tokens": 5 * LENGTH, "sources": [{"type": "parent-samples", "batch_size": 3}]}
    settings = json.dumps({"sequence_length": LENGTH, "cross_documents": False, "split": split})
    on_both(lambda device: build_corpus(settings, "distill", parent, str(tmp_path / device), seed=1, device=device))
    assert_alike(tmp_path / "cpu", tmp_path / "cuda", 0, 0)


@pytest.mark.parametrize("by_layer", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_of_every_family(family, by_layer, tiny_parent, tokens, tmp_path):
    folder = str(tiny_parent(family, **FAMILIES[family]))

    def run(device):
        path = str(tmp_path / f"{device}.npy")
        capture_activations('{"batch_size": 3}', folder, tokens, path, by_layer=by_layer, device=device)
        return np.load(path)

    here, there = on_both(run)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "by_layer"), [*zip(FAMILIES, (0, 1, 1, 0), strict=True)])
def test_pieces_of_every_family_from_a_stream(family, by_layer, tiny_parent, tokens, tmp_path):
    folder, settings = (
        str(tiny_parent(family, **FAMILIES[family])),
        {"epochs": 1, "batch_size": 4, "normalize": "token"},
    )
    for kind, variant in (("attention", "gqa-1"), ("ffn", "width-0.5")):
        here, there = on_both(
            lambda device, where=(kind, variant): distilled(
                tmp_path / device / where[0], *where, folder, tokens, settings, by_layer=by_layer, device=device
            )
        )
        assert_folders_alike(here, there, *PIECE)


@every_piece
def test_a_piece_is_distilled(kind, variant, parent, tokens, cache, pieces, tmp_path):
    expected = pieces(kind, variant)
    found = on_device(distilled, tmp_path, kind, variant, parent, tokens, activations=cache)
    assert_folders_alike(expected, found, *PIECE)


@pytest.mark.parametrize("projection", [0, 8])
def test_a_piece_is_distilled_with_spans(projection, parent, tokens, cache, tmp_path):
    settings = {**BLD, "span_contrast": {**SPANS, "projection": projection}}
    problem = ("attention", "gqa-1", parent, tokens, settings)
    here, there = on_both(lambda device: distilled(tmp_path / device, *problem, activations=cache, device=device))
    assert_folders_alike(here, there, *PIECE)


@pytest.mark.parametrize("by_layer", [0, 1])
def test_removed_subblocks_are_compensated(by_layer, made, parent, tokens, pieces, tmp_path):
    choices = Architecture((LayerChoice("gqa-1", "no-op"), LayerChoice(ffn="width-0.5"), LayerChoice("no-op")))
    for _, kind, variant, _ in choices.stored():
        pieces(kind, variant)
    save_architecture(choices, {}, tmp_path / "architecture.json")
    arguments = (parent, str(tmp_path / "architecture.json"), str(made / "library"), LAYERS)
    options = {"corpus": tokens, "ridge": "0.1", "by_layer": by_layer}
    on_both(lambda device: assemble(*arguments, str(tmp_path / device), **options, device=device))
    assemble_child(*arguments, str(tmp_path / "plain"))
    assert_alike(tmp_path / "cpu" / "model.safetensors", tmp_path / "cuda" / "model.safetensors")
    plain, fitted = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "cuda"))
    moved = {name for name, tensor in plain.items() if not torch.equal(tensor, fitted[name])}
    assert moved == {"model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"}


class KilledError(Exception):
    """Simulates the kill of a process."""


@pytest.fixture
def killed_after(monkeypatch):
    """Return a function that runs a training and kills it after some steps."""

    def run(steps, something, *arguments, **options):
        clip, left = torch.nn.utils.clip_grad_norm_, [steps]

        def kill(*arguments, **options):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return clip(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.utils, "clip_grad_norm_", kill)
            with pytest.raises(KilledError):
                on_device(something, *arguments, **options, checkpoint_seconds=0)

    return run


def test_a_killed_distillation_goes_on(parent, tokens, cache, pieces, killed_after, tmp_path, capsys):
    expected = pieces("ffn", "width-0.5")
    run = functools.partial(distilled, tmp_path, "ffn", "width-0.5", parent, tokens, activations=cache)
    killed_after(6, run)  # within the second layer, at 4 steps per layer
    found = on_device(run)
    printed = capsys.readouterr().err
    assert "layer 0 was finished before a kill" in printed
    assert "resuming from step 2 of 4" in printed
    assert_folders_alike(expected, found, *PIECE)


def test_a_killed_distillation_with_spans_goes_on(parent, tokens, cache, killed_after, tmp_path, capsys):
    settings = {**BLD, "span_contrast": SPANS}
    expected = distilled(tmp_path / "cpu", "ffn", "lowrank-4", parent, tokens, settings, activations=cache)
    run = functools.partial(distilled, tmp_path, "ffn", "lowrank-4", parent, tokens, settings, activations=cache)
    killed_after(2, run)
    assert_folders_alike(expected, on_device(run), *PIECE)
    assert "resuming from step 2 of 4" in capsys.readouterr().err


@every_piece
def test_a_piece_is_scored(kind, variant, parent, tokens, cache, pieces, tmp_path):
    library = str(pieces(kind, variant) / "00-02.safetensors")
    options = {"activations": cache if kind == "ffn" else None, "by_layer": int(variant == "linear")}
    scored = ('{"batch_size": 3}', Pieces(kind, variant, range(3)), parent, tokens, library)
    on_both(lambda device: score_blocks(*scored, str(tmp_path / device), **options, device=device))
    assert_alike(tmp_path / "cpu", tmp_path / "cuda")


@pytest.mark.parametrize(("kind", "variant"), [("attention", "gqa-1"), ("ffn", "linear"), ("ffn", "no-op")])
def test_a_piece_is_scored_by_answers(kind, variant, parent, pieces, tmp_path):
    library = str(pieces(kind, variant) / "00-02.safetensors")
    asked = [Asked("mine", f"Is it {i}?", (" yes", " no, not at all"), i % 2) for i in range(5)]
    save_questions(asked, tmp_path / "questions.json")
    scored = (Pieces(kind, variant, range(3)), str(tmp_path / "questions.json"), parent, library)
    by_layer = int(variant == "linear")
    on_both(lambda device: score_tasks(*scored, str(tmp_path / device), device=device, by_layer=by_layer))
    assert_alike(tmp_path / "cpu", tmp_path / "cuda")
    assert set(pd.read_parquet(tmp_path / "cpu").metric) == {"accuracy", "margin"}


def test_costs_are_measured_and_calibrated(parent, tmp_path):
    settings = {"costs": {"repeats": 3, "stack_megabytes": 1}, "scenarios": SCENARIOS}
    tables = []
    for kind, variants in {"head": [], **LIBRARY}.items():
        for variant in ("parent", *variants):
            tables.append(str(tmp_path / f"{kind}-{variant}.parquet"))
            on_device(measure_costs, json.dumps(settings), kind, variant, parent, tables[-1])
    tables.append(str(tmp_path / "model.parquet"))
    with pretend():  # the rest of a model has no matrix product
        measure_costs(json.dumps(settings), "model", "parent", parent, tables[-1], device="cuda")
    collect_tables("costs", str(tmp_path / "costs.parquet"), tables)
    path = tmp_path / "calibration.parquet"
    settings["library"] = LIBRARY
    on_device(calibrate_costs, json.dumps(settings), str(tmp_path / "costs.parquet"), parent, str(path))
    assert set(pd.read_parquet(tmp_path / "costs.parquet").device) == {"cuda"}
    assert (pd.read_parquet(path).measured_seconds > 0).all()


FINETUNING = {
    "from a cache": {},
    "from a stream": {"cosine_weight": 0, "lm_weight": 0.5},
    "without the head": {"kl_weight": 0, "micro_batch_size": 1, "weight_decay": 0.1},
    "with spans": {"span_contrast": SPANS},
}


@pytest.mark.parametrize("name", FINETUNING)
def test_a_child_is_finetuned(name, child, parent, tokens, cache, tmp_path):
    states = None if name == "from a stream" else cache
    here, there = on_both(
        lambda device: finetuned(
            tmp_path / device, child, parent, tokens, FINETUNING[name], activations=states, device=device
        )
    )
    assert_folders_alike(here, there, *CHILD)
    load_model(there / "finetuned")


def test_a_killed_finetuning_goes_on(child, parent, tokens, cache, killed_after, tmp_path, capsys):
    problem, options = (child, parent, tokens, {"budget": {"epochs": 2}}), {"activations": cache}
    expected = on_device(finetuned, tmp_path / "undisturbed", *problem, **options)
    killed_after(5, finetuned, tmp_path / "killed", *problem, **options)
    found = on_device(finetuned, tmp_path / "killed", *problem, **options)
    assert "resuming from step 5 of 8" in capsys.readouterr().err
    assert_folders_alike(expected, found, *CHILD, rtol=0, atol=0)


def test_a_model_without_weights_is_filled(child):
    """Each process of a sharded training fills a model without weights; here, one process gets all weights."""
    ids = torch.randint(3, 300, (2, 8), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def logits(device):
        model = meta_model(child, "float32")
        World(device=device).load(model, child)
        return model(input_ids=ids.to(device)).logits.cpu()

    here, there = on_both(logits)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(here, load_model(child)(input_ids=ids).logits)


@pytest.mark.parametrize("of", ["parent", "child"])
def test_a_model_is_evaluated(of, child, parent, tokens, cache, tmp_path):
    settings = json.dumps({"evaluation": {"batch_size": 3}})
    options = {} if of == "parent" else {"child": str(child), "finetuned": str(child), "activations": cache}

    def run(device):
        sequences = str(tmp_path / f"{device}-sequences")
        evaluate_model(settings, parent, tokens, str(tmp_path / device), sequences, **options, device=device)
        return pd.read_parquet(tmp_path / device)

    pd.testing.assert_frame_equal(*on_both(run), rtol=1e-3, atol=1e-4)
    assert_alike(tmp_path / "cpu-sequences", tmp_path / "cuda-sequences")


def test_models_are_timed(child, parent, pretend_cuda, tmp_path):
    settings = json.dumps({"evaluation": {}, "scenarios": SCENARIOS})
    weights = shutil.copytree(child, tmp_path / "fast" / "0" / "child") / "model.safetensors"
    models = [str(Path(parent) / "model.safetensors"), str(weights)]
    measure_speed("torch", settings, str(tmp_path / "speeds"), models, device="cuda")
    rows = pd.read_parquet(tmp_path / "speeds")
    assert {"parent", "packed parent", "child"} == set(rows.model)
    assert (rows.value > 0).all()
    assert pretend_cuda["cuda"] > 0
    assert pretend_cuda["cpu"] == 0


def test_tasks_are_answered(child, parent, archive, tmp_path):
    questions = str(tmp_path / "questions.json")
    extract_tasks(json.dumps({"tasks": ["parity"], "task_archive": archive}), questions)
    models = {"parent": parent, "child": str(child), "finetuned": str(child)}
    on_both(
        lambda device: evaluate_tasks(
            "{}", questions, str(tmp_path / f"work-{device}"), str(tmp_path / device), **models, device=device
        )
    )
    assert_alike(tmp_path / "cpu", tmp_path / "cuda")
    rows = pd.read_parquet(tmp_path / "cpu").set_index(["task", "sample", "metric"])
    assert rows[rows.model == "child"].value.equals(rows[rows.model == "finetuned"].value)


def test_long_texts_are_asked_about(child, parent, tokens, tmp_path):
    settings = json.dumps({"long_context": {"lengths": [120], "tasks": ["needle"], "choices": 2, "questions": 3}})
    models = {"parent": parent, "child": str(child), "finetuned": str(child)}
    on_both(lambda device: evaluate_long_context(settings, tokens, str(tmp_path / device), **models, device=device))
    assert_alike(tmp_path / "cpu", tmp_path / "cuda")
    rows = pd.read_parquet(tmp_path / "cpu")
    assert len(rows) == 3 * 3 * 3  # models, questions, metrics


def test_classes_are_read_out(child, parent, archive, tmp_path):
    settings = json.dumps({"readout": {"task": "parity", "labels": [1], "draws": 2}, "archive": archive})
    models = (parent, str(child), str(child))
    evaluate_readout(settings, *models, str(tmp_path / "cpu"))
    with pretend() as products:  # readouts run on the CPU
        evaluate_readout(settings, *models, str(tmp_path / "cuda"), device="cuda")
    assert products["cuda"] > products["cpu"]
    assert_alike(tmp_path / "cpu", tmp_path / "cuda")


CANDIDATES = [
    (LayerChoice("gqa-1", "butterfly-4"), LayerChoice("linear", "width-0.5"), LayerChoice("monarch", "no-op")),
    (LayerChoice("gqa-1", "lowrank-4"), LayerChoice("no-op", "linear"), LayerChoice("butterfly-4", "parent")),
    (LayerChoice("ntk-4", "ntk-4"), LayerChoice("parent", "monarch"), LayerChoice("lowrank-4", "parent")),
]


@pytest.fixture
def selecting(parent, tokens, made, pieces, tmp_path):
    """Return a function of metric and device that selects a candidate, in a folder with the device's name."""
    for layer in (layer for candidate in CANDIDATES for layer in candidate):
        for kind, variant in pieces_of(layer):
            if variant != "parent":
                pieces(kind, variant)
    candidates = [{"layers": [vars(layer) for layer in candidate], "head": "parent"} for candidate in CANDIDATES]
    (tmp_path / "candidates.json").write_text(json.dumps({"candidates": candidates}))
    given = (parent, tokens, str(made / "library"), LAYERS, str(tmp_path / "candidates.json"))
    names = ("cache.npz", "solution.json", "table.parquet", "summary.json")

    def select(metric, device):
        settings = {"policy": "sign-halving", "metric": metric, "budget": 1.0, "prompt_tokens": 8, "batch_size": 5}
        settings |= {"continuation_tokens": 3, "checkpoint_seconds": 1e-9}
        select_child(json.dumps(settings), *given, *(str(tmp_path / device / name) for name in names), device=device)

    return select


@pytest.mark.parametrize("metric", ["kl", "lm_loss", "judge"])
def test_a_child_is_selected(metric, selecting, tmp_path):
    on_both(functools.partial(selecting, metric))
    assert_alike(tmp_path / "cpu" / "table.parquet", tmp_path / "cuda" / "table.parquet")
    one, other = (load_solutions(tmp_path / device / "solution.json") for device in ("cpu", "cuda"))
    assert one == other


def test_a_killed_selection_goes_on(selecting, tmp_path, monkeypatch):
    measured = []

    def measure(scores, arms, prompts, own=JudgedScores._measure):
        if len(measured) == 3 and kills:
            raise KilledError
        measured.append(len(arms) * len(prompts))
        return own(scores, arms, prompts)

    monkeypatch.setattr(JudgedScores, "_measure", measure)
    kills = False
    selecting("judge", device="cpu")
    whole, kills = sum(measured), True
    measured.clear()
    with pytest.raises(KilledError):
        on_device(selecting, "judge")
    kills = False
    on_device(selecting, "judge")
    assert sum(measured) == whole  # no cell twice
    assert_alike(tmp_path / "cpu" / "table.parquet", tmp_path / "cuda" / "table.parquet")


def test_layers_are_left_out_one_by_one(parent):
    prompts = torch.randint(3, 300, (5, 8), generator=torch.Generator().manual_seed(1))
    one, other = on_both(lambda device: layer_importance(load_model(parent, device=device), prompts, 2))
    np.testing.assert_allclose(other, one, rtol=1e-4)


def test_assembled_children_are_scored(parent, made, pieces):
    for layer in (layer for candidate in CANDIDATES for layer in candidate):
        for kind, variant in pieces_of(layer):
            if variant != "parent":
                pieces(kind, variant)
    text = torch.randint(3, 300, (5, 8), generator=torch.Generator().manual_seed(1))

    def run(device):
        model, library = load_model(parent, device=device), read_library(made / "library", (LAYERS,))
        truth = AssembledScores(model, StreamedActivations(model, text, 2), text, library, 2)
        return truth.look([Architecture(candidate) for candidate in CANDIDATES])

    one, other = on_both(run)
    np.testing.assert_allclose(other, one, rtol=1e-3)


def test_low_precision(child, parent, tokens, tmp_path):
    def run(device):
        where = {"dtype": "bfloat16", "device": device}
        folder = distilled(tmp_path / device, "attention", "gqa-1", parent, tokens, **where)
        library, scores = str(folder / "00-02.safetensors"), folder / "scores.parquet"
        score_blocks("{}", Pieces("attention", "gqa-1", range(3)), parent, tokens, library, str(scores), **where)
        finetuned(folder / "child", child, parent, tokens, {}, **where)
        return pd.read_parquet(scores), pd.read_parquet(folder / "child" / "curves.parquet")

    for one, other in zip(*on_both(run), strict=True):
        # The most likely token of one position of 24 may be another one, as bfloat16 has many ties.
        allowed = np.where(one.metric == "agreement", 1 / 24 + 1e-6, 0.01 + 0.05 * one.value.abs())
        assert ((other.value - one.value).abs() <= allowed).all()
    (weights,) = {tensor.dtype for tensor in load_file(tmp_path / "cuda/child/finetuned/model.safetensors").values()}
    assert weights == torch.bfloat16


def test_an_output_matrix_of_deficient_rank_is_recovered():
    from types import SimpleNamespace

    from tangram.blocks.moments import inner_activations

    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(32, 5, generator=generator) @ torch.randn(5, 48, generator=generator)
    outputs = torch.randn(40, 48, generator=generator) @ matrix.T

    def recovered(device):
        attention = SimpleNamespace(o_proj=SimpleNamespace(weight=matrix.to(device), bias=None))
        return inner_activations(attention, torch.zeros(40, 32).to(device), outputs.to(device)).cpu().float()

    with pretend():
        there = recovered("cuda")
    for found in (recovered("cpu"), there):
        torch.testing.assert_close(found @ matrix.T, outputs, rtol=1e-4, atol=1e-3)
