"""The target that redis_url names."""

from __future__ import annotations

from collections.abc import Mapping

from cachemig.config import Settings
from cachemig.targets.redis import RedisTarget


def open_target(settings: Settings, environment: Mapping[str, str]) -> RedisTarget:
    """One server, a cluster, or the primary that sentinels name. Connects when it is first used.

    Raises ConfigError for a URL that cannot be read.
    """
    if settings.redis_url.partition("://")[0].endswith("+cluster"):
        from cachemig.targets.cluster import ClusterTarget

        return ClusterTarget(settings, environment)
    return RedisTarget(settings, environment)
