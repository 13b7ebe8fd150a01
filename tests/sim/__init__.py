"""Deterministic simulation: the real cores and the real loops of several schedulers and agents, in one process, on
virtual time, over fakes that pass the same contract suites as the real store and the real executors.

    python -m tests.sim --seeds 200        many seeds
    python -m tests.sim --seed 17 -v       one seed, with its story
"""
