"""People and their REST tokens: adds and changes users by role, makes tokens that are shown once, takes them back."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser, Group
from django.contrib.auth.password_validation import validate_password
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from cloudstorage.actors import ANONYMOUS, SYSTEM, Actor, ActorRole
from cloudstorage.audit import audited, record
from cloudstorage.errors import Conflict, Denied, Invalid, Missing
from cloudstorage.models import ApiToken

DEFAULT_TOKEN_DAYS = 90
MAX_TOKEN_DAYS = 366
MAX_NAME = 150
"""What Django's column holds."""


def add_user(*, actor: Actor, name: str, role: str, password: str) -> AbstractBaseUser:
    """Add a user of one role; raises Invalid for a weak password or unknown role, Conflict for a taken name."""
    users = get_user_model()
    with audited(actor, ActorRole.STORAGE_ADMIN, "user.add", name):
        _check_role(role)
        _check_name(name)
        if users.objects.filter(username=name).exists():
            raise _taken(name)
        user = users(username=name, is_staff=True)  # staff may sign in at the console; what they may do there is their role's
        try:
            validate_password(password, user)
        except ValidationError as error:
            raise Invalid(" ".join(error.messages), remedy="Choose a longer, less common password.", field="password") from None
        user.set_password(password)
        try:
            with transaction.atomic():
                user.save()
        except IntegrityError:  # somebody took it at the same moment
            raise _taken(name) from None
        user.groups.add(Group.objects.get_or_create(name=role)[0])
        record(actor, "user.add", name, role=role)
    return user


def change_user(*, actor: Actor, name: str, roles: Collection[str], active: bool) -> AbstractBaseUser:
    """Give a user these roles and no others, not even a superuser's, and let in or keep out who it is; their tokens can never do
    more than they may.

    Raises Invalid for no role or an unknown one, Missing for an unknown user, Conflict for oneself: whoever could take their own
    role away might be the last who has it.
    """
    with audited(actor, ActorRole.STORAGE_ADMIN, "user.change", name):
        if not roles:
            raise Invalid("A user has at least one role.", remedy="To keep somebody out, disable the user.", field="roles")
        for role in roles:
            _check_role(role, field="roles")
        user = get_user_model().objects.select_for_update().filter(username=name).first()
        if user is None:
            raise Missing(f"There is no user {name!r}.", remedy="Look at the list of users.")
        if actor.is_user(name):
            raise Conflict("You cannot change your own roles, nor keep yourself out.", remedy="Let another storage-admin do it.")
        before = sorted(user.groups.values_list("name", flat=True))
        was_active, was_superuser = user.is_active, user.is_superuser
        user.groups.set([Group.objects.get_or_create(name=role)[0] for role in roles])
        user.is_active, user.is_superuser = active, False
        user.save(update_fields=["is_active", "is_superuser"])
        changes = {"roles": (before, sorted(set(roles))), "active": (was_active, active), "superuser": (was_superuser, False)}
        record(actor, "user.change", name, changes=changes)
    return user


def _taken(name: str) -> Conflict:
    return Conflict(f"There is already a user called {name!r}.", remedy="Choose another name.", field="name")


def _check_name(name: str) -> None:
    """The audit trail knows its actors by name alone, so nobody may be called as a process, a command or a token is."""
    try:
        UnicodeUsernameValidator()(name)
    except ValidationError:
        remedy = "Use letters, digits and @ . + - _ only."
        raise Invalid(f"{name!r} cannot be the name of a user.", remedy=remedy, field="name") from None
    if len(name) > MAX_NAME:
        raise Invalid(f"A user's name has 1 to {MAX_NAME} characters.", remedy="Choose another name.", field="name")
    if name in {SYSTEM.name, ANONYMOUS.name}:
        message = f"{name!r} is what the audit trail calls those who are no person."
        raise Invalid(message, remedy="Choose another name.", field="name")


