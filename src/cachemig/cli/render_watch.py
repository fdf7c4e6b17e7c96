"""The live view and the journal, as lines of text that fit."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from cachemig.cli.screen import Screen, in_bytes, in_time, plain
from cachemig.ladder import Phase

if TYPE_CHECKING:
    from cachemig.source.control import Line
    from cachemig.source.workers import Running
    from cachemig.steps.status import History, Status
    from cachemig.steps.watch import View

WIDTH, HEIGHT = 80, 24
PLAIN_WIDTH = 132
_LABEL = 10
"""Columns of a section's name."""
_BAR = 24
_FEWEST = {"clients": 2, "workers": 4, "journal": 2}
"""Lines that a section keeps where there is little room; the journal gives way first."""
_DULL, _BAD, _HEAD = "dim", "bold red", "bold"

Lines = list[Text]


# The journal --------------------------------------------------------------------------------------------------------


def history(screen: Screen, result: History) -> None:
    if not result.lines:
        screen.line("the journal is empty")
        return
    rows = [(line.at.astimezone().isoformat(sep=" ")[:19], line.who, line.command, _moved(line), _figures(line.figures))
            for line in result.lines]  # fmt: skip
    screen.table(("when", "who", "command", "phase", "figures"), rows)
    screen.next("cachemig status; --json has every figure, and the SQL that was run")


def _moved(line: Line) -> str:
    if line.phase_from is None or line.phase_from == line.phase_to:
        return line.phase_to or ""
    return f"{line.phase_from} → {line.phase_to}"


_LEFT_OUT = ("fingerprint", "settings", "gates", "shadow", "recreate", "phase", "resumed_at", "file_bytes", "epoch")
_HASHES = ("sha256", "archive")


def _figures(figures: dict[str, Any]) -> str:
    """A few words: what is 0, empty or long is left out, and every hash."""
    parts = []
    for name, value in figures.items():
        words = name.replace("_", " ")
        match value:
            case _ if name in _LEFT_OUT or name in _HASHES:
                continue
            case bool():
                if value or name == "passed":
                    parts.append(words if value else f"not {words}")
            case None | 0 | "":
                continue
            case int() | float() if name.endswith("bytes") or "bytes_" in name or name == "max_rate":
                parts.append(f"{words} {in_bytes(value)}")
            case int() | float() if name == "seconds":
                parts.append(in_time(value))
            case int() | float():
                parts.append(f"{words} {value:,g}" if isinstance(value, float) else f"{words} {value:,}")
            case str():
                parts.append(f"{words} {value}" if len(value) <= 60 else f"{words} {value[:59]}…")
            case list() if name == "sql":
                parts.append(f"{len(value)} statement{'' if len(value) == 1 else 's'}")
            case dict() if value and all(isinstance(n, int) for n in value.values()):
                parts += [f"{n:,} {what}" for what, n in value.items() if n]
    return ", ".join(parts)


# The view -----------------------------------------------------------------------------------------------------------


def view(seen: View, width: int = WIDTH, height: int = HEIGHT) -> Lines:
    """The whole view: at most so many lines, none of them wider."""
    width = max(width, 20)
    head = [_title(seen, width), *_faults(seen, width)]
    foot: Lines = []
    sections: dict[str, Lines] = {}
    if (known := seen.status) is not None:
        head[1:1] = [_ladder(known)]
        head += [Text(), *_body(seen, known)]
        sections = {
            "workers": _workers(known, width),
            "clients": _clients(known),
            "journal": [_of_journal(line) for line in known.journal],
        }
        foot = [Text(), *_wrapped(Text("next: ", _HEAD) + plain(_next(known)), width, 2)]
    room = height - len(head) - len(foot) - sum(1 for lines in sections.values() if lines)
    shares = _shares({name: len(lines) for name, lines in sections.items()}, room)
    body: Lines = []
    for name, lines in sections.items():
        if shares[name]:
            body += [Text(), *_labelled(name, _cut(lines, shares[name], newest_last=name == "journal"))]
    whole = [*head, *body, *foot]
    for line in whole:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return whole[:height]


