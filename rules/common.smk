"""Shared by all stages: the checked config, lists derived from it, and file names.

Every job parses this file again, so it imports neither torch nor pandas.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from tangram.blocks import grammar
from tangram.blocks.architecture import variants_in
from tangram.blocks.base import HEAD, HEAD_SHARD, KINDS, PAIR
from tangram.blocks.registry import block_class, modules_of_variants
from tangram.config import (
    BLOCK_INFLUENCE,
    EVOLUTIONARY,
    LAYERS_DROPPED,
    LIGHT_SEARCHES,
    RANDOM_WEIGHTS,
    SEARCHES,
    SPLITS,
    UNIFORM,
    Packing,
    Task,
    slice_of,
)
from tangram.config import limits, sources
from tangram.config import parse as parse_config
from tangram.config.strict_yaml import check_command_line, read_yaml
from tangram.engines import ENGINES, LLAMA_CPP, PARENT_TYPES, SPEED_TIMERS, TIMERS, TORCH, VLLM, timed
from tangram.errors import TangramError
from tangram.files import sha256_of
from tangram.provenance import code_hash
from tangram.shell import command

try:
    for path in workflow.configfiles:  # read again, as Snakemake silently takes the last of equal keys
        read_yaml(path)
    if "snakemake" in sys.argv[0]:
        check_command_line(sys.argv[1:])
    cfg = parse_config(config)
except TangramError as error:
    sys.exit(f"error: {error}")

# Jobs use the Python that runs Snakemake, on a cluster's nodes, too, even if its environment is not activated.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))

ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=False)).parent  # for any including Snakefile
RESULTS = f"results/{cfg.run}"
PARENT = f"{RESULTS}/parent"
CHILD = f"{RESULTS}/targets/{{target}}/{{solution}}"  # with wildcards
GPU = int(cfg.device == "cuda")
VARIANTS = {kind: cfg.library.variants(kind) for kind in (*KINDS, HEAD)}
LIBRARY = ["parent", *(variant for variants in VARIANTS.values() for variant in variants)]
DISTILLED = [(kind, variant) for kind in VARIANTS for variant in cfg.library.distilled(kind)]
QUANTIZED = [(kind, variant) for kind in VARIANTS for variant in cfg.library.quantized(kind)]
COUPLED = [(PAIR, pair) for pair in cfg.library.pairs()]
PIECES = [(kind, variant) for kind in VARIANTS for variant in VARIANTS[kind]] + COUPLED  # scored


def split_settings(split):
    """Return the settings of one split of the corpus."""
    section = getattr(cfg.corpus, split)
    packing = cfg.corpus.model_dump(mode="json", include=set(Packing.model_fields))
    packing["sequence_length"] = section.length(cfg.corpus.sequence_length)
    return slice_of({**packing, "split": section.model_dump(mode="json", exclude={"sequence_length"})})


def trial_settings(text):
    """Return the settings of the trials of one text."""
    packing = cfg.corpus.model_dump(mode="json", include=set(Packing.model_fields))
    trials = cfg.text_trials.model_dump(mode="json", include={"tokens", "heldout_tokens", "removed"})
    finetune = cfg.finetune.model_dump(mode="json", exclude={"budget", "parallel", "checkpoint_seconds"})
    return slice_of({**packing, **trials, "finetune": finetune, "source": cfg.text_trials.sources[text]})


TRIALS = [(text, draw) for text in cfg.text_trials.sources for draw in range(cfg.text_trials.draws)]


def evaluation_settings(*names):
    """Return some settings of the evaluation."""
    return slice_of(cfg.evaluation.model_dump(mode="json", include=set(names)))


try:
    # Fingerprints of local sources, so that a change in place reruns their jobs.
    SOURCE_FILES = {"parent": sources.parent_fingerprint(cfg.parent, PARENT)}
    for split in SPLITS:
        table = f"{RESULTS}/corpus/{split}.parquet"
        SOURCE_FILES[split] = sources.text_fingerprint(
            f"corpus.{split}", getattr(cfg.corpus, split).sources, split_settings(split), table
        )
    for text, source in cfg.text_trials.sources.items():
        SOURCE_FILES[f"text_trials.{text}"] = sources.text_fingerprint(
            f"text_trials.sources.{text}", [source], trial_settings(text), f"{RESULTS}/trials/{text}/0.parquet"
        )
    SCORED = [Task(name=name) for name in (cfg.scores.tasks.names if cfg.scores.tasks else ())]
    SOURCE_FILES["tasks"] = sources.task_fingerprint("evaluation.tasks", cfg.evaluation.all_tasks, SCORED)
    SOURCE_FILES["score_tasks"] = sources.task_fingerprint("scores.tasks.names", SCORED)
    SOURCE_FILES["perplexity"] = sources.text_fingerprint(
        "evaluation.perplexity",
        [text.source for text in cfg.evaluation.perplexity],
        evaluation_settings("perplexity"),
        f"{RESULTS}/parent_perplexity.parquet",
    )
    SOURCE_FILES["images"] = sources.file_fingerprint(cfg.studies.image_file)
    limits.check(cfg, sources.parent_config(cfg, PARENT))
except TangramError as error:
    sys.exit(f"error: {error}")


def _shards(layers, size):
    """Return the ranges of layers of the jobs, such as `00-14`, equal in size and in the order of their names."""
    width = max(2, len(str(layers - 1)))
    jobs = -(-layers // size)
    bounds = [layers * job // jobs for job in range(jobs + 1)]
    return [f"{first:0{width}}-{end - 1:0{width}}" for first, end in zip(bounds, bounds[1:])]


SHARDS = _shards(cfg.parent.num_layers, cfg.library.layers_per_shard)


def of_pieces(folder, pieces, *suffixes):
    """Return the files of pieces, (kind, variant), in a folder: one of each suffix for every shard of their kind."""
    return [
        f"{RESULTS}/{folder}/{kind}/{variant}/{shard}.{suffix}"
        for kind, variant in pieces
        for shard in ([HEAD_SHARD] if kind == HEAD else SHARDS)
        for suffix in suffixes
    ]


SCORE_FILES = of_pieces("scores", PIECES, "parquet") if cfg.scores.method == "exact" else []
if cfg.scores.tasks:
    SCORE_FILES += of_pieces("task_scores", [piece for piece in PIECES if piece[0] != PAIR], "parquet")


def timed_variants(engine):
    """Return the variants that are timed in an engine, by kind: those that it runs, its reference and its stub."""
    return {kind: timed(engine, kind, variants) for kind, variants in VARIANTS.items()}


def cost_files(engine):
    """Return the files of the costs of all pieces in an engine."""
    pieces = [(kind, variant) for kind, variants in timed_variants(engine).items() for variant in ("parent", *variants)]
    return [f"{RESULTS}/costs/{engine}/{kind}/{variant}.parquet" for kind, variant in [*pieces, ("model", "parent")]]


COST_FILES = [path for engine in cfg.engines for path in cost_files(engine)]
COST_TABLES = {
    folder: [f"{RESULTS}/{folder}/{engine}.parquet" for engine in cfg.engines] for folder in ("costs", "calibration")
}
CHILDREN = [f"{RESULTS}/targets/{name}/{solution}" for name in cfg.targets for solution in cfg.solutions(name)]


def checkpoint_of(folder):
    """Return the files of a checkpoint, so that a deleted one is rebuilt."""
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "provenance.json"]
    return [f"{folder}/{name}" for name in names]


def _search_files(name, target):
    """Return the files of the search and the selection of one target, without the architectures."""
    files = ["solutions.parquet", "solutions/mip.json"]
    if target.compare_layers_dropped:
        files.append(f"solutions/{LAYERS_DROPPED}.json")
    if cfg.uniform_solutions(name):
        files.append(f"solutions/{UNIFORM}.json")
    files += [f"solutions/{rival}.json" for rival in target.compare]
    if target.selection is not None:
        files += ["candidates.json", "selection/solution.json", "selection/scores.parquet", "selection/summary.json"]
    if target.rounds > 1:
        files += ["rounds/solution.json", "rounds/curves.parquet", *checkpoint_of("rounds/child")]
    return [f"{RESULTS}/targets/{name}/{file}" for file in files]


SEARCH_FILES = [path for name, target in cfg.targets.items() for path in _search_files(name, target)]


onstart:
    if workflow.local_exec:  # on a cluster each job checks its node, as the login node has no GPU
        gpus = max((job.resources.get("gpu", 0) for job in workflow.dag.needrun_jobs()), default=0)
        command = [sys.executable, "-m", "tangram.cli", cfg.device, "--count", str(gpus)]
        if gpus and subprocess.run(command).returncode:
            sys.exit(1)


pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/logs",
    benchmarks=f"{RESULTS}/benchmarks",


wildcard_constraints:
    engine="|".join(map(re.escape, ENGINES)),
    kind=f"attention|ffn|head|model|{PAIR}",
    variant=r"[a-z0-9.-]+(@[a-z0-9_]+|\+[a-z0-9.-]+)?",
    shard=r"\d+-\d+",
    target="|".join(map(re.escape, cfg.targets)),
    rival="|".join(LIGHT_SEARCHES),
    solution=rf"\d+|{LAYERS_DROPPED}|{UNIFORM}-[a-z0-9]+|{'|'.join(SEARCHES)}",
    split="|".join(SPLITS),
    text="|".join(map(re.escape, cfg.text_trials.sources)) or "none",
    draw=r"\d+",
    type="|".join(PARENT_TYPES),


def library_folder(wildcards, input):
    """Return the library's folder, as a function for `params`."""
    return os.path.commonpath([f"{RESULTS}/library", *input.library])


