"""The docker driver: one container per execution on one engine.

    lifecycle   DockerExecutor: what a start, a stop, a removal consist of; what of the engine's containers is ours
    directories what is mounted into containers: made before, swept after, never both at once
    config      pure conversion: Spec -> container, labels -> Found
    threads     blocking calls from an event loop: bounded threads, deadlines, streams
    calls       bare calls; the only module that imports the Docker SDK

Memory is in the labels of the containers. Directories are made before a container and removed before it, so that a
container always tells of them; what is left over all the same is found and swept by `list`.
"""

from agent.docker_executor.config import DockerSettings
from agent.docker_executor.lifecycle import DockerExecutor

__all__ = ["DockerExecutor", "DockerSettings"]
