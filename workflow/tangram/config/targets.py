"""Sections `targets` and `search`: constraints on children, and the solver."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tangram.config.base import Section
from tangram.errors import nearest
from tangram.extensions import registered

LAYERS_DROPPED = "layers-dropped"  # the plain baseline's name as a solution; the solver's are called 0, 1, ...
HALVING = ("paired-halving", "sign-halving", "uniform")  # the policies of `selection`; packages register others


def _policy(name: str) -> str:
    policies = [*HALVING, *registered("tangram.policies")]
    if name not in policies:
        raise ValueError(f"'{name}' is not a policy{nearest(name, policies)}")
    return name


Policy = Annotated[str, AfterValidator(_policy)]


class Constraint(Section):
    """One limit on the child."""

    quantity: Literal["throughput", "latency", "time_to_first_token", "memory", "parameters", "kv_bytes_per_token"] = (
        Field(description="tokens/s, s per batch of requests, s, bytes, parameters, bytes per token and sequence.")
    )
    min: float | None = Field(None, gt=0, description="Lower limit (throughput).")
    max: float | None = Field(None, gt=0, description="Upper limit (all others).")
    relative_to_parent: bool = Field(True, description="Limits are multiples of the parent's own value.")
    scenario: str | None = Field(None, description="Workload; required for all but parameters and kv_bytes_per_token.")

    @model_validator(mode="after")
    def _one_limit(self) -> Constraint:
        wanted, other = ("min", "max") if self.quantity == "throughput" else ("max", "min")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"{self.quantity} takes '{wanted}', and only that")
        if self.scenario is None and self.quantity not in ("parameters", "kv_bytes_per_token"):
            raise ValueError(f"{self.quantity} needs a 'scenario'")
        counted = self.quantity in ("memory", "parameters", "kv_bytes_per_token")
        if counted and not self.relative_to_parent and self.max is not None and self.max < 1:
            raise ValueError(
                f"max: {self.max:g} of {self.quantity} is less than one in all; set relative_to_parent: true for a "
                "multiple of the parent's"
            )
        return self


class Selection(Section):
    """How a target's solutions are compared on the score split before one of them is finetuned."""

    policy: Policy = Field(
        "paired-halving",
        description="Who decides which candidate sees which prompt: `paired-halving`, `sign-halving`, `uniform`, or "
        "one of those that installed packages register: `double-thompson`, `rucb`, `versatile-db`, `sparring`, "
        "`multisbm`, `doubler`.",
    )
    metric: Literal["kl", "lm_loss", "judge"] = Field(
        "kl",
        description="What decides on a prompt: less `kl` or `lm_loss` (nats/token) is better; `judge`: each child "
        "continues the prompt, and the parent votes for the continuation that it finds likelier. Votes have no values, "
        "so `paired-halving` cannot use them.",
    )
    budget: float = Field(0.3, gt=0, le=1, description="Share of all pairs of candidate and prompt to evaluate.")
    prompt_tokens: int = Field(64, ge=2, description="Sequences of the score split are cut to prompts of this length.")
    continuation_tokens: int = Field(16, gt=0, description="Tokens that a child writes greedily for a `judge`.")
    batch_size: int = Field(16, gt=0, description="Prompts per forward pass.")
    checkpoint_seconds: float = Field(60, gt=0, description="Time between saves of the scores; a killed job goes on.")

    @model_validator(mode="after")
    def _votes_have_no_values(self) -> Selection:
        if self.metric == "judge" and self.policy == "paired-halving":
            raise ValueError(
                "metric 'judge' gives votes, policy 'paired-halving' compares values; take 'sign-halving' or another"
            )
        return self


class Target(Section):
    """What a child must reach; the mixed-integer program finds the least loss of quality that does."""

    constraints: tuple[Constraint, ...] = Field(min_length=1, description="All must hold.")
    solutions: int = Field(1, ge=1, description="Diverse solutions; the first, 0, is proven best.")
    max_shared: float = Field(
        0.8, gt=0, lt=1, description="Share of layers that two solutions may have alike (alpha of Puzzle, appendix B)."
    )
    selection: Selection | None = Field(
        None, description="Compare the solutions first and finetune only the best; all are finetuned without."
    )
    compare_layers_dropped: bool = Field(
        True, description="Also drop whole layers for the same speed: the plain alternative, trained alike."
    )

    @model_validator(mode="after")
    def _something_to_select_from(self) -> Target:
        if self.selection is not None and self.solutions < 2:
            raise ValueError("selection needs 'solutions' of at least 2: there is nothing to choose from")
        return self


class Search(Section):
    """The mixed-integer program, Puzzle appendix B."""

    metric: Literal["kl", "lm_loss_increase"] = Field("kl", description="Score whose sum is minimized.")
    diverse_gap: float = Field(
        1e-3, ge=0, lt=1, description="Relative gap allowed for solutions after the first; the first is optimal."
    )
    time_limit: float = Field(60, gt=0, description="Seconds per solve; hitting it is an error, never an answer.")
