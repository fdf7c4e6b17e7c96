"""What an application may tune. What decides about keys and values comes from the migration's settings instead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Options:
    """Times are in seconds."""

    poll_interval: float = 2.0
    """How often the phase is asked for; a client follows a step within this time."""
    lease_margin: float = 1.0
    """The lease lasts three intervals and this: so long does the ladder wait for a client that says nothing."""

    connect_timeout: float = 0.05
    """Longest time to connect and log in. Over a slow network, or with TLS, it takes more than this."""
    redis_timeout: float = 0.05
    """Longest wait for a reply to begin, and then for a small one to be complete."""
    bytes_per_s: float = 5e6
    """Large values get time beyond that: one second for so many bytes, sent or received."""
    redis_connections: int = 16
    """At most this many at once; further calls wait for one. More would not be faster, and may all have to connect in
    the same moment."""

    postgres_connections: int = 10
    postgres_timeout: float = 5.0
    """Longest wait for a connection of the pool."""

    load_limit: int = 16
    """Loads (of get_or_compute) at once, so that a dead cache does not bury what it is computed from."""
    lease: float = 30.0
    """How long the other processes believe that one of them is loading a key."""
    wait_limit: float = 10.0
    """How long a call waits for the load of another process before it loads too."""
    negative_ttl: float = 10.0
    """How long it is remembered that the loader found nothing; 0: not at all."""
    stale_for: float = 0.0
    """A value written in redis-only is kept this much longer than its ttl, to be used while a new one is loaded."""
    beta: float = 1.0
    """Of XFetch: more than 1 favours earlier refreshes, 0 switches them off."""

    shadow_sample: float = 0.05
    """Part of the reads from the column that are compared with Redis in the background."""
    shadow_outstanding: int = 8
    """Comparisons at once; a read beyond that is not compared, and counted as dropped."""
    shadow_grace: float = 0.5
    """After this long a difference is looked at again, to tell a race from a mismatch."""

    remembered_writes: int = 50_000
    """Keys of own writes whose version is remembered: no read returns an older value of these."""

    @property
    def client_lease(self) -> float:
        return 3 * self.poll_interval + self.lease_margin
