"""Policy interface: `select`, `update`, `recommend`, `state_dict`.

A policy sees feedback only; means, preferences and regret belong to the environment.
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
    """The interface of a policy; each family defines its types of action and feedback."""

    def select(self, rng: np.random.Generator) -> Action:
        """Return the next action of every replication, with all randomness from ``rng``."""
        ...

    def update(self, action: Action, feedback: Feedback) -> None:
        """Learn from the feedback of an action that `select` returned."""
        ...

    def recommend(self) -> np.ndarray:
        """Return the current best choice, one row or number per replication."""
        ...

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the policy's state as arrays by name; with the generator's state, it determines all later actions."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Restore a state that `state_dict` returned."""
        ...


class Stateful:
    """State of named arrays, numbers, or nested `Stateful` objects; subclasses list the names in `STATE`."""

    STATE: ClassVar[Names] = ()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of the state by name; nested names follow a dot."""
        state: dict[str, np.ndarray] = {}
        for name in self.STATE:
            value = getattr(self, name)
            if isinstance(value, Stateful):
                state |= {f"{name}.{inner}": array for inner, array in value.state_dict().items()}
            else:
                state[name] = np.array(value)
        return state

    def load_state_dict(self, state: State) -> None:
        """Restore a state.

        Raises:
            ValueError: names or shapes differ from this policy's.
        """
        current = self.state_dict()
        if current.keys() != state.keys():
            raise ValueError(f"a state of {sorted(state)} is not one of {type(self).__name__}: {sorted(current)}")
        for name in self.STATE:
            value = getattr(self, name)
            if isinstance(value, Stateful):
                prefix = f"{name}."
                value.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
                continue
            array = np.array(state[name])
            if array.shape != current[name].shape:
                raise ValueError(f"{type(self).__name__}: '{name}' has shape {array.shape}, not {current[name].shape}")
            setattr(self, name, array if isinstance(value, np.ndarray) else array.item())
