"""Pure functions only: nothing under tests/unit but demo/ starts a server.

Hypothesis: no deadline, because two slow cores shared with servers would make it a lottery; few examples, because the
whole of tests/unit is meant to take seconds. A failure prints what replays it.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "cachemig", deadline=None, max_examples=60, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("cachemig")