def _folder_of(files):
    return os.path.dirname(files if isinstance(files, str) else files[0])


def output_folder(name):
    """Return a function for `params` that returns the folder of the rule's output of that name."""
    return lambda wildcards, output: _folder_of(getattr(output, name))


EXPORTED = {
    "gguf": lambda folder: [f"{folder}/model.gguf"],
    "decilm": lambda folder: [*checkpoint_of(f"{folder}/decilm"), f"{folder}/decilm/configuration_decilm.py"],
    "hf": lambda folder: checkpoint_of(f"{folder}/hf"),
    "card": lambda folder: [f"{folder}/README.md"],
}  # the files of each format in a child's folder of exports


# The file of an exported child that each engine other than torch reads.
READ_BY = {LLAMA_CPP: "model.gguf", VLLM: "decilm/model.safetensors"}

# The parent's files for llama.cpp, which stand beside the children's.
PARENT_FILE = f"{RESULTS}/engines/parent/{{type}}/model.gguf"
PARENT_FILES = [PARENT_FILE.format(type=name) for name in PARENT_TYPES]


def library_files(*suffixes):
    """Return the library's files of the given types: `safetensors`, `parquet`, and `curves.parquet` of trained ones."""
    of_all = [suffix for suffix in suffixes if suffix != "curves.parquet"]
    trained = of_pieces("library", [*DISTILLED, *COUPLED], *suffixes)
    return trained + of_pieces("library", QUANTIZED, *of_all)


