"""Settings: flags, then CACHEMIG_* variables, then cachemig.toml, then defaults; resolved once, frozen, passed on.

One name everywhere: `key_column` in Python and TOML is `CACHEMIG_KEY_COLUMN` and `--key-column`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cachemig import windows
from cachemig.errors import ConfigError, did_you_mean
from cachemig.targets.address import address_of

CONFIG_FILE = "cachemig.toml"
_CODECS = ("json", "gzip", "zstd")


def duration(text: str) -> float:
    """Seconds in `90`, `90s`, `15m`, `12h` or `30d`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m, 12h or 30d")
    return float(match[1]) * {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def show_duration(seconds: float) -> str:
    """The shortest text that `duration` reads as this."""
    if not seconds:
        return "0s"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{Decimal(repr(seconds)).normalize():f}s"


def size(text: str) -> int:
    """Bytes in `4096`, `64KiB`, `32MiB` or `1GiB`; KB and MB mean the same powers of 1024, as Postgres has it."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B|B|)", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size such as 64KiB, 32MiB or 1GiB")
    return int(float(match[1]) * {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2].upper()[:1]])


def show_size(count: int) -> str:
    """The shortest text that `size` reads as this."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count and count % length == 0:
            return f"{count // length}{unit}"
    return str(count)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text} is not between 0 and 1")
    return value


def count(text: str) -> int:
    """A whole number from 0."""
    value = int(text)
    if value < 0:
        raise ValueError(f"{text} is below 0")
    return value


def factor(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text} is not a number above 0")
    return value


def share(text: str) -> float:
    """A number above 0, up to 1."""
    value = fraction(text)
    if not value:
        raise ValueError("0 would be no time at all")
    return value


def switch(text: str) -> bool:
    """On or off."""
    known = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise ValueError(f"{text!r} is not on or off")
    return known[text.lower()]


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


