"""Pulses since each of some keys was last heard: the arithmetic of silence, without documents."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from scheduler.core.timings import PULSE_S

GRACE_S = 15.0  # what a host not heard since an interruption gets at least: agents need as long to find a server again

K = TypeVar("K", bound=Hashable)


class Tally(Generic[K]):
    """Pulses since each key was last heard."""

    def __init__(self) -> None:
        self._pulses = 0
        self._zero = 0
        self._grace = False
        self._at: dict[K, int] = {}
        self._unheard: set[K] = set()  # since everything started anew

    def pulse(self) -> None:
        """One more pulse has come back."""
        self._pulses += 1

    def hear(self, key: K) -> None:
        """`key` was heard live."""
        self._at[key] = self._pulses
        self._unheard.discard(key)

    def meet(self, key: K) -> None:
        """`key` is known from a list, which does not say when it was heard: its silence begins now."""
        self._at.setdefault(key, self._pulses)
        self._unheard.add(key)

    def forget(self, key: K) -> None:
        self._at.pop(key, None)
        self._unheard.discard(key)

    def zero(self, *, grace: bool) -> None:
        """Every silence starts anew. With `grace`, what is not heard from now on counts as silent for GRACE_S at the
        earliest: until then its silence is 0."""
        self._zero = self._pulses
        self._grace = grace
        self._at = dict.fromkeys(self._at, self._pulses)
        self._unheard = set(self._at)

    def silence_s(self, key: K) -> float:
        """How long `key` has been silent, in whole pulses."""
        silence_s = (self._pulses - self._at[key]) * PULSE_S
        return 0.0 if self._grace and key in self._unheard and silence_s < GRACE_S else silence_s

    def unheard(self, key: K) -> bool:
        """Whether nothing is known of `key` but that it exists: it was not heard since everything started anew."""
        return key in self._unheard

    @property
    def age_s(self) -> float:
        """How long anything that was never heard has been silent."""
        age_s = (self._pulses - self._zero) * PULSE_S
        return 0.0 if self._grace and age_s < GRACE_S else age_s

    def crossing(self, pulses: Iterable[int]) -> list[K]:
        """The keys whose silence has just become one of `pulses`. A scan of integers: 0.2 ms for 5,000."""
        edges = {self._pulses - count for count in pulses}
        return [key for key, at in self._at.items() if at in edges]

    def crosses(self, pulses: Iterable[int]) -> bool:
        """Whether `age_s` has just become one of `pulses`."""
        return self._pulses - self._zero in set(pulses)

    @property
    def pulses(self) -> int:
        """All that were ever counted: never goes back."""
        return self._pulses

    @property
    def longest_s(self) -> float:
        return (self._pulses - min(self._at.values())) * PULSE_S if self._at else 0.0

    def __contains__(self, key: K) -> bool:
        return key in self._at