def source_of(wildcards):
    """Return the file of the pieces from which a job quantizes pieces; no file if it quantizes the parent's weights."""
    source = grammar.source_of(wildcards.variant)
    return [] if source is None else f"{RESULTS}/library/{wildcards.kind}/{source}/{wildcards.shard}.safetensors"


def pieces_of_pair(kind):
    """Return a function of wildcards that returns the file of pieces from which a pair starts; no file if fitted."""

    def file(wildcards):
        variant = dict(zip(KINDS, wildcards.variant.split("+")))[kind]
        return f"{RESULTS}/library/{kind}/{variant}/{wildcards.shard}.safetensors"

    return file if cfg.library.coupled.start == "pieces" else []


def of_children(*names):
    """Return the files of these names for all children."""
    return [f"{child}/{name}" for child in CHILDREN for name in names]


def children_in(engine):
    """Return the folders of the exported children of an engine's targets."""
    targets = [name for name, target in cfg.targets.items() if target.engine == engine]
    return [f"{RESULTS}/targets/{name}/{solution}" for name in targets for solution in cfg.exported(name)]


def timed_models(wildcards):
    """Return the files of the parent and of the children that an engine reads."""
    if wildcards.engine == TORCH:
        return [f"{PARENT}/model.safetensors", *of_children("child/model.safetensors")]
    of_parent = [f"{PARENT}/model.safetensors"] if wildcards.engine == VLLM else PARENT_FILES
    return [*of_parent, *(f"{child}/export/{READ_BY[wildcards.engine]}" for child in children_in(wildcards.engine))]