class choice:  # noqa: N801  # reads as the functions beside it
    """One of these words."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed

    def __call__(self, text: str) -> str:
        if text not in self.allowed:
            raise ValueError(f"{text!r} is not one of {', '.join(self.allowed)}{did_you_mean(text, self.allowed)}")
        return text


def template(text: str) -> str:
    """A key template: text around one `{key}`, by which these keys are known from others in the same Redis."""
    if text.count("{key}") != 1:
        raise ValueError(f"{text!r} must contain {{key}} exactly once")
    if text == "{key}" or text.startswith("cachemig:"):
        raise ValueError(f"{text!r} must tell these keys from others: put a prefix of your own before {{key}}")
    return text


def setting(
    default: Any, text: str, parse: Callable[[str], Any] = str, *, identity: bool = False, metavar: str = "TEXT"
) -> Any:
    """A field of Settings. `identity`: it decides what stands in Redis, so it must not change during a migration."""
    if isinstance(parse, choice) and metavar == "TEXT":
        metavar = "WORD"
    return field(default=default, metadata={"help": text, "parse": parse, "identity": identity, "metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run. `origins` tells where each value came from; secrets are never in repr()."""

    dsn: str = setting("", "of Postgres, as psql takes it; without it PG*, service file, .pgpass", metavar="DSN")
    read_dsn: str = setting(
        "",
        "a standby that backfill reads values from, where a unique constraint covers the key; '' for the primary",
        metavar="DSN",
    )
    redis_url: str = setting(
        "redis://localhost:6379/0",
        "redis://, rediss:// or unix://; of a cluster or sentinels: docs/deploy.md; its password from REDISCLI_AUTH",
        metavar="URL",
    )
    table: str = setting(
        "therapy_sessions", "table that holds the cache column, schema.table or table", identity=True, metavar="TABLE"
    )
    column: str = setting("analytics_cache", "the json or jsonb column to move", identity=True, metavar="COLUMN")
    key_column: str = setting("file_hash", "column that the cache is looked up by", identity=True, metavar="COLUMN")
    order_by: str = setting(
        "created_at",
        "where several rows share a key: the newest by this column is the entry; '' for none",
        identity=True,
    )
    key_template: str = setting("analysis:{key}", "name of the Redis key", template, identity=True)
    codec: str = setting("json", "json, gzip or zstd", choice(*_CODECS), identity=True)
    ttl: float = setting(
        30 * 86400.0, "lifetime of an entry; 0 for no expiry", duration, identity=True, metavar="DURATION"
    )
    ttl_from: str = setting(
        "last_accessed_at", "timestamp column that the lifetime counts from, or 'now'", identity=True
    )
    ttl_jitter: float = setting(
        0.1,
        "part of the lifetime added at random, the same for a key each time",
        fraction,
        identity=True,
        metavar="0..1",
    )
    shape: str = setting(
        "emg",
        "emg: what the EMG application writes, checked field by field; object: any JSON object; any: all JSON",
        choice("emg", "object", "any"),
        identity=True,
    )
    on_corrupt: str = setting(
        "auto",
        "recompute: repair the column from the recording; set-aside: leave out of Redis; copy: carry over as it is; "
        "stop: end the backfill; auto: recompute where recordings are configured, else set-aside",
        choice("auto", "recompute", "set-aside", "copy", "stop"),
    )
    recompute_profile: str = setting(
        "head", "which of the application's algorithms a recompute repeats: head or era", choice("head", "era")
    )
    recompute_shape: str = setting(
        "auto",
        "analysis or summary: what a recompute writes; auto: what most rows of the table hold",
        choice("auto", "analysis", "summary"),
    )
    recordings_location: str = setting(
        "",
        "where recordings are, as a template over the row's columns: /folder/{file_path}, s3://bucket/{file_path}, "
        "https:// or supabase://project/bucket/{file_path}",
    )
    recordings_endpoint: str = setting("", "S3 endpoint of the recordings; without it AWS's, or AWS_ENDPOINT_URL_S3")
    recordings_max_bytes: int = setting(256 * 2**20, "a larger recording is refused", size, metavar="SIZE")
    recordings_timeout: float = setting(
        300.0, "longest time for one recording to come, with its retries", duration, metavar="DURATION"
    )
    max_value_bytes: int = setting(256 * 2**20, "a larger value is set aside", size, identity=True, metavar="SIZE")
    capture: str = setting(
        "auto",
        "columns: UPDATE OF trigger; compare: OLD and NEW; auto: what the table needs",
        choice("auto", "columns", "compare"),
    )
    accept: tuple[str, ...] = setting(
        (), "findings of doctor that do not refuse a step, by name", names, metavar="NAMES"
    )
    chunk_bytes: int = setting(32 * 2**20, "rows of about this many bytes are one unit of resume", size, metavar="SIZE")
    batch_bytes: int = setting(4 * 2**20, "bytes in one pipeline to Redis", size, metavar="SIZE")
    batch_keys: int = setting(512, "keys in one pipeline to Redis", int, metavar="N")
    max_rate: int = setting(0, "bytes a second that one worker delivers at most; 0 for no limit", size, metavar="SIZE")
    max_load: int = setting(
        0, "slow down while more sessions of other programs are active in Postgres; 0 for no limit", count, metavar="N"
    )
    max_standby_lag: float = setting(
        0.0, "slow down while a standby is further behind; 0 for no limit", duration, metavar="DURATION"
    )
    max_redis_latency: float = setting(
        0.0, "slow down while Redis takes longer to answer a PING; 0 for no limit", duration, metavar="DURATION"
    )
    min_redis_memory: int = setting(
        0, "pause while less memory is free in Redis, below its maxmemory; 0 for no limit", size, metavar="SIZE"
    )
    duty: float = setting(
        1.0, "part of the time that a worker works; after each batch it waits the rest", share, metavar="0..1"
    )
    pause_windows: tuple[windows.Window, ...] = setting(
        (), "when work pauses by itself: mon-fri 08:00-18:00, sat 09:00-12:00", windows.parse, metavar="WINDOWS"
    )
    pause_windows_zone: str = setting(
        "UTC", "time zone of pause_windows, such as Europe/Berlin", windows.zone_name, metavar="ZONE"
    )
    gentle: bool = setting(
        False, "give way to applications: begin slowly, with careful values for limits that are not set", switch
    )
    app_roles: tuple[str, ...] = setting(
        (), "database roles of applications, which may call the functions in schema cachemig", names, metavar="NAMES"
    )
    lock_timeout: float = setting(2.0, "longest wait for a lock on the table, each try", duration, metavar="DURATION")
    retry_for: float = setting(
        900.0, "how long a server may be away or full before a run gives up", duration, metavar="DURATION"
    )
    redis_timeout: float = setting(30.0, "longest wait for one reply of Redis", duration, metavar="DURATION")
    wait_replicas: int = setting(
        0, "a delivery counts when so many replicas of the server have it (WAIT); 0 for none", count, metavar="N"
    )
    grace: float = setting(1.0, "verify reads a suspect again after this long", duration, metavar="DURATION")
    max_lag: float = setting(30.0, "a change older than this and not delivered is bad", duration, metavar="DURATION")
    verify_fresh: float = setting(
        3600.0, "a step up wants a verification of all keys no older than this", duration, metavar="DURATION"
    )
    cutover_max_lag: float = setting(
        5.0, "a change older than this and not delivered holds up a cutover", duration, metavar="DURATION"
    )
    soak_cutover: float = setting(
        86400.0, "stop-writes wants all reads to have come from Redis for so long", duration, metavar="DURATION"
    )
    soak_redis_only: float = setting(
        7 * 86400.0, "drop-column wants so long without a write to the column", duration, metavar="DURATION"
    )
    shadow_reads: int = setting(
        1000, "a cutover wants so many reads compared, where applications compare any", count, metavar="N"
    )
    client_wait: float = setting(
        30.0, "longest wait for applications to act on a step that was taken", duration, metavar="DURATION"
    )
    ramp_max_errors: float = setting(
        0.01, "a ramp goes back where more of the reads from Redis fail", fraction, metavar="0..1"
    )
    ramp_max_fallback: float = setting(
        0.05, "a ramp goes back where more of them fall back to the column", fraction, metavar="0..1"
    )
    ramp_max_mismatch: int = setting(0, "a ramp goes back where more of the reads compared differ", count, metavar="N")
    ramp_max_slowdown: float = setting(
        2.0, "a ramp goes back where p95 of Redis is more than so many times the column's", factor, metavar="FACTOR"
    )
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value}' for name, value, _ in self.shown())})"

    def shown(self) -> list[tuple[str, str, str]]:
        """(name, value, origin) of every setting, with secrets masked."""
        return [(f.name, mask(f.name, getattr(self, f.name)), self.origins.get(f.name, "default")) for f in fields()]

    @property
    def corrupt(self) -> str:
        """What is done with a corrupt value: recompute, set-aside, copy or stop."""
        if self.on_corrupt != "auto":
            return self.on_corrupt
        return "recompute" if self.recordings_location else "set-aside"

    def identity(self) -> dict[str, Any]:
        """The settings that decide what stands in Redis. Of `on_corrupt` that is only whether corrupt values do."""
        named = {f.name: getattr(self, f.name) for f in fields() if f.metadata["identity"]}
        return {**named, "copies_corrupt": self.corrupt == "copy"}

    def fingerprint(self) -> str:
        """Equal for two runs exactly when they would write the same keys and values."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]


GENTLE: Mapping[str, Any] = MappingProxyType(
    {
        "batch_bytes": 512 * 2**10,
        "max_load": 4,
        "max_standby_lag": 10.0,
        "max_redis_latency": 0.005,
        "min_redis_memory": 64 * 2**20,
        "duty": 0.25,
    }
)
"""What `gentle` stands for, where nothing else is said."""


def fields() -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(Settings) if f.name != "origins"]


def load(flags: Mapping[str, str | None], environment: Mapping[str, str], config: Path | None = None) -> Settings:
    """Settings from all four places.

    Raises ConfigError for a value that does not parse, an unknown name in the file, or a password in a flag or in the
    file (both are read by others: `ps`, shell history, version control).
    """
    known = {f.name: f for f in fields()}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(name: str, text: str, origin: str) -> None:
        try:
            values[name] = known[name].metadata["parse"](text)
        except (ValueError, OverflowError) as exc:
            raise ConfigError(f"{origin}: {name}: {exc}", hint=f"{name}: {known[name].metadata['help']}") from exc
        origins[name] = origin

    path = config or (Path(environment["CACHEMIG_CONFIG"]) if environment.get("CACHEMIG_CONFIG") else None)
    for name, text in read_file(path or Path(CONFIG_FILE), required=path is not None).items():
        if name not in known:
            raise ConfigError(
                f"{path or CONFIG_FILE}: unknown setting {name!r}{did_you_mean(name, known)}", hint=ALL_SETTINGS
            )
        refuse_secret(name, text, f"{path or CONFIG_FILE}")
        take(name, text, str(path or CONFIG_FILE))
    if environment.get("CACHE_TTL_SECONDS"):  # the first user's own name for it
        take("ttl", environment["CACHE_TTL_SECONDS"], "CACHE_TTL_SECONDS")
    _refuse_misspelt(environment, known)
    for name in known:
        variable = f"CACHEMIG_{name.upper()}"
        if variable in environment:
            take(name, environment[variable], variable)
    for name, flag in flags.items():
        if flag is not None:
            refuse_secret(name, flag, f"--{name.replace('_', '-')}")
            take(name, flag, f"--{name.replace('_', '-')}")
    if values.get("gentle"):
        for name in GENTLE.keys() - origins.keys():
            values[name], origins[name] = GENTLE[name], "gentle"
    settings = Settings(**values, origins=origins)
    try:
        address_of(settings.redis_url)
    except ValueError as exc:
        raise ConfigError(f"{origins['redis_url']}: redis_url {exc}", hint="redis://HOST:6379/0") from None
    for name in ("batch_keys", "batch_bytes", "chunk_bytes"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{origins[name]}: {name} must be at least 1", hint=f"leave {name} out for its default")
    return settings


def _refuse_misspelt(environment: Mapping[str, str], known: Collection[str]) -> None:
    """A variable that is none of ours is refused only where it is nearly one: others may stand there for reasons of
    their own, as Kubernetes's CACHEMIG_SERVICE_HOST for a service of this name."""
    variables = [f"CACHEMIG_{name.upper()}" for name in known]
    for variable in sorted(environment.keys() - set(variables)):
        if not variable.startswith("CACHEMIG_") or variable.startswith("CACHEMIG_TEST_"):
            continue
        if guess := did_you_mean(variable, variables, 0.87):
            raise ConfigError(f"{variable} is no setting{guess}", hint=f"unset {variable}, or give it that name")