def _check_role(role: str, field: str = "role") -> None:
    known = [each.value for each in ActorRole]
    if role not in known:
        raise Invalid(f"There is no role {role!r}.", remedy=f"Use one of: {', '.join(known)}.", field=field)


def create_token(
    *, actor: Actor, username: str, name: str, role: str, days: int | None = DEFAULT_TOKEN_DAYS
) -> tuple[ApiToken, str]:
    """Make a token for a user and return it with its secret, which is kept nowhere and cannot be shown again.

    `days` until it expires, None for never (which only storage-admins may make). Raises Denied for another user's token unless
    storage-admin, Invalid naming the field, Missing for an unknown user.
    """
    with audited(actor, ActorRole.VIEWER, "token.create", f"{username}: {name}"):
        if username != actor.name:
            actor.require(ActorRole.STORAGE_ADMIN)
        _check_role(role)
        _check_days(actor, days)
        if not name.strip() or len(name) > 255:
            raise Invalid("A token's name has 1 to 255 characters.", remedy="Say what it is for.", field="name")
        user = get_user_model().objects.filter(username=username, is_active=True).first()
        if user is None:
            raise Missing(f"There is no active user {username!r}.", remedy="Add one with user_add.", field="user")
        owner = Actor.of_groups(username, user.groups.values_list("name", flat=True), superuser=user.is_superuser)
        if not owner.may(ActorRole(role)):
            message = f"{username} does not have the role {role}, so a token cannot have it either."
            raise Invalid(message, remedy="Choose a role that the user has.", field="role")
        secret, prefix = _unused_secret()
        token = ApiToken.objects.create(
            user=user,
            name=name,
            prefix=prefix,
            digest=ApiToken.digest_of(secret),
            role=role,
            expires=None if days is None else timezone.now() + timedelta(days=days),
        )
        record(actor, "token.create", f"token:{prefix}", user=username, name=name, role=role, days=days)
    return token, secret


def _check_days(actor: Actor, days: int | None) -> None:
    if days is None:
        actor.require(ActorRole.STORAGE_ADMIN)
    elif not 1 <= days <= MAX_TOKEN_DAYS:
        message = f"A token lives 1 to {MAX_TOKEN_DAYS} days."
        raise Invalid(message, remedy="Make another one before it ends.", field="days")


def _unused_secret() -> tuple[str, str]:
    """A secret and its first 12 characters, which name it and so must be nobody else's."""
    while True:
        secret = ApiToken.new_secret()
        if not ApiToken.objects.filter(prefix=secret[:12]).exists():
            return secret, secret[:12]


def find_token(*, actor: Actor, prefix: str) -> ApiToken:
    """One's own token, or anybody's as storage-admin; raises Missing."""
    token = ApiToken.objects.select_related("user").filter(prefix=prefix).first()
    own = token is not None and actor.is_user(token.user.get_username())
    if token is None or not (own or actor.may(ActorRole.STORAGE_ADMIN)):
        raise Missing(f"You have no token {prefix}.", remedy="Look at the list of tokens.")
    return token


def revoke_token(*, actor: Actor, prefix: str) -> None:
    """Take a token back at once: one's own, or anybody's as storage-admin. Repeating it changes nothing; raises Missing."""
    with audited(actor, ActorRole.VIEWER, "token.revoke", f"token:{prefix}"):
        token = find_token(actor=actor, prefix=prefix)
        now = timezone.now()
        if ApiToken.objects.filter(pk=token.pk, revoked=None).update(revoked=now):
            changes = {"revoked": (None, now.isoformat())}
            record(actor, "token.revoke", f"token:{prefix}", changes=changes, user=token.user.get_username())


def refuse_token(actor: Actor, token: object) -> None:
    """Raise Denied where a token asks for another one: a stolen token must not outlive itself."""
    if isinstance(token, ApiToken):
        raise Denied(
            f"{actor.name} is a token, and a token makes no tokens.", remedy="Sign in at the console, or use token_create."
        )