def _shares(wanted: dict[str, int], room: int) -> dict[str, int]:
    """Lines for each section: all of them or, where there are too many, the last named ones give way first."""
    shares = dict(wanted)
    for least in (_FEWEST, dict.fromkeys(_FEWEST, 1), dict.fromkeys(_FEWEST, 0)):
        for name in ("journal", "clients", "workers"):
            while sum(shares.values()) > room and shares.get(name, 0) > least[name]:
                shares[name] -= 1
    return shares


def _cut(lines: Lines, most: int, *, newest_last: bool) -> Lines:
    if len(lines) <= most:
        return lines
    if newest_last:
        return lines[-most:]
    if most == 1:
        return lines[:1]
    return [*lines[: most - 1], Text(f"and {len(lines) - most + 1} lines more", _DULL)]


def _labelled(name: str, lines: Lines, style: str = _HEAD) -> Lines:
    return [Text(f"{name if number == 0 else '':<{_LABEL}}", style) + line for number, line in enumerate(lines)]


def _wrapped(text: Text, width: int, most: int) -> Lines:
    """Over so many lines at most; the last one ends in an ellipsis where that is not enough."""
    lines: Lines = []
    rest = text.plain
    while rest and len(lines) < most:
        last = len(lines) == most - 1
        at = len(rest) if last or len(rest) <= width else (rest.rfind(" ", 0, width + 1) + 1 or width)
        lines.append(Text(rest[:at].rstrip()))
        rest = rest[at:]
    if lines and text.spans:
        lines[0].spans = [span for span in text.spans if span.end <= len(lines[0])]
    return lines


def _title(seen: View, width: int) -> Text:
    table = "" if seen.status is None else f"  {seen.status.table}.{seen.status.column}"
    clock = f"{seen.at:%H:%M:%S}"
    left = Text("cachemig watch", _HEAD) + plain(table)
    left.truncate(max(0, width - len(clock) - 1), overflow="ellipsis", pad=True)
    return left + Text(f" {clock}")


def _next(known: Status) -> str:
    running = {worker.command for worker in known.workers}
    if known.next_command in ("cachemig backfill", "cachemig verify") and known.next_command.split()[1] in running:
        return f"{known.next_command.removeprefix('cachemig ')} is running; wait for its end"
    return known.next_command


def _ladder(known: Status) -> Text:
    text = Text()
    for number, phase in enumerate(Phase):
        here = phase is known.phase
        name = f"{phase.value} {known.percent:g} %" if here and phase is Phase.CUTOVER else phase.value
        text += Text(" › " if number else "", _DULL) + Text(f"[{name}]" if here else name, _HEAD if here else _DULL)
    epoch = f"epoch {known.epoch}, " if known.epoch >= 0 else ""
    return text + Text(f"   {epoch}for {_age(known.since)}", _DULL)


def _age(moment: str) -> str:
    seconds = (datetime.now().astimezone() - datetime.fromisoformat(moment)).total_seconds()
    return in_time(max(0.0, seconds)) if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"


def _faults(seen: View, width: int) -> Lines:
    """What must not be overlooked, first of all."""
    found = []
    if seen.postgres_fault is not None:
        old = f" (what follows is {in_time(seen.age_s)} old)" if seen.status is not None else ""
        found.append(f"Postgres{old}: {_once('Postgres ', seen.postgres_fault)}")
    if seen.redis_fault is not None:
        found.append(f"Redis: {_once('Redis ', seen.redis_fault)}")
    known = seen.status
    if known is not None:
        if known.orders.paused_by:
            found.append(f"PAUSED by {known.orders.paused_by}; cachemig resume goes on")
        if known.phase is not Phase.IDLE and not known.capture and known.guard is None and known.column_is_there:
            found.append("capture is not on the table: writes of the application go unnoticed")
        if known.fenced:
            found.append("a rollback was begun and has not ended: writes to Redis alone are refused")
    return [line for text in found for line in _wrapped_in(text, width, _BAD)]


def _wrapped_in(text: str, width: int, style: str) -> Lines:
    lines = _wrapped(plain(text), width, 2)
    for line in lines:
        line.stylize(style)
    return lines


def _once(word: str, text: str) -> str:
    return text.removeprefix(word)