def file_in_engine(wildcards):
    """Return the file of an exported child that its target's engine reads."""
    return f"{CHILD}/export/{READ_BY[cfg.targets[wildcards.target].engine]}"


def exported():
    """Return the files of all children in the formats of their targets, and their model cards."""
    return [
        file
        for name, target in cfg.targets.items()
        for solution in cfg.exported(name)
        for written in (*target.formats, "card")
        for file in EXPORTED[written](f"{RESULTS}/targets/{name}/{solution}/export")
    ]


def of_engines():
    """Return speeds and evaluations in engines other than torch, of children and in llama.cpp of the parent's files."""
    engines = [engine for engine in cfg.engines if engine != TORCH]
    children = [f"{folder}/engine.parquet" for engine in engines for folder in children_in(engine)]
    parents = [f"{RESULTS}/parent_engine.parquet"] if LLAMA_CPP in engines else []
    return [*children, *parents, *(f"{RESULTS}/speeds/{engine}.parquet" for engine in engines)]


def in_engines(path, *engines):
    """Return a function of wildcards that returns a file about a target's engine; no file in another engine."""
    return lambda wildcards: [path] if cfg.targets[wildcards.target].engine in engines else []


def speeds_in_engine(wildcards):
    """Return the speeds in a target's engine; no file if that is torch."""
    engine = cfg.targets[wildcards.target].engine
    return [] if engine == TORCH else [f"{RESULTS}/speeds/{engine}.parquet"]


def card_settings(wildcards, threads):
    """Return the config with the child's target as primary one; Snakemake does not record it.

    The other targets stay: their engines may be those of variants in the library.
    """
    settings = cfg.model_dump(mode="json", exclude_defaults=True, exclude={"studies", "evaluation"})
    if cfg.scores.tasks:  # which name tasks of the archive
        settings["evaluation"] = cfg.evaluation.model_dump(mode="json", include={"task_archive"})
    return slice_of({**settings, "primary_target": wildcards.target})


def of_the_primary_target():
    """Return the files of tasks, perplexity, long context and readout, of parent and primary target's children."""
    # The solver's other solutions would multiply the time and show nothing that the best one does not.
    solutions = [name for name in cfg.solutions(cfg.primary_target) if name == "0" or not name.isdigit()]
    children = [f"{RESULTS}/targets/{cfg.primary_target}/{solution}" for solution in solutions]
    files = [f"{RESULTS}/questions.json"] if cfg.evaluation.tasks else []
    for name in ("tasks", "perplexity", "long_context"):
        if getattr(cfg.evaluation, name):
            files.append(f"{RESULTS}/parent_{name}.parquet")
            files += [f"{folder}/{name}.parquet" for folder in children]
    if cfg.evaluation.readout.task:
        files.append(f"{RESULTS}/targets/{cfg.primary_target}/0/readout.parquet")
    return files


def cached_activations(split):
    """Return the file of a split's cached activations; no file if they are streamed."""
    return [f"{RESULTS}/activations/{split}.npy"] if cfg.activations.mode == "cache" else []


def unrecorded(value):
    """Return a function for `params` whose value Snakemake does not record, so that a change reruns nothing."""
    return lambda wildcards, threads: value  # Snakemake does not record functions of threads


def runtime(*names, on_device=None):
    """Return the `params` of `--runtime`: the named ones of device, dtype and seed, and the unrecorded others.

    With `on_device`, a function of wildcards that tells whether a job needs the device, these jobs get it, too.
    """

    def recorded(wildcards):
        device = ("device",) if on_device is not None and on_device(wildcards) else ()
        return ",".join(f"{name}={getattr(cfg, name)}" for name in (*device, *names))

    def others(wildcards, threads):
        by_layer, local_copy = int(cfg.parent.by_layer), int(cfg.activations.local_copy)
        return f"threads={threads},by_layer={by_layer},local_copy={local_copy}"

    return {"runtime": recorded, "unrecorded": others}


