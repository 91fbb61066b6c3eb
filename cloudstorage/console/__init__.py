"""The console as a Django app: the admin, with a site of our own in the place of its default one."""

from django.contrib.admin.apps import AdminConfig


class ConsoleConfig(AdminConfig):
    default_site = "cloudstorage.console.site.ConsoleSite"
