"""Who acts and what that lets them do; every service takes an actor and asks `require`."""

from __future__ import annotations

import getpass
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cloudstorage.errors import Denied


class ActorRole(StrEnum):
    """Roles are groups of the same name. Operator includes viewer, storage-admin includes operator; auditor reads everything,
    the audit trail too, and changes nothing.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    STORAGE_ADMIN = "storage-admin"
    AUDITOR = "auditor"


_INCLUDES: dict[ActorRole, frozenset[ActorRole]] = {
    ActorRole.VIEWER: frozenset({ActorRole.VIEWER}),
    ActorRole.OPERATOR: frozenset({ActorRole.VIEWER, ActorRole.OPERATOR}),
    ActorRole.STORAGE_ADMIN: frozenset({ActorRole.VIEWER, ActorRole.OPERATOR, ActorRole.STORAGE_ADMIN}),
    ActorRole.AUDITOR: frozenset({ActorRole.VIEWER, ActorRole.AUDITOR}),
}


@dataclass(frozen=True, slots=True)
class Actor:
    """The acting person, token or process. `name` goes to the audit trail."""

    name: str
    roles: frozenset[ActorRole]
    recovers: bool = False
    """Brings a restored database in line with its stores, and so may change what is read-only for everybody else."""

    def may(self, role: ActorRole) -> bool:
        return any(role in _INCLUDES[own] for own in self.roles)

    def is_user(self, username: str) -> bool:
        """Whether this is that person, or a token of theirs."""
        return self.name.partition(" (token ")[0] == username

    def require(self, role: ActorRole) -> None:
        """Raise Denied unless the actor has the role."""
        if not self.may(role):
            raise Denied(f"{self.name} may not do this: it takes the role {role}.", remedy="Ask an administrator for the role.")

    @classmethod
    def of_groups(cls, name: str, groups: Iterable[str], *, superuser: bool = False) -> Actor:
        """The actor of a signed-in user: known group names become roles."""
        known = {role.value: role for role in ActorRole}
        roles = {known[group] for group in groups if group in known}
        if superuser:
            roles |= {ActorRole.STORAGE_ADMIN, ActorRole.AUDITOR}
        return cls(name, frozenset(roles))


def cli_actor() -> Actor:
    """Whoever can run commands on the host has its database and keys already: admin rights, under the name of the OS user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return Actor(f"cli:{user}", frozenset({ActorRole.STORAGE_ADMIN, ActorRole.AUDITOR}))


ANONYMOUS = Actor("anonymous", frozenset())
"""Whoever is not signed in."""
SYSTEM = Actor("system", frozenset({ActorRole.STORAGE_ADMIN}))
"""Workers and schedules."""
RECOVERY = Actor("system:recovery", frozenset({ActorRole.STORAGE_ADMIN}), recovers=True)
"""What compares a restored database with its stores."""
