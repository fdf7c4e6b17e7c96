"""The report as a browser shows it: desktop and phone, dark and light. Skipped where there is no Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachemig.report import html
from cachemig.steps.report import report
from tests import browser
from tests.integration.conftest import Migrating
from tests.integration.frozen import drop_it, freeze, moved

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
LONG = "x" * 300
REHEARSAL = {
    "verdict": "every step went through",
    "seconds": 61.5,
    "steps": [{"command": f"cachemig verify --{LONG}", "why": "Compare.", "exit_code": 3, "seconds": 1}],
    "sql": [f"ALTER TABLE {LONG} DROP COLUMN a;"],
    "lint": [{"rule": "ban-drop-column", "message": LONG}],
}

# Every text with its contrast to what is behind it: WCAG 2.2, 1.4.3.
CONTRAST = """
(() => {
  const parse = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1] };
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.slice(0, 3).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3] === 1) return c;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('script') || ['title', 'desc'].includes(e.tagName)) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(parse(e instanceof SVGElement ? style.fill : style.color)), light(behind(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.trim().slice(0, 60)]);
  }
  return found;
})()
"""

# What stands out of the page, or of its chart, and labels of a chart that cover each other.
OVERFLOW = """
(() => {
  const wrong = [], wide = innerWidth + 0.5, page = document.documentElement.scrollWidth;
  if (page > innerWidth) wrong.push('the page: ' + page);
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > wide || box.left < -0.5)) wrong.push(e.tagName + ': ' + e.textContent.slice(0, 60));
  }
  for (const chart of document.querySelectorAll('svg.chart')) {
    const frame = chart.getBoundingClientRect();
    const boxes = [...chart.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, b], at) => {
      if (b.left < frame.left - 1 || b.right > frame.right + 1) wrong.push('cut off: ' + text);
      for (const [other, o] of boxes.slice(at + 1))
        if (b.left < o.right && o.left < b.right && b.top < o.bottom && o.top < b.bottom)
          wrong.push(text + ' covers ' + other);
    });
  }
  return wrong;
})()
"""

IMAGES = """
[...document.querySelectorAll('svg.chart, img')].map(e => [e.getAttribute('role'), e.getAttribute('aria-label'),
    e.querySelector('title')?.textContent, e.querySelector('desc')?.textContent])
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.page(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def looked_at(page: browser.Page, path: Path) -> int:
    """How many charts it has; whatever is wrong with it in any view is an assertion."""
    charts = 0
    for width in WIDTHS:
        for scheme in SCHEMES:
            page.open(path, width=width, scheme=scheme)
            contrasts = page.evaluate(CONTRAST)
            assert len(contrasts) > 50
            assert [(round(ratio, 2), text) for ratio, text in contrasts if ratio < 4.5] == [], (width, scheme)
            assert page.evaluate(OVERFLOW) == [], (width, scheme)
            images = page.evaluate(IMAGES)
            assert all(role == "img" and alt and title and told for role, alt, title, told in images), images
            assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
            assert page.complaints == []
            charts = len(images)
    return charts


def test_a_whole_migration_as_a_browser_shows_it(migrating: Migrating, page: browser.Page, tmp_path: Path) -> None:
    moved(migrating, {f"k{n}": "plain" for n in range(30)} | {"a": "aside", "e": "expired", "d": "deleted"})
    reported(migrating)
    freeze(migrating)
    migrating.execute(
        "INSERT INTO cachemig.journal (who, command, figures) VALUES ('me', 'reclaim', %s)",
        json.dumps({"method": LONG, "table_bytes_before": 10**9, "table_bytes_after": 10**6, "sql": [LONG],
                    "database_bytes_before": 10**10, "database_bytes_after": 10**9}),
    )  # fmt: skip
    drop_it(migrating)
    path = tmp_path / "report.html"
    html.write(path, report(migrating.settings, migrating.target, rehearsal=REHEARSAL).document())
    assert looked_at(page, path) == 7  # phases, throughput, sizes, expiries, latency, hit rate, disk


def reported(case: Migrating) -> None:
    """What a client reported, and what a ramp found."""
    latency = {
        "redis": {"p50": 0.2, "p95": 0.4, "p99": 1.25, "n": 800},
        "column": {"p50": 1, "p95": 2, "p99": 9, "n": 900},
    }
    stats = {"reads": {"redis": {"hit": 700, "miss": 100}, "column": {"hit": 900}}, "latency_ms": latency}
    case.execute(
        "INSERT INTO cachemig.client (id, name, lease_until, stats) VALUES ('c', 'app', now() - interval '1 h', %s)",
        json.dumps(stats),
    )
    case.execute(
        "INSERT INTO cachemig.journal (who, command, figures) VALUES ('me', 'ramp', %s)",
        json.dumps({"percent": 10.0, "figures": stats}),
    )


def test_one_that_has_only_begun(migrating: Migrating, page: browser.Page, tmp_path: Path) -> None:
    migrating.begin()
    path = tmp_path / "report.html"
    html.write(path, report(migrating.settings, migrating.target).document())
    assert looked_at(page, path) == 2  # phases, disk


def test_the_policy_is_in_force_and_each_check_can_fail(
    migrating: Migrating, page: browser.Page, tmp_path: Path
) -> None:
    migrating.begin()
    drawn = html.render(report(migrating.settings, migrating.target).document())
    elsewhere = "http://127.0.0.1:9/x.png"
    planted = f"<script>window.ran = 1</script><img src='{elsewhere}'><p style='color: red'>x</p></main>"
    path = tmp_path / "report.html"
    path.write_text(drawn.replace("</main>", planted))
    page.open(path, width=1280, scheme="light")
    for forbidden in ("script", "style", "image"):
        assert any(forbidden in text for text in page.complaints), page.complaints
    assert page.evaluate("window.ran") is None
    assert ["img", None, None, None] not in page.evaluate(IMAGES)
    assert [None, None, None, None] in page.evaluate(IMAGES)
    for change, check in (
        (
            "insertAdjacentHTML('beforeend', '<hr id=wide>'); document.querySelector('#wide').style.width = '3000px'",
            OVERFLOW,
        ),
        ("querySelector('svg text').setAttribute('x', '-5%')", OVERFLOW),
        ("querySelector('svg').append(document.querySelector('svg text').cloneNode(true))", OVERFLOW),
    ):
        page.open(path, width=1280, scheme="light")
        assert page.evaluate(check) == []
        page.evaluate(f"document.querySelector('main').{change}; 0")
        assert page.evaluate(check) != []
    page.evaluate("document.querySelector('.line').style.color = '#999'")
    assert min(ratio for ratio, _ in page.evaluate(CONTRAST)) < 4.5
    path.write_text(drawn.replace("Content-Security-Policy", "x").replace("</main>", planted))
    page.open(path, width=1280, scheme="light")
    assert elsewhere in page.requests
    assert page.evaluate("window.ran") == 1