def code_of(command, *packages, variants=(), modules=None):
    """Return the `params` that identify the code and packages of a rule's command: a change of them reruns the rule.

    Blocks are imported by name: `variants` are the command's variants, or a function of wildcards that returns them.
    The function takes no input, as Snakemake does not record functions of input. Of `modules`, by engine, that of the
    job's engine is imported by name, too.
    """

    def code(wildcards):
        names = variants(wildcards) if callable(variants) else variants
        others = [*(modules_of_variants(names) if names else ()), *([modules[wildcards.engine]] if modules else ())]
        return code_hash(f"tangram.commands.{command}", *others)

    params = {"code": code if modules or callable(variants) else code(None)}
    return {**params, "environment": pins(*packages)} if packages else params


def moments_of_job(wildcards):
    """Return the file of moments that a job's variant is fitted from; no file if it uses none."""
    uses = block_class(wildcards.variant).uses_moments
    return f"{RESULTS}/moments/{wildcards.kind}/{wildcards.shard}.safetensors" if uses else []


def pruning_of_job(wildcards):
    """Return the settings of pruning for a job of a pruned variant; none for others."""
    pruned = any(block_class(variant).pruned for variant in variant_of_job(wildcards))
    return slice_of(cfg.library.pruning if pruned else {})


def variant_of_job(wildcards):
    """Return the variant of a job with one variant, or those of a pair, for `code_of`."""
    return wildcards.variant.split("+")


def library_of_engine(wildcards):
    """Return all variants that are timed in a job's engine, for `code_of`."""
    return ["parent", *(variant for variants in timed_variants(wildcards.engine).values() for variant in variants)]


def variants_in_file(path_of):
    """Return a function for `code_of` that returns the variants of a checkpoint's file of architectures."""
    return lambda wildcards: variants_in(path_of(wildcards))


def named_inputs(*names, **texts):
    """Return a function for `params` that returns the named inputs and other texts as NAME=TEXT, if not empty."""

    def inputs(wildcards, input):
        values = {name: getattr(input, name) for name in names}
        if "library" in names:
            values["library"] = library_folder(wildcards, input)
        return [f"{name}={value}" for name, value in {**values, **texts}.items() if value]

    return inputs


def pins(*packages):
    """Return the locked versions of packages; a rule that depends on them reruns for another version."""
    lock = (ROOT / "envs" / "requirements.lock").read_text()
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))
    return " ".join(f"{package}=={versions[package]}" for package in packages)


def checksum(path):
    """Return the SHA-256 of a file of this repository that code hashes do not cover."""
    return sha256_of(ROOT / path)


def _cores():
    """Return the number that `--cores` gives; 1 on a cluster, where a profile sets the threads."""
    # The Snakemake in a job on a node must agree with the one that submitted the job.
    on_cluster = workflow.remote_exec or not workflow.local_exec
    return 1 if on_cluster else workflow.resource_settings.cores or 1


def all_cores(wildcards):
    """Return the number of cores, for jobs that measure time and must run alone."""
    return _cores()


