"""The platform as a Django app."""

from django.apps import AppConfig


class CloudstorageConfig(AppConfig):
    name = "cloudstorage"
    default_auto_field = "django.db.models.BigAutoField"
