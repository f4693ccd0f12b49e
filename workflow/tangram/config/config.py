"""The whole config, and the checks across sections."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tangram.blocks import grammar
from tangram.blocks.base import HEAD, KINDS, NO_OP, PARENT, Variant
from tangram.config.base import LARGEST, Name, Section
from tangram.config.corpus import Activations, Corpus
from tangram.config.costs import Costs, Scenario
from tangram.config.evaluation import Evaluation, Studies, Task
from tangram.config.finetune import Finetune
from tangram.config.library import Assembly, Library, Scores
from tangram.config.parent import Parent
from tangram.config.targets import (
    BLOCK_INFLUENCE,
    EVOLUTIONARY,
    LAYERS_DROPPED,
    ON_TASKS,
    Search,
    Target,
    halving_sizes,
    uniform_precision,
    uniform_solution,
)
from tangram.config.trials import TextTrials
from tangram.engines import DECILM, LLAMA_CPP, TORCH, head_precision, refusal
from tangram.errors import nearest


class Config(Section):
    """All settings of a run."""

    run: Name = Field(description="Folder under `results/`.")
    seed: int = Field(0, ge=0, le=LARGEST, description="Seed of all random numbers.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Device that models run on.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="Data type of weights and activations; `auto`: bfloat16 on `cuda`, float32 on `cpu`. Weights in "
        "training are float32.",
    )
    parent: Parent = Field(description="The model to make faster.")
    corpus: Corpus = Field(description="Text.")
    text_trials: TextTrials = Field(TextTrials(), description="Texts to compare before distillation.")
    activations: Activations = Field(Activations(), description="The parent's hidden states.")
    library: Library = Field(Library(), description="Search space, and training of its pieces.")
    scores: Scores = Field(Scores(), description="Quality of each piece.")
    scenarios: dict[Name, Scenario] = Field(min_length=1, description="Workloads; the first is the default one.")
    costs: Costs = Field(Costs(), description="Time and memory of each piece.")
    search: Search = Field(Search(), description="The solver.")
    targets: dict[Name, Target] = Field(min_length=1, description="Children to build, by target name.")
    primary_target: Name = Field(description="Target that opens the report, and whose child and rivals tasks evaluate.")
    assembly: Assembly = Field(Assembly(), description="How pieces become a child.")
    finetune: Finetune = Field(Finetune(), description="End-to-end distillation.")
    evaluation: Evaluation = Field(Evaluation(), description="Measurements of whole models.")
    studies: Studies = Field(Studies(), description="Reproductions of papers; not part of the main job.")

    @field_validator("dtype")
    @classmethod
    def _of_device(cls, dtype: str, info: ValidationInfo) -> str:
        """Replace `auto`. A measured choice would change results between machines, and CPU scores need float32."""
        return {"cuda": "bfloat16"}.get(info.data.get("device", ""), "float32") if dtype == "auto" else dtype

    @model_validator(mode="after")
    def _names(self) -> Config:
        if self.primary_target not in self.targets:
            hint = nearest(self.primary_target, list(self.targets))
            raise ValueError(f"primary_target: '{self.primary_target}' is not a target{hint}")
        for name, target in self.targets.items():
            for i, constraint in enumerate(target.constraints):
                if constraint.scenario is not None and constraint.scenario not in self.scenarios:
                    hint = nearest(constraint.scenario, list(self.scenarios))
                    raise ValueError(
                        f"targets.{name}.constraints[{i}].scenario: '{constraint.scenario}' is not a scenario{hint}"
                    )
        return self

    @model_validator(mode="after")
    def _objectives(self) -> Config:
        objectives = {"search.objective": self.search.objective}
        objectives |= {f"targets.{name}.objective": target.objective or "kl" for name, target in self.targets.items()}
        metrics = {where: {name} if isinstance(name, str) else set(name) for where, name in objectives.items()}
        for where, names in metrics.items():
            if names != {"kl"} and self.scores.method == "screened":
                raise ValueError(f"{where}: screened scores estimate the KL alone; write kl, or scores.method: exact")
            if (answered := sorted(names.intersection(ON_TASKS))) and self.scores.tasks is None:
                raise ValueError(f"{where}: {answered[0]} needs the questions of scores.tasks; name its tasks")
            if answered and self.library.pairs():
                raise ValueError(f"{where}: library.coupled has no scores by {answered[0]}; leave one of both out")
        for name, target in self.targets.items():
            if EVOLUTIONARY in target.compare and self._metrics_of(name).intersection(ON_TASKS):
                raise ValueError(
                    f"targets.{name}.compare: {EVOLUTIONARY} measures children on text, not on questions; leave it "
                    "out, or take another objective"
                )
        return self

    @model_validator(mode="after")
    def _compensated_rounds(self) -> Config:
        rounds = [name for name, target in self.targets.items() if target.rounds > 1]
        if self.assembly.compensate and rounds:
            raise ValueError(
                f"assembly.compensate: the child of targets.{rounds[0]}.rounds has trained weights, which it would "
                "fit anew; set it to false, or leave the rounds out"
            )
        return self

    @model_validator(mode="after")
    def _score_tasks(self) -> Config:
        names = self.scores.tasks.names if self.scores.tasks else ()
        archived = [name for name in names if not Task(name=name).is_path]
        if archived and self.evaluation.task_archive is None:
            raise ValueError(
                f"scores.tasks.names: '{archived[0]}' needs evaluation.task_archive; set it, or name a file"
            )
        return self

    @model_validator(mode="after")
    def _lengths(self) -> Config:
        length, split = self.corpus.sequence_length, self.corpus.distill
        sequences, fraction = split.sequences(length), self.library.bld.holdout_fraction
        if max(1, round(fraction * sequences)) >= sequences:  # as block distillation divides them
            raise ValueError(
                f"library.bld.holdout_fraction: {fraction:g} of corpus.distill's {sequences} sequences leaves none to "
                "train on; lower it or raise corpus.distill.tokens"
            )
        if self.text_trials.sources and self.text_trials.heldout_tokens <= length:
            raise ValueError(
                f"text_trials.heldout_tokens: {self.text_trials.heldout_tokens} tokens are one sequence of {length}; "
                f"at least {length + 1} are needed for two: a standard error needs two"
            )
        limits = {
            f"targets.{name}.selection.prompt_tokens": (target.selection.prompt_tokens, "score")
            for name, target in self.targets.items()
            if target.selection
        }
        for where, contrast, trained_on in (
            ("library.bld", self.library.bld.span_contrast, "distill"),
            ("finetune", self.finetune.span_contrast, "finetune"),
        ):
            if contrast.weight:
                limits[f"{where}.span_contrast.longest"] = contrast.longest, trained_on
        limits["scores.position_stride"] = self.scores.position_stride, "score"
        for where, (value, name) in limits.items():
            own = getattr(self.corpus, name).sequence_length
            if value > (own or length):
                of = f"corpus.{name}" if own else "corpus"
                raise ValueError(f"{where}: {value} is more than {of}.sequence_length ({own or length})")
        return self

    @model_validator(mode="after")
    def _variants(self) -> Config:
        scored_on = self.corpus.score.length(self.corpus.sequence_length)
        key = "corpus.sequence_length" if self.corpus.score.sequence_length is None else "corpus.score.sequence_length"
        for kind in (*KINDS, HEAD):
            names = self.library.listed(kind)
            for i, name in enumerate(names):
                where = f"library.{kind}[{i}]: '{name}'"
                if name in names[:i]:
                    raise ValueError(f"{where} appears twice")
                grammar.check(kind, name, where, self.parent.num_attention_heads, self.parent.num_kv_heads)
                if (precision := grammar.precision_of(name)) is not None:
                    grammar.check_runs(precision, where, self.device, self.dtype)
                grammar.check_length(name, where, key, scored_on)
            for i, precision in enumerate(getattr(self.library.precisions, kind)):
                grammar.check_runs(precision, f"library.precisions.{kind}[{i}]", self.device, self.dtype)
        self.library.check_pairs()
        if self.library.pairs() and self.scores.method == "screened":
            raise ValueError("library.coupled: pairs are scored exactly; set scores.method: exact, or leave them out")
        if self.library.coupled.pairs == "all" and not self.library.pairs():
            raise ValueError(
                "library.coupled.pairs: all finds no pair; name a variant in library.attention and in library.ffn"
            )
        if not any(self.library.variants(kind) for kind in (*KINDS, HEAD)):
            raise ValueError("library: attention and ffn are empty, and head, too; name at least one variant")
        return self

    @model_validator(mode="after")
    def _engines(self) -> Config:
        variants = [(kind, name) for kind in (*KINDS, HEAD) for name in self.library.variants(kind)]
        for kind, name in variants:
            if all(reasons := [refusal(name, engine) for engine in self.engines]):
                raise ValueError(
                    f"library.{kind}: '{name}': {reasons[0]}, and no target has another engine; "
                    "leave it out, or set targets.<name>.engine"
                )
        for target_name, target in self.targets.items():
            self._check_references(target_name, target)
            if target.engine == LLAMA_CPP and self.device != "cpu":
                raise ValueError(
                    f"targets.{target_name}.engine: llama.cpp runs on the CPU here, and device is {self.device}; set "
                    "device: cpu, or engine: torch"
                )
            reasons = [refusal(name, target.engine, target.export) for _, name in variants]
            if all(reasons):
                raise ValueError(
                    f"targets.{target_name}: it can use no variant of the library: '{variants[0][1]}': {reasons[0]}"
                )
            rounded = [
                name for name in self.library.variants(KINDS[0]) if grammar.precision_of(name) in ("int8", "fp8")
            ]
            if DECILM in target.formats and rounded and not self.library.shared_smoothing:
                key, remedy = ("export", "leave it out") if DECILM in target.export else ("engine", "take another")
                raise ValueError(
                    f"targets.{target_name}.{key}: decilm cannot express the smoothing factors of library.attention's "
                    f"'{rounded[0]}'; set library.shared_smoothing: true, or {remedy}"
                )
        return self

    @model_validator(mode="after")
    def _sharded_training(self) -> Config:
        quantized = [(kind, name) for kind in (*KINDS, HEAD) for name in self.library.quantized(kind)]
        if quantized and self.finetune.parallel.strategy == "fsdp":
            kind, name = quantized[0]
            raise ValueError(
                f"finetune.parallel.strategy: fsdp cannot shard pieces with a precision, such as library.{kind}'s "
                f"'{name}'; set strategy: ddp, or leave the precisions out"
            )
        return self

    @model_validator(mode="after")
    def _finetuned_candidates(self) -> Config:
        length = self.corpus.sequence_length
        for name, target in self.targets.items():
            if target.selection is None or target.selection.metric != "finetuned":
                continue
            where = f"targets.{name}.selection"
            if self.finetune.parallel.strategy == "fsdp":
                raise ValueError(
                    f"{where}.metric: finetuned trains in one process; set finetune.parallel.strategy: ddp"
                )
            if self.finetune.span_contrast.weight:
                raise ValueError(
                    f"{where}.metric: finetuned would begin span_contrast anew in each round; set its weight to 0"
                )
            if self.corpus.score.sequences(length) < 2:
                raise ValueError(f"{where}.metric: finetuned halves the score split, one sequence; raise its tokens")
            step = self.finetune.batch_size * self.corpus.finetune.length(length)
            sizes = halving_sizes(target.solutions)
            needed = step * len(sizes) * sizes[0]
            if target.selection.tokens is not None and target.selection.tokens < needed:
                raise ValueError(
                    f"{where}.tokens: {target.selection.tokens} do not suffice for a step of {step} tokens of every "
                    f"candidate in each round; write at least {needed}"
                )
        return self

    @model_validator(mode="after")
    def _rounds(self) -> Config:
        length, parallel, budget = self.corpus.sequence_length, self.finetune.parallel, self.finetune.budget
        for name, target in self.targets.items():
            if target.rounds == 1:
                continue
            where = f"targets.{name}.rounds: {target.rounds}"
            if self.library.pairs():
                raise ValueError(f"{where} scores single pieces, not library.coupled; leave one of both out")
            if answered := sorted(self._metrics_of(name).intersection(ON_TASKS)):
                raise ValueError(
                    f"{where} scores children on text, which has no {answered[0]}; take another objective, or leave "
                    "rounds out"
                )
            if parallel.nodes * parallel.processes_per_node > 1:
                raise ValueError(f"{where} trains in one process; leave finetune.parallel or rounds out")
            if self.finetune.span_contrast.weight:
                raise ValueError(f"{where} would begin span_contrast anew in each round; set its weight to 0")
            if budget.minutes is not None:
                raise ValueError(f"{where} divides finetune.budget, but not minutes; give tokens or epochs")
            sequences = (budget.epochs or 0) * self.corpus.finetune.sequences(length)
            sequences = sequences or -(-(budget.tokens or 0) // self.corpus.finetune.length(length))
            if sequences < target.rounds * self.finetune.batch_size:
                raise ValueError(
                    f"{where} needs as many batches, and finetune.budget has {sequences} sequences in batches of "
                    f"{self.finetune.batch_size}; raise the budget or lower rounds"
                )
        return self

    @model_validator(mode="after")
    def _layers_to_drop(self) -> Config:
        kinds_without_no_op = [kind for kind in KINDS if NO_OP not in self.library.listed(kind)]
        for name, target in self.targets.items():
            if not kinds_without_no_op:
                continue
            where = f"to library.{' and library.'.join(kinds_without_no_op)}"
            if target.compare_layers_dropped:
                raise ValueError(
                    f"targets.{name}.compare_layers_dropped: whole layers cannot be dropped without '{NO_OP}'; add it "
                    f"{where}, or set compare_layers_dropped: false"
                )
            if BLOCK_INFLUENCE in target.compare:
                raise ValueError(
                    f"targets.{name}.compare: {BLOCK_INFLUENCE} drops whole layers, which need '{NO_OP}'; add it "
                    f"{where}, or leave {BLOCK_INFLUENCE} out"
                )
        return self

    def _check_references(self, name: str, target: Target) -> None:
        """Raise if the library or the engine lacks the precision to which a limit refers."""
        for i, constraint in enumerate(target.constraints):
            if (precision := uniform_precision(constraint.reference)) is None:
                continue
            where = f"targets.{name}.constraints[{i}].reference: {constraint.reference}"
            for kind in (*KINDS, HEAD):
                of_kind = precision if kind != HEAD else head_precision(target.engine, precision)
                variant = str(Variant(PARENT, precision=of_kind))
                if reason := refusal(variant, target.engine):
                    raise ValueError(f"{where}: {reason}; choose another precision")
                if variant not in self.library.variants(kind):
                    raise ValueError(f"{where} needs '{variant}' in library.{kind}; add it")

    def scores_layers(self, target: str) -> bool:
        """Return whether a target drops layers by scores of whole layers; on text these lack metrics of questions."""
        return self.targets[target].compare_layers_dropped and not self._metrics_of(target).intersection(ON_TASKS)

    def _metrics_of(self, target: str) -> set[str]:
        """Return the metrics of a target's objective."""
        objective = self.targets[target].objective or self.search.objective
        return {objective} if isinstance(objective, str) else set(objective)

    def uniform_solutions(self, target: str) -> dict[str, str]:
        """Return the precisions of a target's rivals of uniform precision, by the rivals' names."""
        settings = self.targets[target]  # in llama.cpp the rivals are files, and no children
        rivals = target == self.primary_target and settings.compare_uniform and settings.engine == TORCH
        return {uniform_solution(precision): precision for precision in self.library.uniform_precisions() * rivals}

    @property
    def engines(self) -> list[str]:
        """The engines of all targets, each once."""
        return list(dict.fromkeys(target.engine for target in self.targets.values()))

    def exported(self, target: str) -> list[str]:
        """Return the names of a target's solutions that are written in its formats: all but the rivals."""
        return [name for name in self.solutions(target) if name.isdecimal() and self.targets[target].formats]

    def solutions(self, target: str) -> list[str]:
        """Return the names of a target's solutions that become children: the solver's or the best, and the rivals."""
        settings = self.targets[target]
        solved = 1 if settings.selection else settings.solutions
        dropped = [LAYERS_DROPPED] * settings.compare_layers_dropped
        return [*map(str, range(solved)), *dropped, *self.uniform_solutions(target), *settings.compare]
