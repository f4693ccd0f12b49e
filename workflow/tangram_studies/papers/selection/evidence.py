"""Evidence on children of a run: their scores on every prompt, and the importance of the parent's layers."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from tangram.child.assemble import WEIGHTS_FILE
from tangram.cli import model_folder
from tangram.config import Packing, ParentSamples, PythonDocs, Scenario, Search, Section, Studies, Target
from tangram.corpus.documents import documents
from tangram.corpus.packing import pack
from tangram.corpus.sampling import parent_samples
from tangram.corpus.tokens import read_tokens
from tangram.files import atomic_path
from tangram.library.pieces import read_library
from tangram.models.loading import load_model, load_tokenizer
from tangram.provenance import code_hash, fingerprint
from tangram.search.problem import Settings as ProblemSettings
from tangram.search.problem import load_problem
from tangram.search.solve import solve
from tangram.selection.candidates import CandidateScores, cut_prompts, layer_importance, shared_layers
from tangram_studies.code import modules_of_study
from tangram_studies.study import Job, print_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32
REPORTED = 64  # prompts per split that is only reported
CALIBRATION = 16  # prompts per domain for the importance of layers


class Settings(Section):
    """The slices of config that this study depends on."""

    studies: Studies
    target: Target
    search: Search
    scenarios: dict[str, Scenario]


@dataclass(frozen=True)
class Scale:
    """The size of the study.

    Attributes:
        candidates: solutions to compare.
        prompts: prompts for selection.
        prompt_tokens: tokens of a prompt.
        replications: orders of the prompts.
        votes: budgets of votes.
        claimed: budget of votes of the claim.
        layer_rounds: batches of the online ranking of layers.
    """

    candidates: int
    prompts: int
    prompt_tokens: int
    replications: int
    votes: tuple[int, ...] = (250, 500, 1000, 2000, 4000)
    claimed: int = 1000
    layer_rounds: int = 400


SCALES = {"small": Scale(16, 512, 16, 200), "full": Scale(32, 2048, 64, 1000)}


@dataclass(frozen=True)
class Evidence:
    """Measurements on the models.

    Attributes:
        scores: KL of each candidate on each prompt for selection, ``(candidates, prompts)``.
        reported: KL on prompts of other splits, for reporting only, ``(candidates, prompts)``.
        objectives: the solver's sums of scores, ``(candidates,)``.
        prompt_tokens: tokens of a prompt.
        importance: KL of the parent to the parent without each layer, ``(prompts, layers)``.
        domains: the domain of each prompt of ``importance``, ``(prompts,)``.
        shared: share of layer passes saved because candidates agree on their first layers.
    """

    scores: np.ndarray
    reported: np.ndarray
    objectives: np.ndarray
    prompt_tokens: int
    importance: np.ndarray
    domains: np.ndarray
    shared: float


def save_evidence(evidence: Evidence, path: str | Path) -> None:
    """Write the measurements as ``.npz``, for replays of other policies."""
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(evidence).items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def load_evidence(path: str | Path) -> Evidence:
    """Return the evidence in a file of `save_evidence`."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Evidence(**{name: array if array.ndim else array.item() for name, array in arrays.items()})


def unfinished(job: Job) -> tuple[Path, Path]:
    """Return the files from which a killed run resumes: scores of candidates, importance of layers."""
    cache = Path(job.inputs["cache"])
    return cache, cache.with_suffix(".layers.npz")


def measure(job: Job, scale: Scale) -> Evidence:
    """Solve for candidates, score them on all prompts, and measure the importance of the parent's layers."""
    section, inputs, seed = Settings.model_validate_json(job.settings), job.inputs, job.runtime.seed
    parent = model_folder(inputs["parent"])
    target = section.target.model_copy(update={"solutions": scale.candidates, "selection": None})
    settings = ProblemSettings(target=target, search=section.search, scenarios=section.scenarios)
    scores, costs, calibration = Path(inputs["scores"]), Path(inputs["costs"]), Path(inputs["calibration"])
    solutions = solve(load_problem(settings, scores, costs, calibration, Path(parent)), section.search)
    print_progress(f"selection: {len(solutions)} solutions")
    model = load_model(parent, job.runtime.dtype, job.runtime.device)
    prompts = _prompts(model, load_tokenizer(parent), inputs["heldout"], scale, seed)
    architectures = [solution.architecture for solution in solutions]
    files = [Path(parent, WEIGHTS_FILE), Path(inputs["heldout"]), scores, costs, calibration]
    identity = fingerprint([code_hash(*modules_of_study("selection")), job.settings, str(seed)], files)
    pieces = read_library(inputs["library"], tuple(inputs["shards"].split(",")))
    cache, layers_cache = unfinished(job)
    selected_and_reported = torch.cat([prompts["parent's own"], prompts["passages"], prompts["documentation"]])
    table = CandidateScores(model, selected_and_reported, architectures, pieces, "kl", BATCH, cache, identity)
    order = range(0, table.prompts, BATCH)
    for start in tqdm(order, desc="study_selection: all candidates on all prompts", mininterval=5):
        table.look(np.arange(table.arms), np.arange(start, min(start + BATCH, table.prompts)))
    table.save()
    domains = {name: part[:CALIBRATION] for name, part in prompts.items()}
    print_progress("selection: the parent without each of its layers")
    importance = layer_importance(model, torch.cat(list(domains.values())), BATCH, layers_cache, identity)
    count = len(prompts["parent's own"])
    return Evidence(
        scores=table.values[:, :count],
        reported=table.values[:, count:],
        objectives=np.array([solution.objective for solution in solutions]),
        prompt_tokens=scale.prompt_tokens,
        importance=importance,
        domains=np.repeat(list(domains), [len(part) for part in domains.values()]),
        shared=shared_layers(architectures),
    )


def _prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heldout: str, scale: Scale, seed: int
) -> dict[str, torch.Tensor]:
    """Return prompts of four domains, ``(prompts, tokens)`` each; those sampled from the parent are for selection."""
    length = scale.prompt_tokens

    def packed(texts: Iterable[str], number: int) -> torch.Tensor:
        sequences = pack(texts, tokenizer, Packing(sequence_length=length))
        return torch.tensor([sequence.input_ids for sequence, _ in zip(sequences, range(number), strict=False)])

    source = ParentSamples(type="parent-samples", batch_size=128)
    written = parent_samples(source, model, tokenizer, "score", scale.prompts, length, seed)
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return {
        "parent's own": torch.tensor([sequence.input_ids for sequence in written]),
        "passages": cut_prompts(read_tokens(heldout), length)[:REPORTED],
        "documentation": packed(documents(PythonDocs(type="python-docs"), "heldout", seed), REPORTED),
        "code": packed((path.read_text(encoding="utf-8", errors="replace") for path in modules), CALIBRATION),
    }