def read_file(path: Path, *, required: bool) -> dict[str, str]:
    """The file's settings as text; `[section] name` is the same as `section_name`."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{path}: no such file", hint="cachemig init writes one") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}", hint='mend that line of it: name = "value"') from exc
    flat: dict[str, str] = {}
    for name, value in document.items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        for sub, item in inner:
            text = ",".join(map(str, item)) if isinstance(item, list) else str(item)
            flat[f"{name}_{sub}" if sub else name] = text
    return flat


def mask(name: str, value: object) -> str:
    """The value as it may be shown: passwords replaced."""
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if name == "redis_url":
        return _masked_url(text)
    if name == "recordings_location" and text:  # the query of its URL may hold a token
        from cachemig.recordings.location import masked

        return masked(text)
    if name in ("dsn", "read_dsn") and text:
        from psycopg import ProgrammingError, conninfo

        try:
            return conninfo.make_conninfo(
                "",
                **{k: ("***" if k in _LIBPQ_SECRETS else v) for k, v in conninfo.conninfo_to_dict(text).items()},
            )
        except ProgrammingError:
            return "(not a valid DSN)"
    return text


ALL_SETTINGS = "docs/cli.md lists every setting"
SECRET = ("dsn", "read_dsn", "redis_url")
"""Settings that may hold a password."""
_LIBPQ_SECRETS = ("password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")
_ADDRESS = re.compile(r"[^:]*(:\d+)?(/\d*)?")
_ADDRESSES = re.compile(r"[^:,/]*(:\d+)?(,[^:,/]*(:\d+)?)*(/[^/:]*)?(/\d*)?")


def _masked_url(url: str) -> str:
    """Whatever unescaped characters a password holds, none of it is left."""
    scheme, separator, rest = url.partition("//")
    pattern = _ADDRESSES if "+" in scheme else _ADDRESS
    address = rest.partition("?")[0]
    # An @ behind the ? ends a password with a ? in it, unless what stands before the ? is an address already.
    end = rest.rfind("@") if "@" in address or not pattern.fullmatch(address) else -1
    if "@" in address and pattern.fullmatch(address[address.rfind("@") + 1 :]):
        end = address.rfind("@")
    user, colon, _ = rest[: max(end, 0)].partition(":")
    if colon:
        rest = f"{user}:***{rest[end:]}"
    return scheme + separator + re.sub(r"(?<=[?&])((?:ssl_|sentinel_)?password=)[^&]*", r"\1***", rest)


def refuse_secret(name: str, text: str, origin: str) -> None:
    if name in SECRET and mask(name, text) != text and "***" in mask(name, text):
        where = {
            "redis_url": "REDISCLI_AUTH or CACHEMIG_REDIS_URL",
            "read_dsn": "~/.pgpass or CACHEMIG_READ_DSN",
        }.get(name, "PGPASSWORD, ~/.pgpass or CACHEMIG_DSN")
        raise ConfigError(f"{origin}: {name} must not contain a password there", hint=f"put it into {where}")
