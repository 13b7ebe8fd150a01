"""What the next plan must look at, collected by everything that folds."""

from __future__ import annotations

from scheduler.core.view import Scope


class Changed:
    """The pipelines and hosts that something was folded about since the last `take`."""

    def __init__(self) -> None:
        self.pipelines: set[str] = set()
        self.hosts: set[str] = set()

    def take(self) -> Scope:
        """All of it, once."""
        scope = Scope(frozenset(self.pipelines), frozenset(self.hosts))
        self.pipelines.clear()
        self.hosts.clear()
        return scope

    def mark(self, scope: Scope) -> None:
        """Put a scope (back) on the list."""
        self.pipelines |= scope.pipelines
        self.hosts |= scope.hosts
