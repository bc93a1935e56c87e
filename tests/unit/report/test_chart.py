from datetime import datetime, timedelta, timezone

import pytest

from pipeline.report.chart import Bar, bars, steps

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("highest", "ticks"),
    [
        (0, ("1 B", "0")),
        (1, ("1 B", "0")),
        (990, ("1 kB", "500 B", "0")),
        (1_300_000, ("1.5 MB", "1 MB", "500 kB", "0")),
        (20_800_000_000_000, ("30 TB", "20 TB", "10 TB", "0")),
        (7_400_000_000, ("7.5 GB", "5 GB", "2.5 GB", "0")),
    ],
)
def test_ticks_are_round_and_reach_above_the_highest_value(highest: int, ticks: tuple[str, ...]) -> None:
    assert bars([Bar(highest, "published", "")]).ticks == ticks


def test_bars_are_as_high_as_the_axis_says() -> None:
    drawing = bars([Bar(500, "published", ""), Bar(1000, "yanked", '<b>&"')]).drawing
    assert "v-50h" in drawing
    assert "v-100h" in drawing
    assert 'class="bar yanked"' in drawing
    assert "<title>&lt;b&gt;&amp;&#34;</title>" in drawing
    assert "onload" not in bars([Bar(1, '" onload="', "")]).drawing


def test_steps_begin_and_end_where_the_times_do() -> None:
    points = [(START, 250), (START + timedelta(days=1), 500), (START + timedelta(days=4), 500)]
    drawing = steps(points).drawing
    assert 'd="M0 100H0V58.3H250V16.7H1000V16.7H1000"' in drawing
    assert 'd="M0 100H0V16.7H1000"' in steps(points[1:2]).drawing
