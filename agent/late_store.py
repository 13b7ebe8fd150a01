"""What an agent needs of a store, and a store that may be used before there is a connection.

An agent starts, and keeps what runs running, without NATS. Until the first connection stands every call ends as it
would on a connection that is lost: StoreUnavailable, at the latest after its own time-out. From then on calls are
passed on, and the connection heals itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from shared.errors import StoreUnavailable
from shared.store import REQUEST_TIMEOUT_S, Entry, Subscription


class AgentStore(Protocol):
    """The part of `shared.store.Store` that an agent uses; the contract is the one there."""

    async def read(self, bucket: str, key: str, *, timeout: float = REQUEST_TIMEOUT_S) -> Entry: ...

    async def read_at_least(
        self, bucket: str, key: str, revision: int, *, timeout: float = REQUEST_TIMEOUT_S
    ) -> Entry: ...

    async def write(
        self,
        bucket: str,
        key: str,
        value: bytes | None,
        *,
        expected: int | None = None,
        timeout: float = REQUEST_TIMEOUT_S,
    ) -> int: ...

    async def get_object(
        self, bucket: str, name: str, *, bytes_max: int, timeout: float = REQUEST_TIMEOUT_S
    ) -> bytes: ...

    async def append(
        self, subject: str, data: bytes, *, message_id: str, timeout: float = REQUEST_TIMEOUT_S
    ) -> None: ...

    async def publish(self, subject: str, data: bytes) -> None: ...

    async def subscribe(self, subject: str) -> Subscription: ...

    async def change_server(self) -> None: ...

    @property
    def connected(self) -> bool: ...

    async def close(self) -> None: ...


S = TypeVar("S", bound=AgentStore)


class LateStore(Generic[S]):
    """An `AgentStore` that `dial` connects, in the task that awaits `connect`."""

    def __init__(self, dial: Callable[[], Awaitable[S]]) -> None:
        """`dial` tries until it succeeds or is cancelled."""
        self._dial = dial
        self._store: S | None = None
        self._up = asyncio.Event()

    async def connect(self) -> None:
        """Connect; returns when the connection stands. To be called once."""
        self._store = await self._dial()
        self._up.set()

    async def ready(self) -> S:
        """The store itself, once it is connected."""
        return await self._usable(None)

    async def read(self, bucket: str, key: str, *, timeout: float = REQUEST_TIMEOUT_S) -> Entry:
        return await (await self._usable(timeout)).read(bucket, key, timeout=timeout)

    async def read_at_least(self, bucket: str, key: str, revision: int, *, timeout: float = REQUEST_TIMEOUT_S) -> Entry:
        return await (await self._usable(timeout)).read_at_least(bucket, key, revision, timeout=timeout)

    async def write(
        self,
        bucket: str,
        key: str,
        value: bytes | None,
        *,
        expected: int | None = None,
        timeout: float = REQUEST_TIMEOUT_S,
    ) -> int:
        return await (await self._usable(timeout)).write(bucket, key, value, expected=expected, timeout=timeout)

    async def get_object(self, bucket: str, name: str, *, bytes_max: int, timeout: float = REQUEST_TIMEOUT_S) -> bytes:
        store = await self._usable(min(timeout, REQUEST_TIMEOUT_S))
        return await store.get_object(bucket, name, bytes_max=bytes_max, timeout=timeout)

    async def append(self, subject: str, data: bytes, *, message_id: str, timeout: float = REQUEST_TIMEOUT_S) -> None:
        await (await self._usable(timeout)).append(subject, data, message_id=message_id, timeout=timeout)

    async def publish(self, subject: str, data: bytes) -> None:
        await (await self._usable(0.0)).publish(subject, data)

    async def subscribe(self, subject: str) -> Subscription:
        return await (await self._usable(None)).subscribe(subject)

    async def change_server(self) -> None:
        if self._store is not None:
            await self._store.change_server()

    @property
    def connected(self) -> bool:
        return self._store is not None and self._store.connected

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    async def _usable(self, timeout: float | None) -> S:
        if self._store is None:
            try:
                async with asyncio.timeout(timeout):
                    await self._up.wait()
            except TimeoutError as error:
                raise StoreUnavailable("there has been no connection to NATS yet") from error
        assert self._store is not None, "connected"
        return self._store