def _body(seen: View, known: Status) -> Lines:
    lines: Lines = []
    if known.phase in (Phase.IDLE, Phase.DUAL_WRITE, Phase.CUTOVER):
        lines += _labelled("backfill", _backfill(seen, known))
    lines += _labelled("backlog", [_backlog(known)])
    if known.late is not None and (known.late.writes or known.late.waiting or known.late.failed):
        late = known.late
        text = f"{late.writes:,} writes to the frozen column, {late.waiting:,} wait, {late.failed:,} failed"
        lines += _labelled("late", [Text(text, "yellow" if late.waiting or late.failed else "")])
    lines += _labelled("reads", _reads(seen, known))
    lines += _labelled("Redis", [_redis(seen, known)])
    lines += _labelled("verify", [_verified(known)])
    if known.soak is not None:
        over = "over" if not known.soak.rest_s else f"{in_time(known.soak.rest_s)} to go"
        lines += _labelled("soak", [Text(f"{in_time(known.soak.held_s)} of {in_time(known.soak.wanted_s)}: {over}")])
    if known.faults:
        count = sum(number for _, _, number, _ in known.faults)
        names = ", ".join(sorted({f"{state}: {fault}" for state, fault, _, _ in known.faults}))
        least = "at least " if known.more_faults else ""
        lines += _labelled("not moved", [Text(f"{least}{count:,} keys; ", "yellow") + plain(names)], "yellow")
    return lines


def _backfill(seen: View, known: Status) -> Lines:
    chunks = known.chunks
    if not known.laid_out:
        dividing = next((w.note for w in known.workers if w.command == "backfill" and w.note), None)
        return [plain(dividing or "not begun")]
    share = chunks.done / chunks.chunks if chunks.chunks else 1.0
    filled = int(share * _BAR)
    bar = Text("█" * filled, "green") + Text("░" * (_BAR - filled), _DULL)
    counts = f" {int(100 * share)} %  {chunks.done:,} of {chunks.chunks:,} chunks"
    done = f"{chunks.entries:,} entries, {in_bytes(chunks.bytes)}"
    if share == 1.0:
        return [bar + Text(counts + ", complete"), Text(done)]
    if not any(worker.command == "backfill" for worker in known.workers):
        return [bar + Text(counts), Text(f"{done}; ") + Text("no worker is running", "yellow")]
    left = "" if seen.left_s is None or not seen.rate_bytes_s else f", about {in_time(seen.left_s)} left"
    return [bar + Text(counts), Text(f"{done} at {in_bytes(seen.rate_bytes_s)}/s{left}")]


def _backlog(known: Status) -> Text:
    changes, oldest_s = known.backlog.changes, known.backlog.oldest_s
    if known.phase is Phase.IDLE:
        return Text("capture is off", _DULL)
    if not changes:
        return Text("none: every committed write is delivered")
    more = " or more" if changes >= 100_000 else ""
    lag = "" if oldest_s is None else f", the oldest {in_time(oldest_s)} old"
    text = Text(f"{changes:,} changes{more} to deliver{lag}")
    if not any(worker.command == "sync" for worker in known.workers):
        return text + Text("; no sync is running", "yellow")
    return text


def _reads(seen: View, known: Status) -> Lines:
    if not known.clients:
        return [Text("no application is registered", _DULL)]
    reads = seen.reads
    when = "since they started" if seen.reads_s is None else f"in the last {seen.reads_s:.0f} s"
    asked = reads.total("redis")
    if not asked:
        return [Text(f"none of Redis, {reads.total('column'):,} of the column {when}")]
    errors = reads.reads["redis"]["error"]
    bad = Text(f"{errors:,} errors, {reads.fallback:,} fallbacks", "yellow" if errors or reads.fallback else "")
    rate = f"{100 * (reads.hit_rate or 0):.1f} % hits of {asked:,} {when}; "
    return [Text(rate) + bad]


def _redis(seen: View, known: Status) -> Text:
    memory = known.redis
    if memory is None or memory.used is None:
        return Text("not known" if seen.redis_fault is None else "away", _DULL)
    if memory.limit is None:
        return Text(f"{in_bytes(memory.used)} used, without a limit (maxmemory is 0)")
    share = memory.used / memory.limit
    policy = f", {memory.policy}" if memory.policy else ""
    text = f"{in_bytes(memory.used)} of {in_bytes(memory.limit)} used ({100 * share:.0f} %){policy}"
    return Text(text, "red" if share > 0.95 else "yellow" if share > 0.85 else "")


