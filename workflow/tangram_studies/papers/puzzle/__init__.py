"""Puzzle (arXiv 2411.19146): counterparts of the paper's tables and figures on the run's parent, at a small scale.

The measure is KL(parent || child) on held-out passages, in nats per token, where the paper has MMLU and MT-Bench. The
pieces are the paper's: mean-pooled KV heads, linear maps, channels chosen by contribution, no-ops.
"""

from __future__ import annotations

from pathlib import Path

from tangram.archives import fetch_archive
from tangram.child.assemble import WEIGHTS_FILE
from tangram.cli import model_folder
from tangram.provenance import code_hash, fingerprint
from tangram.training.precision import fast_compute
from tangram_studies.code import modules_of_study
from tangram_studies.papers.puzzle.accuracy import accuracy_experiment
from tangram_studies.papers.puzzle.common import Bench, Scale, prepare, working_folder
from tangram_studies.papers.puzzle.compression import compression_experiment
from tangram_studies.papers.puzzle.context import context_experiment
from tangram_studies.papers.puzzle.distillation import distillation_experiment
from tangram_studies.papers.puzzle.fidelity import fidelity_experiment
from tangram_studies.papers.puzzle.laboratory import Lab
from tangram_studies.papers.puzzle.searches import search_experiment
from tangram_studies.papers.puzzle.sums import sums_experiment
from tangram_studies.papers.puzzle.training import training_experiment
from tangram_studies.papers.puzzle.work import Work
from tangram_studies.study import Job, NotReproduced, Study

SCALES = {
    "small": Scale(),
    "full": Scale(seeds=5, distill=1 << 20, score=65536, finetune=1 << 22, budgets=(1 << 18, 1 << 20), passages=256),
}
RESULTS = "results.jsonl"
NOT_REPRODUCED = (
    NotReproduced(
        "figure 4: 169 prompts judged blindly by three people",
        "no people judge here; a judge that is the parent itself would prefer what the parent writes",
        "write answers with `tangram chat` and ask people",
    ),
    NotReproduced(
        "table 4: alignment (RLHF and instruction tuning) of the child",
        "the pipeline ends with distillation, and no preference data are at hand",
        "train `targets/{target}/0/finetuned` with a library for alignment, such as TRL",
    ),
    NotReproduced(
        "table 2: throughput on GPUs in FP8, with the batch that fits into the memory of one",
        "no GPU here; the batch under a limit on memory is chosen by the solver on CPUs, too",
        "`snakemake --configfile config/llama-3.1-8b-h100.yaml`; on a CPU `config/smollm2-memory.yaml`",
    ),
    NotReproduced(
        "table 5: the child beside a smaller model of the parent's family",
        "SmolLM2 has no smaller member; the claims `frontier` and `wanda` have other rivals",
        "take a larger parent, such as Llama-3.1-8B beside Llama-3.2-3B",
    ),
    NotReproduced(
        "MMLU and MT-Bench",
        "a parent of 135 million parameters answers MMLU at chance; KL, LM loss and easier questions stand for them",
        "`evaluation.tasks: [mmlu]` with a larger parent",
    ),
)


def run_study(job: Job) -> Study:
    """Run the study for the rule. A killed study keeps every finished task, and resumes."""
    job.runtime.start()
    scale = SCALES[job.studies.scale]
    runtime, parent = job.runtime, model_folder(job.inputs["parent"])
    folder = working_folder(job.folder)
    lab = Lab(
        parent=parent,
        heldout=job.inputs["heldout"],
        folder=str(folder),
        dtype=runtime.dtype,
        device=runtime.device,
        seed=runtime.seed,
        length=scale.length,
        passages=scale.passages,
        passage_tokens=scale.passage_tokens,
        compute=fast_compute(runtime.device),
    )
    files: list[str | Path] = [Path(parent, WEIGHTS_FILE), job.inputs["heldout"]]
    numbers = (repr(scale), runtime.device, runtime.dtype, str(runtime.seed), lab.compute)
    depends_on = [code_hash(*modules_of_study("puzzle")), *numbers]
    processes = 1 if runtime.device == "cuda" else runtime.threads
    work = Work(folder / RESULTS, fingerprint(depends_on, files), processes, runtime.seed, runtime.device)
    timed = fingerprint([*depends_on, f"{runtime.threads} threads"], files)  # times alone depend on the threads
    alone = Work(folder / "timed.jsonl", timed, 1, runtime.seed, runtime.device)
    try:
        study = reproduce(prepare(lab, work, alone, scale), alone, str(fetch_archive(job.studies.image_archive)))
    finally:
        work.close()
    study.about = f"scale {job.studies.scale}; trainings, and layers of scored pieces and children, in {lab.compute}"
    study.unfinished = [folder]
    return study


def reproduce(bench: Bench, alone: Work, archive: str) -> Study:
    """Return the finished study of prepared texts, libraries, scores and costs.

    Args:
        bench: the shared material.
        alone: runs measurements of time.
        archive: BIG-bench's sdist.
    """
    study = Study("puzzle", "Puzzle: distillation-based NAS for inference-optimized LLMs", "2411.19146")
    study.not_reproduced += NOT_REPRODUCED
    study.notes.append(
        "The measure is KL(parent ‖ child), in nats per token, at every fourth position of held-out passages. The "
        "paper's figures are accuracies: averages of MMLU and 10 times MT-Bench unless a claim says otherwise."
    )
    found = search_experiment(bench, study)
    fidelity_experiment(bench, study)
    sums_experiment(bench, study)
    training_experiment(bench, study, found)
    compression_experiment(bench, alone, study, found)
    distillation_experiment(bench, study)
    accuracy_experiment(bench, study, found, archive)
    context_experiment(bench, study, found)
    return study
