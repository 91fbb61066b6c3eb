"""Settings: every value from the environment, safe by default; nothing needs setting for the embedded instance."""

from __future__ import annotations

import os
from pathlib import Path

from csp.constants import NONE, SELF
from django.core.management.utils import get_random_secret_key

from cloudstorage.environment import NotedEnvironment

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"
env = NotedEnvironment()

DATA_DIR = Path(env("CLOUDSTORAGE_DATA_DIR", default=str(BASE_DIR / "var"))).resolve()
SECRET_KEYS_FILE = env("CLOUDSTORAGE_SECRET_KEYS_FILE", default=str(DATA_DIR / "secret-keys"))


def _kept_secret(name: str) -> str:
    """A random key that survives restarts: made on first use, readable by the owner only."""
    path = DATA_DIR / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f"{name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(get_random_secret_key())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_text()


SECRET_KEY = env("SECRET_KEY", default="") or _kept_secret("django-secret-key")
QUEUE_SECRET_KEY = env("CLOUDSTORAGE_QUEUE_SECRET_KEY", default="") or _kept_secret("queue-secret-key")
DEBUG = False
ALLOWED_HOSTS = env.list("CLOUDSTORAGE_ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CLOUDSTORAGE_TRUSTED_ORIGINS", default=[])

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "cloudstorage.console.ConsoleConfig",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "django_q",
    "axes",
    "csp",
    "cloudstorage.apps.CloudstorageConfig",
    "stores",
    "migration",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "cloudstorage.logs.RequestIdMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "cloudstorage.console.zones.OwnTimeZone",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "cloudstorage.urls"
WSGI_APPLICATION = "cloudstorage.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# --- database: SQLite is the embedded default, PostgreSQL the production database -----------------------------------------

DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{DATA_DIR / 'cloudstorage.sqlite3'}")}
_database = DATABASES["default"]
_database["CONN_MAX_AGE"] = 600
_database["CONN_HEALTH_CHECKS"] = True
if _database["ENGINE"] == "django.db.backends.sqlite3":
    Path(_database["NAME"]).parent.mkdir(parents=True, exist_ok=True)
    _database["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 60,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
    }
elif _database["ENGINE"] == "django.db.backends.postgresql":
    # A host that lost its power closes no connection: without these it would be waited for for two hours.
    _database["OPTIONS"] = {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    } | _database.get("OPTIONS", {})
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- the queue: only a bell, see cloudstorage/queue.py ----------------------------------------------------------------------

QUEUE_MUTED = env.bool("CLOUDSTORAGE_QUEUE_MUTED", default=False)
_redis = env("CLOUDSTORAGE_REDIS_URL", default="")
QUEUE_WORKERS = env.int("CLOUDSTORAGE_QUEUE_WORKERS", default=2)
Q_CLUSTER = {
    "name": "cloudstorage",
    "workers": QUEUE_WORKERS + 1,  # pumps may run for days: one process is left for everything else
    "queue_limit": QUEUE_WORKERS,
    "bulk": 1,
    "timeout": 7 * 24 * 3600,  # never meant to strike: a task ends between items, and liveness is the lease
    "retry": 8 * 24 * 3600,
    "max_attempts": 1,
    "ack_failures": True,
    "save_limit": -1,
    "catch_up": False,
    "poll": 0,
    "label": "Queue",
    "secret_key": QUEUE_SECRET_KEY,
} | ({"redis": _redis} if _redis else {"orm": "default", "broker_class": "cloudstorage.queue.Bell"})

# --- people and safety ------------------------------------------------------------------------------------------------------

AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "cloudstorage.preferences.WithPreferences"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_CLIENT_IP_CALLABLE = "cloudstorage.callers.address_of"
AXES_LOCKOUT_CALLABLE = "cloudstorage.console.failures.locked_out"
AXES_VERBOSE = False
LOGIN_URL = "console:login"
LOGIN_REDIRECT_URL = "console:index"
CSRF_FAILURE_VIEW = "cloudstorage.console.failures.csrf_failure"
FILE_UPLOAD_HANDLERS = ["cloudstorage.console.uploads.NoFiles"]

_https = env.bool("CLOUDSTORAGE_HTTPS", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _https else None
SECURE_HSTS_SECONDS = 31536000 if _https else 0
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # subdomains and
    "security.W021",  # the browsers' preload list are for the owner of the domain to decide
    "security.W008",  # the proxy in front speaks TLS only, and nobody else reaches gunicorn
]
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 12 * 3600
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "object-src": [NONE],
    }
}

