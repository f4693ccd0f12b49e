"""Sections `targets` and `search`: constraints on children, selection among solutions, and the solver."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from tangram.blocks.base import GGUF_PRECISIONS, PRECISIONS
from tangram.config.base import Section, Unique
from tangram.engines import LLAMA_CPP, TORCH, needed_formats
from tangram.errors import nearest
from tangram.extensions import registered

# Names of the rivals' solutions; the solver's are 0, 1, ...
LAYERS_DROPPED = "layers-dropped"
STOCK, PACKED = "stock", "packed"  # parents to which limits can refer
UNIFORM = "uniform"  # the beginning of the names of `uniform_solution`
# Other searches on the solver's problem; their names are those of their solutions.
RANDOM_WEIGHTS = "random-weights"
LIGHT_SEARCHES = ("greedy", "max-parameters", "no-op-only", "random", "same-pair", "dynamic-program", RANDOM_WEIGHTS)
BLOCK_INFLUENCE, EVOLUTIONARY = "block-influence", "evolutionary"
SEARCHES = (*LIGHT_SEARCHES, BLOCK_INFLUENCE, EVOLUTIONARY)
HALVING = ("paired-halving", "sign-halving", "uniform")  # the policies of `selection`; packages register others


def _policy(name: str) -> str:
    policies = [*HALVING, *registered("tangram.policies")]
    if name not in policies:
        raise ValueError(f"'{name}' is not a policy{nearest(name, policies)}")
    return name


Policy = Annotated[str, AfterValidator(_policy)]


def _search(name: str) -> str:
    if name not in SEARCHES:
        raise ValueError(f"'{name}' is not a search{nearest(name, SEARCHES)}")
    return name


SearchName = Annotated[str, AfterValidator(_search)]


def uniform_solution(precision: str) -> str:
    """Return the name of the solution that is the parent in one precision, such as `uniform-int8`."""
    return f"{UNIFORM}-{precision}"


def uniform_precision(reference: str) -> str | None:
    """Return the precision that a constraint's reference has everywhere, such as int8 of `uniform-int8`; or None."""
    begin, _, precision = reference.partition("-")
    return precision if begin == UNIFORM and precision else None


def _reference(name: str) -> str:
    precisions = (*PRECISIONS, *GGUF_PRECISIONS)
    names = [STOCK, PACKED, *map(uniform_solution, precisions)]
    if name not in names:
        raise ValueError(f"'{name}' is not a reference{nearest(name, names)}")
    return name


Reference = Annotated[str, AfterValidator(_reference)]


class Constraint(Section):
    """One limit on a child."""

    quantity: Literal["throughput", "latency", "time_to_first_token", "memory", "parameters", "kv_bytes_per_token"] = (
        Field(description="In tokens/s, s per batch of requests, s, bytes, parameters, bytes per token and sequence.")
    )
    min: float | None = Field(None, gt=0, description="Lower limit (throughput).")
    max: float | None = Field(None, gt=0, description="Upper limit (all others).")
    relative_to_parent: bool = Field(True, description="The limit is a multiple of the parent's value.")
    reference: Reference = Field(
        STOCK,
        description="That parent: as stock transformers runs it (`stock`; in llama.cpp its F16 file, in vLLM its "
        "checkpoint), with the kernels that children have (`packed`), or the rival of one precision, such as "
        "`uniform-int8`, which the library must offer for attention, FFN and head.",
    )
    scenario: str | None = Field(None, description="Workload; required for all but parameters and kv_bytes_per_token.")

    @model_validator(mode="after")
    def _one_limit(self) -> Constraint:
        required, forbidden = ("min", "max") if self.quantity == "throughput" else ("max", "min")
        if getattr(self, required) is None or getattr(self, forbidden) is not None:
            raise ValueError(f"{self.quantity} takes '{required}', and only that")
        if self.scenario is None and self.quantity not in ("parameters", "kv_bytes_per_token"):
            raise ValueError(f"{self.quantity} needs a 'scenario'")
        counted = self.quantity in ("memory", "parameters", "kv_bytes_per_token")
        if counted and not self.relative_to_parent and self.max is not None and self.max < 1:
            raise ValueError(
                f"max: {self.max:g} of {self.quantity} is less than 1 in total; set relative_to_parent: true for a "
                "multiple of the parent's"
            )
        return self

    def __str__(self) -> str:
        """Return the limit in words, such as ``throughput in 'chat' >= 1.2 x the parent's``."""
        sign, limit = (">=", self.min) if self.quantity == "throughput" else ("<=", self.max)
        where = f" in '{self.scenario}'" if self.scenario else ""
        parent = {STOCK: "the parent's", PACKED: "the packed parent's"}.get(self.reference)
        unit = f" x {parent or 'that of ' + self.reference}" if self.relative_to_parent else ""
        return f"{self.quantity}{where} {sign} {limit:g}{unit}"


