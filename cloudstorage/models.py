"""Rows of the platform: the installation's identity, the audit trail and the REST tokens."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone


class Installation(models.Model):
    """One row: which cloud this is. Its uuid is what ownership markers on the stores carry."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    uuid = models.UUIDField(default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=255, default="cloud")
    key_ring_used = models.BooleanField(default=False, editable=False)
    """A key ring was made for this database: from then on a missing one is a loss, not a first start."""
    read_only = models.CharField(max_length=255, blank=True, default="", editable=False)
    """Why nothing may be changed now; empty: it may."""

    class Meta:
        constraints: ClassVar = [models.CheckConstraint(condition=models.Q(id=1), name="installation_only_one")]

    @classmethod
    def get(cls) -> Installation:
        return cls.objects.get_or_create(pk=1)[0]

    @classmethod
    def why_read_only(cls) -> str:
        """Why nothing may be changed now; empty where it may."""
        return cls.objects.filter(pk=1).values_list("read_only", flat=True).first() or ""


class AuditEvent(models.Model):
    """Who did what to what, and with which outcome; triggers refuse UPDATE and DELETE on both databases."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(default=timezone.now, db_index=True)
    actor = models.CharField(max_length=255)
    action = models.CharField(max_length=64)
    target = models.CharField(max_length=255)
    outcome = models.CharField(max_length=16, default="done")
    """done or refused"""
    details = models.JSONField(default=dict)

    class Meta:
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [models.Index(fields=["target", "-id"], name="audit_by_target")]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.actor} {self.action} {self.target} {self.outcome}"


class ApiToken(models.Model):
    """A bearer token of the REST API; only its SHA-256 is kept, and it can do no more than its user and its role."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=255)
    prefix = models.CharField(max_length=12)
    digest = models.CharField(max_length=64, unique=True)
    role = models.CharField(max_length=16)
    created = models.DateTimeField(default=timezone.now)
    expires = models.DateTimeField(null=True, blank=True)
    last_used = models.DateTimeField(null=True, blank=True)
    revoked = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.prefix}… ({self.name})"

    @staticmethod
    def digest_of(token: str) -> str:
        return hashlib.sha256(token.encode()).hexdigest()

    @classmethod
    def new_secret(cls) -> str:
        return "cs_" + secrets.token_urlsafe(32)


class Preferences(models.Model):
    """How a person wants the console to be."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="preferences")
    time_zone = models.CharField(max_length=64, blank=True, default="")
    """An IANA name; empty: the browser's."""

    def __str__(self) -> str:
        return f"{self.user}: {self.time_zone or 'as the browser'}"


class SavedFilter(models.Model):
    """What a person likes to narrow a list to: the parameters of its URL under a name."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    page = models.CharField(max_length=64)
    """URL name of the list, and its kind where it has one."""
    name = models.CharField(max_length=60)
    query = models.TextField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["user", "page", "name"], name="saved_filter_name_once")]

    def __str__(self) -> str:
        return f"{self.page}: {self.name}"
