"""Grants: one file for each execution that may run here, by the word of this host's session. Format: `runner.permits`.

No runner starts Bento without one. So a start that completes late, when nobody wants it any more, ends by itself: the
grant is given before the executor is asked to start, and revoked before it is asked to stop or remove, and before a
report shows the execution as stopped or leaves it out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from agent.core.situation import Action, Decision, Fetch, Remove, Start, Stop
from agent.layout import name_of
from agent.lease import make_searchable, read_text, replace_text
from runner import permits
from runner.permits import Grant
from shared.documents import Session

log = structlog.get_logger()


class GrantKeeper(Protocol):
    """Where grants are kept, by name. What `give` and `revoke` did is seen by every runner from then on; each raises
    OSError, and then nothing changed. The simulation has its own."""

    def list(self) -> Mapping[str, Grant]:
        """All that can be read. What cannot be read is no grant, and is removed."""
        ...

    def give(self, grant: Grant) -> None:
        """Write the grant of `grant.execution`, over the one that is there."""
        ...

    def revoke(self, name: str) -> None:
        """Remove the grant of this name, if there is one."""
        ...


class GrantDirectory:
    """A `GrantKeeper` in a directory of tmpfs. Calls are short enough for the event loop: nothing is synced."""

    def __init__(self, lease_dir: Path) -> None:
        make_searchable(lease_dir)
        self._directory = lease_dir / permits.GRANTS_DIR
        make_searchable(self._directory)

    def list(self) -> Mapping[str, Grant]:
        found = {}
        for file in sorted(self._directory.iterdir()):
            text = read_text(file)
            grant = None if text is None else permits.parse_grant(text)
            if grant is not None and grant.execution == file.name:
                found[file.name] = grant
                continue
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                log.warning("Something in the grants directory is no grant.", file=str(file), problem=str(error))
        return found

    def give(self, grant: Grant) -> None:
        replace_text(self._directory / grant.execution, permits.grant_text(grant))

    def revoke(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)


class Grants:
    """The grants of this host by execution, as this process and those before it have given them."""

    def __init__(self, keeper: GrantKeeper, cluster: str, session: Session) -> None:
        """`session`: the one that this process begins with. What other sessions have bound is revoked."""
        self._keeper, self._cluster = keeper, cluster
        self._given = dict(keeper.list())
        self._accepted: frozenset[str] = frozenset()
        for name, grant in sorted(self._given.items()):
            if grant.boot != session.boot or (grant.bound and _session(grant) != session):
                self._try_to_revoke(name)

    def adopt(self, accepted: frozenset[str], unanswered: Collection[str] = ()) -> None:
        """Executions of these stores are ours; nothing else may start here. `unanswered`: executions that an engine may
        start late. Another store may soon have them started again, after a list that shows none of them: what still
        comes of the first start finds no grant then, and what came of it before the list was made is in it."""
        if accepted != self._accepted:
            names = {name_of(self._cluster, store, one) for store in self._accepted for one in unanswered}
            ours = tuple(name_of(self._cluster, store_id, "") for store_id in accepted)
            self._accepted = accepted
            for name in sorted(name for name in self._given if name in names or not name.startswith(ours)):
                self._try_to_revoke(name)

    def of(self, session: Session) -> Mapping[str, bool]:
        """Who has a grant, and whether it is bound. A bound one of another session is none, even where it could not
        be revoked."""
        found = {}
        for store_id in sorted(self._accepted):
            prefix = name_of(self._cluster, store_id, "")
            for name, grant in self._given.items():
                if name.startswith(prefix) and (not grant.bound or _session(grant) == session):
                    found[name.removeprefix(prefix)] = grant.bound
        return found

    def permit(self, action: Action, session: Session) -> None:
        """What an action needs or must not have, before the executor is asked. OSError: not done."""
        match action:
            case Start(subject, spec, bound):
                self.give(spec.store_id, subject.execution, session, bound=bound)
            case Stop(subject) | Remove(subject):
                self.revoke(subject.execution)
            case Fetch():
                pass

    def settle(self, decision: Decision, session: Session) -> bool:
        """Take away and rewrite what has to be before anything is said; whether that worked."""
        try:
            for name in decision.revoke:
                self.revoke(name)
            for one in decision.rebind:
                self.give(one.store_id, one.execution, session, bound=one.bound)
        except OSError as error:
            log.error("Grants cannot be written; the plan does not count as applied.", problem=str(error))
            return False
        return True

    def give(self, store_id: str, execution: str, session: Session, *, bound: bool) -> None:
        """Let an execution start; in place if it runs. Under one store only: what an engine was asked to start for
        another, and may do late, must find no grant. OSError: nothing was given."""
        for other in sorted(self._accepted - {store_id}):
            self._revoke(name_of(self._cluster, other, execution))
        name = name_of(self._cluster, store_id, execution)
        grant = Grant(agent=session.agent, boot=session.boot, number=session.number, execution=name, bound=bound)
        self._keeper.give(grant)  # also if we think it is there: somebody may have deleted the file
        self._given[name] = grant

    def revoke(self, execution: str) -> None:
        """Take the grant of an execution away, in whatever store. OSError: it may still be there."""
        for store_id in sorted(self._accepted):
            self._revoke(name_of(self._cluster, store_id, execution))

    def revoke_bound(self) -> None:
        """Take away what a session that is over had bound."""
        for name in sorted(name for name, grant in self._given.items() if grant.bound):
            self._try_to_revoke(name)

    def revoke_all(self) -> None:
        """Take everything away."""
        for name in sorted(self._given):
            self._try_to_revoke(name)

    def _revoke(self, name: str) -> None:
        if name in self._given:
            self._keeper.revoke(name)
            del self._given[name]

    def _try_to_revoke(self, name: str) -> None:
        try:
            self._revoke(name)
        except OSError as error:
            # Its execution stops all the same: the lease of its session is not extended any more.
            log.error("A grant cannot be revoked.", name=name, problem=str(error))


def _session(grant: Grant) -> Session:
    return Session(grant.agent, grant.boot, grant.number)