def _verified(known: Status) -> Text:
    last = known.verify
    if last is None:
        return Text("never run", _DULL)
    counts = last.figures.get("counts", {})
    found = ", ".join(f"{n:,} {verdict}" for verdict, n in counts.items())
    sample = " (a sample)" if last.figures.get("sample") is not None else ""
    if last.figures.get("passed"):
        return Text(f"passed {_age(last.at)} ago{sample}: {found}")
    return Text(f"FAILED {_age(last.at)} ago{sample}: ", _BAD) + Text(found)


def _workers(known: Status, width: int) -> Lines:
    if not known.workers:
        return [Text("none is running", _DULL)]
    lines: Lines = []
    for worker in known.workers:
        lines.append(_worker(worker))
        if worker.reason:
            style = "red" if worker.waiting else "yellow"
            word = "waiting: " if worker.waiting and not worker.waiting.startswith("paused") else ""
            for line in _wrapped(plain(word + worker.reason), width - _LABEL - 2, 2):
                line.stylize(style)
                lines.append(Text("  ") + line)
        elif worker.note:
            lines.append(Text("  ") + plain(worker.note))
    return lines


def _worker(worker: Running) -> Text:
    name = worker.name if len(worker.name) <= 26 else f"…{worker.name[-25:]}"
    did = f"{worker.entries:,} entries" if worker.command != "sync" else f"{worker.done:,} changes"
    rate = f", {in_bytes(worker.bytes)}, {in_bytes(worker.rate_bytes_s)}/s"
    text = Text(f"{worker.command:<8} ") + plain(f"{name}  {did}{rate}")
    if worker.seen_s > 6:
        text += Text(f"  seen {in_time(worker.seen_s)} ago", "yellow")
    return text


def _clients(known: Status) -> Lines:
    lines = []
    for client in known.clients:
        behind = not client.acts_on(known.phase, known.percent)
        said = plain(f"{client.name} {client.acting}, seen {in_time(client.seen_s)} ago")
        lines.append(said + Text("  not here yet", "yellow") if behind else said)
    return lines


def _of_journal(line: Line) -> Text:
    when = f"{line.at.astimezone():%m-%d %H:%M:%S}"
    moved = f" {_moved(line)}" if line.phase_from not in (None, line.phase_to) else ""
    figures = _figures(line.figures)
    return Text(f"{when} ", _DULL) + plain(f"{line.command}{moved} by {line.who}") + plain(figures and f": {figures}")


# One line, for a log ------------------------------------------------------------------------------------------------


def one_line(seen: View) -> str:
    parts: list[str] = [] if seen.postgres_fault is None else [f"Postgres: {_once('Postgres ', seen.postgres_fault)}"]
    if seen.redis_fault is not None:
        parts.append(f"Redis: {_once('Redis ', seen.redis_fault)}")
    if (known := seen.status) is not None:
        parts.append(f"{known.phase.value} {known.percent:g} %" if known.phase is Phase.CUTOVER else known.phase.value)
        if known.orders.paused_by:
            parts.append(f"paused by {known.orders.paused_by}")
        if known.phase in (Phase.DUAL_WRITE, Phase.CUTOVER):
            parts.append("backfill " + ", ".join(line.plain.lstrip("█░ ") for line in _backfill(seen, known)))
        parts.append(f"backlog {_backlog(known).plain}")
        if seen.reads.hit_rate is not None:
            parts.append(f"hit rate {100 * seen.reads.hit_rate:.1f} %")
        if known.redis is not None:
            parts.append(f"Redis {_redis(seen, known).plain}")
        parts += [f"{w.command} {w.name}: {w.reason}" for w in known.workers if w.reason]
    return plain(f"{seen.at.isoformat(sep=' ')[:19]} watch: {'; '.join(parts)}").plain


def turn(seen: View) -> tuple[object, ...]:
    """What a log is to say at once when it changes: phase, and why something does not go on, without its figures."""

    def bare(text: str | None) -> str | None:
        return text and "".join(c for c in text if not c.isdigit())

    if (known := seen.status) is None:
        return (bare(seen.postgres_fault), bare(seen.redis_fault))
    reasons = {(worker.command, bare(worker.reason)) for worker in known.workers if worker.reason}
    stage = (known.phase, known.percent, known.epoch, known.orders.paused_by)
    return (bare(seen.postgres_fault), bare(seen.redis_fault), *stage, frozenset(reasons))
