"""Settings of workers whose exports answer slowly: everything as it is, with a source that takes 10 ms for each request."""

from __future__ import annotations

from cloudstorage import settings as _settings

for _name in dir(_settings):
    if _name.isupper():
        globals()[_name] = getattr(_settings, _name)

STORE_DRIVERS = _settings.STORE_DRIVERS | {"NFS": "tests.bench.scaling.SlowNFSDriver"}
