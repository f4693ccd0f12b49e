"""What every policy has in common: it selects, is told what came of it, recommends, and can be put away and resumed.

A policy never sees the truth: environments (`environments.py`) own means, preferences and regret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np

Action = TypeVar("Action")
Feedback = TypeVar("Feedback", contravariant=True)
State: TypeAlias = Mapping[str, np.ndarray]
Names: TypeAlias = tuple[str, ...]


class Policy(Protocol[Action, Feedback]):
    """The protocol. What actions and feedback are is up to the family: see `dueling`, `best_arm`, `ranking`."""

    def select(self, rng: np.random.Generator) -> Action:
        """Return the next action of every replication; all randomness comes from ``rng``."""
        ...

    def update(self, action: Action, feedback: Feedback) -> None:
        """Learn from what came of an action that `select` returned."""
        ...

    def recommend(self) -> np.ndarray:
        """Return what the policy would choose if it had to stop now, one row or number per replication."""
        ...

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return all that the policy has learnt, as arrays by name; with the generator's state it is all there is."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Go on from a state that `state_dict` returned."""
        ...


class Stateful:
    """State as named arrays, numbers, or parts that are `Stateful` themselves; subclasses list their names."""

    STATE: ClassVar[Names] = ()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of the state by name, parts' names after a dot."""
        state: dict[str, np.ndarray] = {}
        for name in self.STATE:
            value = getattr(self, name)
            if isinstance(value, Stateful):
                state |= {f"{name}.{inner}": array for inner, array in value.state_dict().items()}
            else:
                state[name] = np.array(value)
        return state

    def load_state_dict(self, state: State) -> None:
        """Take over a state.

        Raises:
            ValueError: names or shapes are not this policy's.
        """
        own = self.state_dict()
        if own.keys() != state.keys():
            raise ValueError(f"a state of {sorted(state)} is not one of {type(self).__name__}: {sorted(own)}")
        for name in self.STATE:
            value = getattr(self, name)
            if isinstance(value, Stateful):
                prefix = f"{name}."
                value.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
                continue
            array = np.array(state[name])
            if array.shape != own[name].shape:
                raise ValueError(f"{type(self).__name__}: '{name}' has shape {array.shape}, not {own[name].shape}")
            setattr(self, name, array if isinstance(value, np.ndarray) else array.item())


def random_argmax(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the index of the largest value in each row of ``(replications, arms)``, ties broken at random."""
    ties = values == values.max(-1, keepdims=True)
    return np.where(ties, rng.random(values.shape), -1.0).argmax(-1)