def half_the_cores(wildcards):
    """Return half of the cores: two trainings in parallel use them better than one after the other."""
    return max(1, _cores() // 2)


def of_processes(parallel):
    """Return the resources of a job of several processes: its GPUs, and for several nodes SLURM's resources."""
    nodes, gpus = parallel.nodes, GPU * parallel.nodes * parallel.processes_per_node
    return {"gpu": gpus, **({"nodes": nodes, "tasks": nodes, "tasks_per_gpu": 0, "mpi": "srun"} if nodes > 1 else {})}


def text_evaluation():
    """Return the settings of the evaluation on text."""
    return slice_of({"evaluation": cfg.evaluation.model_dump(mode="json", include={"batch_size"})})


def speed_settings():
    """Return the settings of the measurement of throughput."""
    evaluation = cfg.evaluation.model_dump(mode="json", include={"throughput_repeats"})
    return slice_of({"evaluation": evaluation, "scenarios": cfg.scenarios})


def report_settings():
    """Return the settings of the report."""
    section = {"run": cfg.run, "primary_target": cfg.primary_target, "targets": list(cfg.targets), "seed": cfg.seed}
    section["children"] = {name: cfg.solutions(name) for name in cfg.targets}
    pieces = [*DISTILLED, *COUPLED, *QUANTIZED]
    section["library"] = {kind: [variant for of, variant in pieces if of == kind] for kind, _ in pieces}
    tables = {name: getattr(cfg.evaluation, name) for name in ("tasks", "perplexity", "long_context")}
    tables |= {"readout": cfg.evaluation.readout.task, "trials": TRIALS}
    section["optional"] = [name for name, asked_for in tables.items() if asked_for]
    elsewhere = {name: target.engine for name, target in cfg.targets.items() if target.engine != "torch"}
    section |= {"engines": elsewhere} if elsewhere else {}
    first = next(iter(cfg.scenarios))
    return slice_of({**section, "num_layers": cfg.parent.num_layers, "default_scenario": first})


def moments_settings():
    """Return the settings of the moments of activations."""
    used = {"batch_size", "holdout_fraction", "normalize"}
    return slice_of(cfg.library.bld.model_dump(mode="json", include=used))


def quantization_settings():
    """Return the settings of quantization, without those of training."""
    used = {"batch_size", "holdout_fraction", "ridge", "normalize"}
    shared = {"shared_smoothing": True} if cfg.library.shared_smoothing else {}
    return slice_of({**cfg.library.bld.model_dump(mode="json", include=used), **shared})


def extraction_settings():
    """Return the settings of the extraction of tasks; with scores by answers, the tasks whose train halves they use."""
    section = cfg.evaluation.model_dump(mode="json", include={"tasks", "task_archive"})
    return slice_of({**section, "score_tasks": cfg.scores.tasks.names} if cfg.scores.tasks else section)


def exact_settings(*more):
    """Return the settings of exact scores: those of all true scores, and those of scores in the parent."""
    return slice_of(cfg.scores.model_dump(mode="json", include={"batch_size", "position_stride", *more}))


def screening_settings():
    """Return the settings of screened scores: those of exact ones, of the estimates, and of the search."""
    others = {"compare_layers_dropped", "compare_uniform", "compare", "selection", "objective", "rounds"}
    targets = [target.model_dump(mode="json", exclude=others) for target in cfg.targets.values()]
    search = cfg.search.model_dump(mode="json", include={"diverse_gap", "time_limit"})
    scores = cfg.scores.model_dump(mode="json", exclude={"method", "tasks"})
    return slice_of(
        {"scores": scores, "library": VARIANTS, "targets": targets, "search": search, "scenarios": cfg.scenarios}
    )


def calibration_settings(wildcards):
    """Return the settings of the calibration in an engine."""
    return slice_of({"costs": cfg.costs, "scenarios": cfg.scenarios, "library": timed_variants(wildcards.engine)})


def table_of_target(folder):
    """Return a function of wildcards that returns the table of a folder in the engine of a target."""
    return lambda wildcards: f"{RESULTS}/{folder}/{cfg.targets[wildcards.target].engine}.parquet"


def scores_of_layers(wildcards):
    """Return the scores of whole layers by which a target drops layers; no file for an objective on questions."""
    layers = [f"{RESULTS}/scores/layers/{shard}.parquet" for shard in SHARDS]
    return layers if cfg.scores_layers(wildcards.target) else []


def search_settings(wildcards):
    """Return the settings of the solver, without those of baselines and selection."""
    others = {"compare_layers_dropped", "compare_uniform", "compare", "selection", "rounds"}
    target = cfg.targets[wildcards.target].model_dump(mode="json", exclude=others)
    search = cfg.search.model_dump(mode="json", exclude={"evolution"})
    return slice_of({"target": target, "search": search, "scenarios": cfg.scenarios})


def baseline_settings(wildcards):
    """Return the settings of a baseline, without those of the solver."""
    return rival_settings()(wildcards)


def rival_settings(*names):
    """Return a function that returns the settings of another search: those of a baseline, and some of the solver."""

    def settings(wildcards):
        kept = {"constraints", "engine", "export", "objective"}
        target = cfg.targets[wildcards.target].model_dump(mode="json", include=kept)
        search = cfg.search.model_dump(mode="json", include={"objective", *names})
        return slice_of({"target": target, "search": search, "scenarios": cfg.scenarios})

    return settings


def rounds_settings(wildcards):
    """Return the settings of a target's rounds: those of its limits and of the solver."""
    kept = {"constraints", "engine", "export", "objective", "rounds"}
    target = cfg.targets[wildcards.target].model_dump(mode="json", include=kept)
    search = cfg.search.model_dump(mode="json", include={"objective", "time_limit"})
    return slice_of({"target": target, "search": search, "scenarios": cfg.scenarios})


def finetune_settings():
    """Return the settings of finetuning, with its budget."""
    return slice_of(cfg.finetune.model_dump(mode="json", exclude={"parallel", "checkpoint_seconds"}))


def in_rounds(wildcards):
    """Return whether a child is the last one of several rounds."""
    return wildcards.solution == "0" and cfg.targets[wildcards.target].rounds > 1


def part_of_child(wildcards):
    """Return which of how many parts of the finetuning a child has left: the last one after several rounds."""
    rounds = cfg.targets[wildcards.target].rounds
    return f"{rounds}/{rounds}" if in_rounds(wildcards) else "1/1"


def base_of_child(wildcards):
    """Return the weights of the child that a child is made from; no file if it is made from the parent."""
    return f"{RESULTS}/targets/{wildcards.target}/rounds/child/model.safetensors" if in_rounds(wildcards) else []


def text_of_compensation(wildcards):
    """Return the text on which a child's matrices are fitted; no file if they are not."""
    fitted = cfg.assembly.compensate and wildcards.solution != RANDOM_WEIGHTS
    return f"{RESULTS}/corpus/distill.parquet" if fitted else []


def selection_settings(wildcards):
    """Return the settings of a target's selection."""
    selection = cfg.targets[wildcards.target].selection
    return slice_of(selection.model_dump(mode="json", exclude={"tokens"} if selection.tokens is None else set()))


def for_finetuned(*files):
    """Return a function of wildcards that returns files if a target's selection finetunes candidates; else none."""
    selections = {name: target.selection for name, target in cfg.targets.items()}
    finetuned = {name for name, selection in selections.items() if selection and selection.metric == "finetuned"}
    return lambda wildcards: list(files) if wildcards.target in finetuned else []


def part_settings():
    """Return the settings of finetunings in one process that have a length of their own."""
    return slice_of(cfg.finetune.model_dump(mode="json", exclude={"budget", "parallel", "checkpoint_seconds"}))


def solutions_of(wildcards):
    """Return the file of solutions that holds a solution: of a baseline, rounds, a selection or the solver."""
    folder = f"{RESULTS}/targets/{wildcards.target}"
    if wildcards.solution == LAYERS_DROPPED:
        return f"{folder}/solutions/{LAYERS_DROPPED}.json"
    if wildcards.solution in cfg.uniform_solutions(wildcards.target):
        return f"{folder}/solutions/{UNIFORM}.json"
    if wildcards.solution in SEARCHES:
        return f"{folder}/solutions/{wildcards.solution}.json"
    if in_rounds(wildcards):
        return f"{folder}/rounds/solution.json"
    selected = wildcards.solution == "0" and cfg.targets[wildcards.target].selection is not None
    return f"{folder}/selection/solution.json" if selected else f"{folder}/solutions/mip.json"


def architecture_of(wildcards):
    """Return a child's architecture after the checkpoint `pin_architecture`."""
    return checkpoints.pin_architecture.get(target=wildcards.target, solution=wildcards.solution).output[0]


def all_architectures(wildcards):
    """Return the architectures of all children after the checkpoint `pin_architecture`."""
    pinned = checkpoints.pin_architecture
    return [pinned.get(target=name, solution=s).output[0] for name in cfg.targets for s in cfg.solutions(name)]


def candidates_of(wildcards):
    """Return the file of a target's candidates after the checkpoint `pin_candidates`."""
    return checkpoints.pin_candidates.get(target=wildcards.target).output[0]
