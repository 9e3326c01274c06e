"""A machine's transitions as a table: which state follows from which, and why. The diagrams in the docs are drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

S = TypeVar("S", bound=Enum)


class IllegalTransitionError(Exception):
    """A machine was to go where its table leads not; nothing was changed."""


class Transitions(Generic[S]):
    """``table[state, cause]`` is the state after; causes are some words that people understand."""

    def __init__(self, name: str, first: S, table: Mapping[tuple[S, str], S]) -> None:
        self.name = name
        self._first = first
        self._table = table

    def after(self, state: S, cause: str) -> S:
        """The state after. Raises `IllegalTransitionError`."""
        following = self._table.get((state, cause))
        if following is None:
            raise IllegalTransitionError(f"{self.name}: {cause} came while it was {state.value}")
        return following

    def diagram(self) -> str:
        """The table as a Mermaid state diagram; causes that lead the same way share an arrow."""
        names = {state: state.name.lower() for state in type(self._first)}
        arrows: dict[tuple[S, S], list[str]] = {}
        for (before, cause), after in self._table.items():
            arrows.setdefault((before, after), []).append(cause)
        lines = ["stateDiagram-v2", f"    [*] --> {names[self._first]}"]
        lines += [f"    {names[a]} --> {names[b]}: {', '.join(causes)}" for (a, b), causes in arrows.items()]
        return "\n".join(lines) + "\n"
