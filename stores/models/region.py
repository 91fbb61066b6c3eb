"""The cloud around the stores: zones and accounts, as CloudStack's `data_center` and `account` name them."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.db import models


class Zone(models.Model):
    """A failure and locality domain; NFS stores belong to one."""

    id = models.BigAutoField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=255, unique=True)

    class Meta:
        db_table = "data_center"
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Account(models.Model):
    """An owner of items. `id` is upstream's account id, as it stands in the paths on an export."""

    id = models.BigIntegerField(primary_key=True)
    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    account_name = models.CharField(max_length=255)

    class Meta:
        db_table = "account"
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return self.account_name
