"""reclaim: the price of each choice."""

from __future__ import annotations

from cachemig.steps.reclaim import Sizes, choices


def test_the_expected_time_is_that_of_reading_all_and_writing_what_stays() -> None:
    before = Sizes(
        heap=400_000_000, toast=1_600_000_000, indexes=100_000_000, table=2_100_000_000, database=3_000_000_000
    )
    none, full, repack = choices(before, 600_000_000, repack=True)
    assert (none.seconds, none.spare_bytes) == (0, 0)
    assert full.seconds == 2_000_000_000 / 200e6 + 600_000_000 / 60e6 == 20
    assert full.spare_bytes == 600_000_000
    assert repack.seconds == 40
    assert repack.available
    assert "not both there" not in repack.what
    assert "not both there" in choices(before, 1, repack=False)[2].what