# --- faces ------------------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["cloudstorage.rest.BearerAuthentication", "cloudstorage.rest.SessionAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["cloudstorage.rest.RolePermission"],
    "DEFAULT_PAGINATION_CLASS": "cloudstorage.rest.KeysetPagination",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["cloudstorage.rest.bodies.Json"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "cloudstorage.rest.problem",
    "PAGE_SIZE": 50,
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "cloudstorage",
    "DESCRIPTION": "Secondary storage of a private cloud: stores, items, conversion and migration.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["cloudstorage.rest.RolePermission"],
    "POSTPROCESSING_HOOKS": [],  # enums stay where they are used; as components many would be called "state"
    "SCHEMA_PATH_PREFIX": "/api/v1",
}

LANGUAGE_CODE = "en"
USE_I18N = False
USE_TZ = True
TIME_ZONE = env("CLOUDSTORAGE_TIME_ZONE", default="UTC")

STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # whitenoise warns of a missing one; files are found in the apps without it
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

# --- the product ------------------------------------------------------------------------------------------------------------

STORE_DRIVERS = {
    "NFS": "stores.drivers.nfs.NFSDriver",
    "S3": "stores.drivers.s3.S3Driver",
    "Swift": "stores.drivers.swift.SwiftDriver",
}
ALLOW_PLAIN_EXPORTS = env.bool("CLOUDSTORAGE_ALLOW_PLAIN_EXPORTS", default=False)
NFS_MOUNTS = env.dict("CLOUDSTORAGE_NFS_MOUNTS", default={})
OUTBOUND_ALLOW_PRIVATE = env.bool("CLOUDSTORAGE_OUTBOUND_ALLOW_PRIVATE", default=True)
OUTBOUND_ALLOW_LOOPBACK = env.bool("CLOUDSTORAGE_OUTBOUND_ALLOW_LOOPBACK", default=False)
OUTBOUND_CIDRS = env.list("CLOUDSTORAGE_OUTBOUND_CIDRS", default=[])
WORKER_SLOTS = env.int("CLOUDSTORAGE_WORKER_SLOTS", default=8)
WORKER_TICKS = [
    # dotted path, seconds between two runs; each runs in a thread of its own in `manage.py worker`
    ("stores.tasks.keep_house", 5),
    ("stores.tasks.run_scans", 2),
    ("stores.tasks.clean_up", 10),
    ("stores.tasks.reap", 60),
    ("stores.tasks.purge_trash", 3600),
    ("stores.tasks.forget_the_dead", 3600),
    ("stores.tasks.write_journals", 10),
    ("stores.tasks.compact_journals", 3600),
    ("migration.tasks.advance_drains", 2),
    ("migration.tasks.advance_rollbacks", 2),
    ("migration.tasks.schedule_drift_checks", 600),
    ("migration.tasks.tend_retirements", 10),
    ("migration.tasks.purge_retired_stores", 3600),
]
WORKER_WHEN_DONE = "migration.tasks.advance"  # rung by a pump that has proven all it found, lest that wait for a tick
LEASE_SECONDS = env.int("CLOUDSTORAGE_LEASE_SECONDS", default=120)
HEARTBEAT_SECONDS = env.float("CLOUDSTORAGE_HEARTBEAT_SECONDS", default=15)
TRASH_GRACE_SECONDS = env.int("CLOUDSTORAGE_TRASH_GRACE_SECONDS", default=7 * 24 * 3600)
DIRECT_HYPERVISORS = env.list("CLOUDSTORAGE_DIRECT_HYPERVISORS", default=[])
PROBE_SECONDS = env.float("CLOUDSTORAGE_PROBE_SECONDS", default=45)
REHASH_BYTES_PER_DAY = env.int("CLOUDSTORAGE_REHASH_BYTES_PER_DAY", default=100 * 2**30)
PREFLIGHT_MAX_AGE_SECONDS = env.int("CLOUDSTORAGE_PREFLIGHT_MAX_AGE_SECONDS", default=24 * 3600)

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"request_id": {"()": "cloudstorage.logs.RequestIdFilter"}},
    "formatters": {"line": {"()": "cloudstorage.logs.LineFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["request_id"]}},
    "root": {"handlers": ["stderr"], "level": env("CLOUDSTORAGE_LOG_LEVEL", default="INFO")},
    "loggers": {"django-q": {"handlers": ["stderr"], "level": "WARNING", "propagate": False}},
}

SETTINGS_READ = sorted(env.noted.values(), key=lambda setting: setting.name)  # for the console's page of them