def halving_sizes(candidates: int) -> list[int]:
    """Return how many candidates each round of a selection by finetuning trains: the better half at first, at least 2.

    The rounds end after the one that trains 2, the better of which wins.
    """
    sizes = [max(2, -(-candidates // 2))]
    while sizes[-1] > 2:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


class Selection(Section):
    """Comparison of a target's solutions on the score split, of which only the best is finetuned."""

    policy: Policy = Field(
        "paired-halving",
        description="Policy that allocates candidates to prompts: `paired-halving`, `sign-halving`, `uniform`, or one "
        "that an installed package registers: `double-thompson`, `rucb`, `versatile-db`, `sparring`, `multisbm`, "
        "`doubler`.",
    )
    metric: Literal["kl", "lm_loss", "judge", "finetuned"] = Field(
        "kl",
        description="Metric on a prompt: `kl` or `lm_loss` (nats/token, lower is better), or `judge`: each child "
        "continues the prompt, and the parent votes for the likelier continuation. `paired-halving` compares values, "
        "so it cannot use votes. Or `finetuned`: the better half by `kl` is finetuned, and the better half of those "
        "goes on with twice the tokens each until one is left, by `kl` on the other half of the score split.",
    )
    tokens: int | None = Field(
        None, gt=0, description="Maximum tokens of all finetunings together for `finetuned`, which needs them."
    )
    budget: float = Field(0.3, gt=0, le=1, description="Share of all (candidate, prompt) pairs to evaluate.")
    prompt_tokens: int = Field(64, ge=2, description="Length of prompts, which are cut from the score split.")
    continuation_tokens: int = Field(16, gt=0, description="Tokens of a greedy continuation for `judge`.")
    batch_size: int = Field(16, gt=0, description="Prompts per forward pass.")
    checkpoint_seconds: float = Field(
        60, gt=0, description="Seconds between saves of the scores, from which a killed job resumes."
    )

    @model_validator(mode="after")
    def _votes_have_no_values(self) -> Selection:
        if self.metric == "judge" and self.policy == "paired-halving":
            raise ValueError(
                "metric 'judge' gives votes, policy 'paired-halving' compares values; use another policy, such as "
                "'sign-halving'"
            )
        return self

    @model_validator(mode="after")
    def _finetunings_have_tokens(self) -> Selection:
        finetuned = self.metric == "finetuned"
        if finetuned and self.policy != "paired-halving":
            raise ValueError(f"metric 'finetuned' halves by values, policy '{self.policy}' does not; leave policy out")
        if finetuned and self.tokens is None:
            raise ValueError("metric 'finetuned' needs 'tokens', such as a fifth of those of finetune.budget")
        if not finetuned and self.tokens is not None:
            raise ValueError(f"metric '{self.metric}' trains nothing; leave tokens out, or set metric: finetuned")
        return self


ON_TASKS = ("accuracy", "margin")  # metrics of `scores.tasks`
Metric = Literal[
    "kl", "lm_loss_increase", "cosine_distance", "accuracy", "margin"
]  # of `tables.SCORES`; lower is better
Weights = Annotated[dict[Metric, Annotated[float, Field(gt=0)]], Field(min_length=1)]
Objective = Metric | Weights


class Target(Section):
    """Constraints on a child; the mixed-integer program minimizes the loss of quality subject to them."""

    constraints: tuple[Constraint, ...] = Field(min_length=1, description="Limits, which must all hold.")
    solutions: int = Field(1, ge=1, description="Number of diverse solutions; the first, 0, is proven optimal.")
    max_shared: float = Field(
        0.8, gt=0, lt=1, description="Maximum share of layers that two solutions share (alpha of Puzzle, appendix B)."
    )
    engine: Literal["torch", "llama.cpp", "vllm"] = Field(
        "torch",
        description="Engine that the child is made for: `torch`; `llama.cpp`, which implies `export: [gguf]`; or "
        "`vllm`, which implies `export: [decilm]`.",
    )
    export: Annotated[tuple[Literal["gguf", "decilm", "hf"], ...], Unique] = Field(
        (),
        description="Formats to write the child in as well: `gguf` (llama.cpp), `decilm` (vLLM), `hf` (transformers "
        "without code of the checkpoint). The search uses only variants that all of them can express.",
    )
    objective: Objective | None = Field(
        None, description="Scores whose sum the solver minimizes, if not those of `search.objective`."
    )
    selection: Selection | None = Field(
        None, description="Compare the solutions and finetune only the best; null finetunes all of them."
    )
    rounds: int = Field(
        1,
        ge=1,
        description="Rounds in which the child is compressed. Each solves, on scores in the child of the "
        "round before, for limits between the parent's and the target's at which the sum of scores grows by an equal "
        "part, and finetunes for an equal part of `finetune.budget`. A subblock, once replaced, stays or becomes "
        "cheaper. Not with `library.coupled`, nor with an objective on `scores.tasks`.",
    )
    compare_layers_dropped: bool = Field(
        True,
        description="Also build a baseline that drops whole layers for the same speed, finetuned the same way: those "
        "without which, one at a time, the parent loses least (ordered by the score of the whole layer; with "
        "an objective on `scores.tasks` by the sum of both no-ops' scores).",
    )
    compare_uniform: bool = Field(
        True,
        description="Also build the parent in each precision that the library offers for attention, FFN and head, "
        "finetuned the same way; only for the primary target. With `engine: llama.cpp` the rivals are the parent's "
        "files in F16, Q8_0, Q4_K_M and Q4_0, which are measured beside every child there; `false` is an error. With "
        "`engine: vllm` the rival is the parent's checkpoint alone.",
    )

    compare: Annotated[tuple[SearchName, ...], Unique] = Field(
        (),
        description="Also build the children of other searches within the same limits, finetuned the same way: "
        "`greedy` (Puzzle, appendix F.2.2), `max-parameters`, `no-op-only` (the parent's subblocks and no-ops), "
        "`random`, `same-pair` (one pair of variants in all layers), `dynamic-program` (exact but for the rounding of "
        "costs; one constraint), `random-weights` (the solver's child with the entries of its layers' matrices in a "
        "random order; table 15), `block-influence` (drops the layers that change hidden states least), "
        "`evolutionary` (on the true score of assembled children, see `search.evolution`).",
    )

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that the child is written in: those of `export`, and the engine's."""
        return needed_formats(self.engine, self.export)

    @model_validator(mode="after")
    def _rivals_in_the_engine(self) -> Target:
        if self.engine == LLAMA_CPP and not self.compare_uniform:
            raise ValueError(
                "compare_uniform: false: the parent's files in F16, Q8_0, Q4_K_M and Q4_0 are measured beside every "
                "child in llama.cpp; leave compare_uniform out"
            )
        return self

    @model_validator(mode="after")
    def _one_constraint_of_the_dynamic_program(self) -> Target:
        if "dynamic-program" in self.compare and len(self.constraints) != 1:
            raise ValueError(
                f"compare: dynamic-program takes one constraint, and there are {len(self.constraints)}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _references_in_the_engine(self) -> Target:
        if self.engine != TORCH and any(constraint.reference == PACKED for constraint in self.constraints):
            parent = "its F16 file" if self.engine == LLAMA_CPP else "the parent there"
            raise ValueError(
                f"constraints: reference: packed is torch's parent, and limits in {self.engine} refer to {parent}; "
                "leave reference out"
            )
        return self

    @model_validator(mode="after")
    def _something_to_select_from(self) -> Target:
        if self.selection is not None and self.solutions < 2:
            raise ValueError("selection needs 'solutions' of at least 2; raise it, or leave selection out")
        return self

    @model_validator(mode="after")
    def _rounds_of_one_solution(self) -> Target:
        if self.rounds == 1:
            return self
        if self.engine != TORCH:
            raise ValueError(f"rounds: {self.rounds} needs engine: torch, not {self.engine}; leave rounds out")
        if self.selection is not None or self.solutions > 1:
            raise ValueError(
                f"rounds: {self.rounds} goes on with one solution of each round; leave solutions and selection out, or "
                "rounds"
            )
        return self


class Evolution(Section):
    """The search `evolutionary` of a target's `compare`, on the true score of assembled children."""

    start: Literal["mip", "random"] = Field(
        "mip", description="First child: the solver's proven best solution, or random choices within the limits."
    )
    evaluations: int = Field(
        200, gt=0, description="Budget: evaluations of a child on the whole score split, or on as much text in parts."
    )
    offspring: int = Field(16, gt=0, description="Children per generation.")
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.3, 1.0),
        min_length=1,
        description="Shares of the score split's sequences on which the stages of a selection compare children; each "
        "stage keeps the same share of the children, and the last one child.",
    )

    @field_validator("shares")
    @classmethod
    def _grow_to_all(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(shares) or shares[-1] != 1:
            raise ValueError("shares must grow to 1, such as [0.3, 1.0]")
        return shares


class Search(Section):
    """The mixed-integer program, Puzzle appendix B."""

    objective: Objective = Field(
        "kl",
        description="Scores whose sum the solver minimizes: `kl` or `lm_loss_increase` (nats per token), "
        "`cosine_distance` (1 - cosine of the last hidden states, which the head does not change), or weights of "
        "several, such as `{kl: 1, lm_loss_increase: 0.5}`. All are in every score table: a change re-scores nothing. "
        "With `scores.tasks` also `accuracy` (its decrease) and `margin` (decrease of the right choice's log-odds in "
        "nats, which small changes move, too).",
    )
    diverse_gap: float = Field(
        1e-3, ge=0, lt=1, description="Allowed relative gap of solutions after the first; the first is optimal."
    )
    sensitivity: bool = Field(
        True,
        description="Also solve with every variant's time at both ends of its 95 % interval, for the report's table of "
        "choices that another cost would change.",
    )
    time_limit: float = Field(60, gt=0, description="Seconds per solve; reaching it is an error.")
    evolution: Evolution = Field(Evolution(), description="The search `evolutionary` of a target's `compare`.")
