"""report: in every phase, whatever stands in keys, names and the journal, and without Redis."""

from __future__ import annotations

import hashlib
import json
from html.parser import HTMLParser
from typing import Any

import pytest

from cachemig.errors import NotInitialised
from cachemig.report import html
from cachemig.steps import cutover, rollback
from cachemig.steps import report as step
from cachemig.steps.report import Report
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish, on
from tests.integration.frozen import NO_SOAK, drop_it, freeze, moved, value

HOSTILE = "<!-- <script </script x=</script><script>alert(1)</script><img src=x onerror=\"alert('&')\"> \u2028\u202e"
KINDS = {"same": "plain", "other": "changed", "past": "expired", "gone": "deleted"}


def made(case: Migrating, **options: Any) -> Report:
    return step.report(case.settings, case.target, **options)


def drawn(report: Report) -> Drawn:
    return Drawn(html.render(report.document()))


class Drawn(HTMLParser):
    """The page as a parser reads it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.page = page
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.within: list[str] = []
        self.words: list[str] = []
        self.data = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.within and self.within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.within[-1:] == ["script"]:
            self.data += data
        elif self.within[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def require_inert(self) -> None:
        """No script but data, no handler, no link to anywhere, and the policy."""
        scripts = [attrs for tag, attrs in self.tags if tag == "script"]
        assert scripts == [{"type": "application/json", "id": "report-data"}]
        assert not [attrs for _, attrs in self.tags if any(name.startswith("on") or name == "style" for name in attrs)]
        assert not {tag for tag, _ in self.tags} & {"img", "iframe", "object", "embed", "form", "a", "base", "audio"}
        links = [attrs[name] for _, attrs in self.tags for name in ("href", "src", "action") if name in attrs]
        assert links == ["data:,"]
        (policy,) = [
            a["content"] for t, a in self.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policy is not None
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy


SECTIONS = (
    "Who, when, what", "Timeline", "Verification", "Exceptions", "What was moved", "Throughput", "Sizes", "Expiry",
    "Reads", "Hit rate", "Size of the database", "SQL", "Linter", "The way back", "Archive", "Rehearsal", "Settings",
    "Approval",
)  # fmt: skip


def test_every_phase_gives_a_whole_report(migrating: Migrating) -> None:
    with pytest.raises(NotInitialised):
        made(migrating)
    told = {}

    def look(name: str) -> Report:
        before = migrating.execute(
            "SELECT (SELECT count(*) FROM cachemig.journal), (SELECT max(id) FROM cachemig.journal)"
        )
        report = made(migrating, no_clients=True)
        page = drawn(report)
        page.require_inert()
        assert [words for words in SECTIONS if words not in page.text] == []
        assert report.conclusion.line in page.text
        assert page.text.index(report.conclusion.line) < page.text.index("Who, when, what")
        assert json.loads(page.data) == report.document()
        told[name] = (report.conclusion.tone, report.conclusion.line)
        assert migrating.execute("SELECT count(*), max(id) FROM cachemig.journal") == before
        return report

    moved(migrating, {**KINDS, "aside": "aside"})
    assert [part.phase for part in look("dual-write").stretches] == ["idle", "dual-write"]
    begun = look("dual-write")
    assert begun.sizes[0].what == "init"
    assert begun.sizes[0].table > 0
    assert [(e.state, e.fault, e.keys) for e in begun.exceptions] == [("set-aside", "not-an-object", 1)]
    assert sum(slot.bytes for slot in begun.throughput) == pytest.approx(
        migrating.execute("SELECT sum((figures ->> 'bytes')::int)::int FROM cachemig.chunk")[0][0], abs=1
    )
    assert sum(keys for _, keys in begun.ledger.sizes) == 2
    assert sum(keys for _, keys in begun.ledger.expiries) == 2
    migrating.set(**NO_SOAK)
    assert migrating.verify(accept_set_aside=1).outcome.passed
    finish(cutover.cutover(migrating.settings, migrating.target, Stop(), 100.0, no_clients=True))
    look("cutover")
    finish(rollback.rollback(migrating.settings, migrating.target, Stop()))
    assert "No step of this migration has been taken back" not in drawn(look("back")).text
    freeze(migrating)
    frozen = look("redis-only")
    assert [g["gate"] for g in frozen.gates if not g["met"]] == ["verify", "archive"]
    migrating.execute(
        "INSERT INTO cachemig.archive (who, location, rows, entries, bytes, sha256, epoch, checked_at)"
        " SELECT 'me', 'archive.zst', 1, 1, 1, sha256('x'), epoch, now() FROM cachemig.migration"
    )
    assert migrating.verify(accept_set_aside=1).outcome.passed
    look("ready")
    drop_it(migrating)
    look("just dropped")
    assert migrating.verify(accept_set_aside=1).outcome.passed
    last = look("dropped")
    assert [part.phase for part in last.stretches] == [
        "idle", "dual-write", "cutover", "dual-write", "cutover", "redis-only", "dropped",
    ]  # fmt: skip
    assert [s.what for s in last.sizes] == ["init", "drop-column", "now"]
    assert last.ran[-1].undo
    migrating.redis.delete(value(migrating, "same"))
    assert not migrating.verify(accept_set_aside=1).outcome.passed
    assert "the last verification found 1 missing" in look("lost").conclusion.why
    in_use = ("wait", "Not yet safe to drop: the column is in use.")
    unproven = "The column is dropped; that nothing was lost is not proven now."
    assert told == {
        "dual-write": in_use,
        "cutover": in_use,
        "back": in_use,
        "redis-only": ("wait", "Not yet safe to drop: 2 of 7 gates are not met."),
        "ready": ("good", "Safe to drop: every gate of drop-column is met."),
        "just dropped": ("wait", unproven),
        "dropped": ("good", "Dropped, and proven equal: all 3 keys are what the ledger says was delivered."),
        "lost": ("bad", unproven),
    }


def test_without_redis_nothing_is_proven_and_it_says_so(migrating: Migrating) -> None:
    moved(migrating, KINDS)
    freeze(migrating)
    drop_it(migrating)
    assert migrating.verify().outcome.passed
    assert made(migrating).conclusion.tone == "good"
    on(migrating, "redis://127.0.0.1:9/0")
    report = made(migrating)
    assert report.conclusion.tone == "wait"
    assert any("127.0.0.1" in why or "Redis" in why for why in report.conclusion.why)
    page = drawn(report)
    page.require_inert()
    assert "did not answer" in page.text


def test_a_redis_that_lost_what_was_proven(migrating: Migrating) -> None:
    moved(migrating, KINDS)
    freeze(migrating)
    drop_it(migrating)
    assert migrating.verify().outcome.passed
    migrating.redis.delete(migrating.target.marker_key)
    conclusion = made(migrating).conclusion
    assert conclusion.tone == "wait"
    assert any("flushed" in why for why in conclusion.why)


def test_no_key_and_nothing_hostile_gets_out(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", f"me{HOSTILE}")
    key, other = f"patient{HOSTILE}", "patient-two"
    moved(migrating, {key: "aside", other: "aside", "plain-patient": "plain"})
    migrating.execute(
        "UPDATE cachemig.entry SET state = 'failed', error = %s WHERE key = %s", f"redis: ERR no {other}", other
    )
    migrating.execute("UPDATE cachemig.entry SET error = %s WHERE key = %s", f"{key}: is wrong", key)
    migrating.execute(
        "INSERT INTO cachemig.journal (who, command, figures) VALUES (%s, %s, %s)",
        HOSTILE,
        f"verify{HOSTILE}",
        json.dumps({"cases": [{"key": other}], "note": other, "why": {other: 1, "deep": {"said": other}}, "moved": 12,
                    "faults": {f"redis: ERR {other}": 1, f"{other}: x": 2}, "shadow": {other: {"match": 1}},
                    "sql": [HOSTILE], "because": HOSTILE, "left": [other]}),
    )  # fmt: skip
    rehearsal = {"verdict": HOSTILE, "reason": {"a": 1}, "seconds": "soon", "unknown": other,
                 "steps": ["x", {"command": HOSTILE, "why": None, "exit_code": 0, "seconds": 1, "output": other}],
                 "sql": [HOSTILE, 7], "lint": [HOSTILE, {"rule": HOSTILE, "deep": {"a": other}}]}  # fmt: skip
    report = made(migrating, rehearsal=rehearsal)
    page = drawn(report)
    page.require_inert()
    saved = json.dumps(report.document(), ensure_ascii=False)
    for text in (page.page, saved):
        assert "patient" not in text
    assert not set("<>&") & set(page.data)
    assert "alert(1)" in page.text
    assert "\u202e" not in page.page
    for each in (key, other):
        assert hashlib.sha256(each.encode()).hexdigest()[:12] in page.text
    assert {(e.state, e.fault) for e in report.exceptions} == {("failed", "redis: ERR"), ("set-aside", "not named")}
    (line,) = [line for line in report.journal if line.command.startswith("verify<")]
    assert line.figures == {"moved": 12, "faults": {"redis: ERR": 1, "not named": 2}, "because": HOSTILE}
    assert json.loads(page.data) == report.document()

    clear = drawn(made(migrating, rehearsal=rehearsal, show_keys=True))
    clear.require_inert()
    assert other in clear.text
    assert "patient<!-- <script </script x=</script><script>alert(1)</script><img" in clear.text


def test_passwords_stay_out(migrating: Migrating) -> None:
    migrating.begin()
    migrating.dsn += " password=hunter2"
    migrating.set()
    assert "hunter2" not in html.render(made(migrating).document())
    migrating.redis_url = migrating.redis_url.replace("unix://", "unix://someone:hunter2@")
    migrating.set()
    assert "hunter2" not in html.render(made(migrating).document())


def test_a_large_ledger_is_sampled_and_said_to_be(migrating: Migrating) -> None:
    migrating.begin()
    migrating.execute(
        "INSERT INTO cachemig.entry (key_id, key, version, state, sha256, bytes, expires_at)"
        " SELECT cachemig.key_id(n::text), n, 0, 'delivered', sha256('x'), 1000, now() + interval '3 days'"
        " FROM generate_series(1, 20000) AS n"
    )
    exact, sampled = made(migrating), made(migrating, large=2000)
    assert exact.ledger.share == 1
    assert exact.ledger.states == [("delivered", 20000, 20_000_000)]
    assert exact.ledger.sizes == [(10, 20000)]
    assert exact.ledger.expiries == [(71, 20000)]
    assert 0 < sampled.ledger.share < 0.5
    assert sampled.ledger.states[0][1] == pytest.approx(20000, rel=0.5)
    assert sampled.ledger.states[0][1] != 20000
    assert "% of the ledger’s pages" in drawn(sampled).text
    assert "% of the ledger’s pages" not in drawn(exact).text


def test_a_long_journal_is_cut_by_command(migrating: Migrating) -> None:
    migrating.begin()
    migrating.execute("INSERT INTO cachemig.journal (who, command) SELECT 'me', 'sync' FROM generate_series(1, 103)")
    report = made(migrating)
    assert report.journal_left_out == {"sync": 3}
    assert report.journal[0].command == "init"
    assert "3 earlier lines of sync are not listed" in drawn(report).text
