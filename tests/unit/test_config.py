"""Settings: which of the four places counts, what is refused, and that no secret is shown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import pq

from cachemig.config import (
    GENTLE,
    Settings,
    choice,
    count,
    duration,
    factor,
    fields,
    fraction,
    load,
    mask,
    names,
    show_duration,
    size,
    template,
)
from cachemig.errors import ConfigError
from cachemig.windows import Window

SECRET = "s3cr3t"


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Away from a cachemig.toml of the developer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("config"))
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


# Precedence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "variable", "in_file"),
    list(itertools.product([True, False], repeat=3)),
    ids=lambda given_: str(int(given_)),
)
def test_flags_then_environment_then_file_then_default(file: Path, flag: bool, variable: bool, in_file: bool) -> None:
    file.write_text("key_column = 'of_file'" if in_file else "")
    settings = load(
        {"key_column": "of_flag" if flag else None},
        {"CACHEMIG_KEY_COLUMN": "of_variable"} if variable else {},
        file,
    )
    value, origin = next(
        found
        for given_, found in (
            (flag, ("of_flag", "--key-column")),
            (variable, ("of_variable", "CACHEMIG_KEY_COLUMN")),
            (in_file, ("of_file", str(file))),
            (True, ("file_hash", "default")),
        )
        if given_
    )
    assert settings.key_column == value
    assert ("key_column", value, origin) in settings.shown()


@pytest.mark.parametrize("name", [f.name for f in fields()])
def test_every_setting_has_one_name_everywhere(file: Path, name: str) -> None:
    text, value, _ = OTHER[name]
    flag = f"--{name.replace('_', '-')}"
    file.write_text(f"{name} = {text!r}")
    for settings, origin in (
        (load({name: text}, {}), flag),
        (load({}, {f"CACHEMIG_{name.upper()}": text}), f"CACHEMIG_{name.upper()}"),
        (load({}, {}, file), str(file)),
    ):
        assert getattr(settings, name) == value
        assert {n: o for n, o in settings.origins.items() if o != "gentle"} == {name: origin}
        assert getattr(settings, name) != getattr(Settings(), name)


def test_the_first_users_name_for_the_lifetime(file: Path) -> None:
    file.write_text("ttl = '1h'")
    first = {"CACHE_TTL_SECONDS": "7200"}
    ours = {"CACHEMIG_TTL": "3h"}
    assert load({}, first).ttl == 7200
    assert load({}, first, file).origins["ttl"] == "CACHE_TTL_SECONDS"
    assert load({}, first | ours, file).ttl == 3 * 3600
    assert load({}, first | ours, file).origins["ttl"] == "CACHEMIG_TTL"
    assert load({"ttl": "4h"}, first | ours, file).ttl == 4 * 3600
    assert load({}, {"CACHE_TTL_SECONDS": ""}, file).ttl == 3600


def test_defaults() -> None:
    settings = load({}, {})
    assert settings == Settings()
    assert settings.ttl == 30 * 86400
    assert {origin for _, _, origin in settings.shown()} == {"default"}
    assert [name for name, _, _ in settings.shown()] == [f.name for f in fields()]


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().table = "x"  # type: ignore[misc]  # that is the point


# The file ---------------------------------------------------------------------------------------------------------


def test_a_section_is_a_prefix(file: Path) -> None:
    file.write_text("table = 't'\nttl_from = 'now'\n[key]\ncolumn = 'k'\ntemplate = 'a:{key}'\n[batch]\nkeys = 7\n")
    settings = load({}, {}, file)
    assert (settings.key_column, settings.key_template, settings.batch_keys) == ("k", "a:{key}", 7)
    assert settings.ttl_from == "now"
    assert settings.origins["batch_keys"] == str(file)


def test_tomls_own_types(file: Path) -> None:
    file.write_text("ttl = 3600\nttl_jitter = 0.5\nbatch_bytes = 4096\naccept = ['one', 'two']\n")
    settings = load({}, {}, file)
    assert (settings.ttl, settings.ttl_jitter, settings.batch_bytes) == (3600.0, 0.5, 4096)
    assert settings.accept == ("one", "two")


def test_the_file_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cachemig.toml", "other.toml", "third.toml"):
        Path(name).write_text(f"table = '{name}'")
    assert load({}, {}).table == "cachemig.toml"
    assert load({}, {}).origins == {"table": "cachemig.toml"}
    assert load({}, {"CACHEMIG_CONFIG": "other.toml"}).table == "other.toml"
    assert load({}, {"CACHEMIG_CONFIG": "other.toml"}, Path("third.toml")).table == "third.toml"


@pytest.mark.parametrize("environment", [{}, {"CACHEMIG_CONFIG": "nowhere.toml"}])
def test_a_file_that_was_asked_for_must_be_there(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load({}, environment, None if environment else Path("nowhere.toml"))


@pytest.mark.parametrize("content", [b"table = ", b"table = 'a'\ntable = 'b'", b"table = '\xff'"], ids=repr)
def test_a_file_that_is_not_toml(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load({}, {}, file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("tabel = 'x'", "unknown setting 'tabel'; did you mean 'table'?"),
        ("[key]\ncolum = 'x'", "unknown setting 'key_colum'; did you mean 'key_column'?"),
        ("xyzzy = 1", "unknown setting 'xyzzy'"),
        ("origins = 'x'", "unknown setting 'origins'"),
    ],
)
def test_an_unknown_name(file: Path, content: str, said: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load({}, {}, file)
    assert str(caught.value).startswith(f"{file}: {said}")
    assert ("did you mean" in str(caught.value)) is ("did you mean" in said)
    assert caught.value.exit_code == 2


# Values -----------------------------------------------------------------------------------------------------------

WRONG = {
    "ttl": "soon",
    "codec": "brotli",
    "key_template": "analysis",
    "ttl_jitter": "1.5",
    "max_value_bytes": "much",
    "batch_keys": "many",
    "shape": "round",
    "capture": "perhaps",
    "soak_cutover": "a day",
    "soak_redis_only": "a week",
    "shadow_reads": "-1",
    "ramp_max_mismatch": "0.5",
    "ramp_max_errors": "2",
    "ramp_max_slowdown": "0",
    "client_wait": "-1s",
}


@pytest.mark.parametrize(("name", "text"), WRONG.items())
def test_a_value_that_does_not_parse_names_its_origin(file: Path, name: str, text: str) -> None:
    file.write_text(f"{name} = {text!r}")
    flag, variable = f"--{name.replace('_', '-')}", f"CACHEMIG_{name.upper()}"
    for arguments, origin in (
        (({name: text}, {}, None), flag),
        (({}, {variable: text}, None), variable),
        (({}, {}, file), str(file)),
    ):
        with pytest.raises(ConfigError) as caught:
            load(*arguments)
        assert str(caught.value).startswith(f"{origin}: {name}: ")
        assert caught.value.exit_code == 2
        assert caught.value.hint


def test_the_first_users_name_is_named_when_it_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"^CACHE_TTL_SECONDS: ttl: 'soon' is not a duration"):
        load({}, {"CACHE_TTL_SECONDS": "soon"})


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "", "redis6://h"])
def test_a_redis_url_of_another_kind(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^CACHEMIG_REDIS_URL: redis_url must begin with"):
        load({}, {"CACHEMIG_REDIS_URL": url})


@pytest.mark.parametrize("name", ["batch_keys", "batch_bytes", "chunk_bytes"])
def test_at_least_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.* must be at least 1"):
        load({name: "0"}, {})


@given(seconds=st.integers(0, 999_999) | st.integers(0, 10**9).map(lambda minutes: minutes * 60))
def test_a_duration_is_read_as_it_is_shown(seconds: int) -> None:
    assert duration(show_duration(float(seconds))) == seconds


@pytest.mark.parametrize("seconds", [1_000_001.0, 1_234_567.0, 90_061.123, 0.00001])
def test_an_odd_duration_is_read_as_it_is_shown(seconds: float) -> None:
    assert duration(show_duration(seconds)) == seconds


@given(number=st.integers(0, 10**9), space=st.sampled_from(["", " "]))
def test_units_of_time(number: int, space: str) -> None:
    units = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    for unit, length in units.items():
        assert duration(f" {number}{space}{unit} ") == pytest.approx(number * length)


def test_durations() -> None:
    assert [duration(text) for text in ("90", "90s", "1.5h", "15m", "30d", "250ms")] == [
        90, 90, 5400, 900, 2592000, 0.25
    ]  # fmt: skip
    assert [show_duration(s) for s in (0, 0.25, 1, 59, 60, 90, 3600, 5400, 86400, 2592000)] == [
        "0s", "0.25s", "1s", "59s", "1m", "90s", "1h", "90m", "1d", "30d"
    ]  # fmt: skip


@given(number=st.integers(0, 2**33))
def test_units_of_size(number: int) -> None:
    for power, letters in ((0, ["", "B"]), (10, ["K", "k"]), (20, ["M", "m"]), (30, ["G", "g"])):
        for unit in letters if not power else [f"{x}{end}" for x in letters for end in ("B", "iB", "ib")]:
            assert size(f"{number}{unit}") == size(f" {number} {unit}") == number << power
    assert size("1.5KiB") == 1536


@given(value=st.floats(0, 1))
def test_a_fraction_is_read_as_it_is_written(value: float) -> None:
    assert fraction(repr(value)) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (duration, ["", "-1s", "1w", "1e3", "inf", "nan", "1h30m", "s", "1.s", ".5s", "1 0s"]),
        (size, ["", "-1", "1TB", "1e3", "inf", "KB", "1 K B", "0x10"]),
        (fraction, ["", "-0.1", "1.01", "nan", "inf", "-inf", "10%"]),
        (count, ["", "-1", "1.5", "1e3", "nan"]),
        (factor, ["", "0", "-1", "nan", "inf", "x"]),
        (choice("a", "b"), ["", "A", "a,b"]),
        (template, ["", "analysis", "{key}{key}", "{ key }", "{KEY}"]),
    ],
    ids=["duration", "size", "fraction", "count", "factor", "choice", "template"],
)
def test_what_is_refused(parse: type, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(ValueError):
            parse(text)


def test_a_size_beyond_all_bounds() -> None:
    with pytest.raises(ConfigError):
        load({"batch_bytes": "9" * 400}, {})


@given(items=st.lists(st.from_regex(r"[a-z-]{1,8}", fullmatch=True), max_size=5))
def test_names(items: list[str]) -> None:
    assert names(" , ".join(items)) == names(",".join(items) + ",") == tuple(items)


# Secrets ----------------------------------------------------------------------------------------------------------

DSNS = [
    f"postgresql://app:{SECRET}@db.example/app",
    f"postgres://app:{SECRET}@db.example:5432,db2.example/app?sslmode=require",
    f"postgresql://db.example/app?user=app&password={SECRET}",
    f"postgresql://app@db.example/app?sslpassword={SECRET}",
    f"host=db.example user=app password={SECRET}",
    f"password = 'a\\'b {SECRET}' host=db.example",
    f"host=db.example sslkey=k sslpassword={SECRET}",
    f"host=db.example scram_client_key={SECRET}",
]
URLS = [
    f"redis://:{SECRET}@cache.example:6379/0",
    f"redis://app:{SECRET}@cache.example:6379/0",
    f"rediss://app:{SECRET}@cache.example:6379/0?ssl_cert_reqs=required",
    f"redis://cache.example:6379/0?password={SECRET}",
    f"redis://cache.example:6379/0?db=1&password={SECRET}&socket_timeout=3",
    f"unix://app:{SECRET}@/run/redis.sock",
    f"unix:///run/redis.sock?password={SECRET}",
    f"redis://app:a/b{SECRET}@cache.example",
    f"redis://app:p@{SECRET}@cache.example",
    f"redis://a/b:{SECRET}@cache.example",
    f"redis://cache.example?ssl_password={SECRET}",
    f"redis://cache.example:6379/0?password=p@{SECRET}",
    f"redis://app:p?{SECRET}@cache.example:6379/0",
    f"redis+cluster://app:{SECRET}@a.example:6379,b.example:6380/0",
    f"rediss+cluster://:{SECRET}@a.example,b.example",
    f"redis+cluster://app:a/b,{SECRET}@a.example:1,b.example:2",
    f"redis+cluster://app:{SECRET}@[::1]:7000,b.example:7001/0",
    f"redis+cluster://a.example:1,b.example:2/0?password={SECRET}",
    f"redis+cluster://app:p@{SECRET},x@a.example:1,b.example:2/0",
    f"redis+sentinel://app:{SECRET}@a.example:26379,b.example/mymaster/0",
    f"rediss+sentinel://a.example/mymaster/0?sentinel_password={SECRET}",
]
if pq.version() >= 180000:
    DSNS += [f"host=h oauth_client_secret={SECRET}", f"host=h scram_server_key={SECRET}"]
SECRETS = [pytest.param("dsn", dsn, id=dsn) for dsn in DSNS] + [pytest.param("redis_url", url, id=url) for url in URLS]


@pytest.mark.parametrize(("name", "text"), SECRETS)
def test_a_secret_from_the_environment_is_used_and_never_shown(name: str, text: str) -> None:
    settings = load({}, {f"CACHEMIG_{name.upper()}": text})
    assert getattr(settings, name) == text
    shown = f"{settings!r} {settings} {settings.shown()} {settings.origins}"
    assert SECRET not in shown
    assert "***" in shown
    assert ".example" in shown or "host=h" in shown or "unix" in shown, "the rest is shown"


@pytest.mark.parametrize(("name", "text"), SECRETS)
def test_a_secret_in_a_flag_or_in_the_file_is_refused(file: Path, name: str, text: str) -> None:
    file.write_text(f'{name} = """{text}"""'.replace("\\", "\\\\"))
    for flags, config, origin in (({name: text}, None, f"--{name.replace('_', '-')}"), ({}, file, str(file))):
        with pytest.raises(ConfigError) as caught:
            load(flags, {}, config)
        assert str(caught.value) == f"{origin}: {name} must not contain a password there"
        assert ("REDISCLI_AUTH" if name == "redis_url" else "PGPASSWORD") in (caught.value.hint or "")
        assert SECRET not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dsn", "postgresql://app@db.example:5432/app?sslmode=verify-full"),
        ("dsn", "host=/run/postgresql user=app application_name='a b'"),
        ("dsn", "service=app"),
        ("redis_url", "redis://cache.example:6379/0"),
        ("redis_url", "rediss://app@cache.example:6380/1?ssl_ca_certs=/etc/ca.pem"),
        ("redis_url", "unix:///run/redis.sock?db=1"),
        ("redis_url", "redis://cache.example:6379/0?client_name=a@b"),
        ("redis_url", "redis+cluster://app@a.example:6379,b.example:6380/0"),
        ("redis_url", "rediss+sentinel://a.example:26379,b.example:26379/mymaster/0?ssl_ca_certs=/etc/ca.pem"),
    ],
)
def test_an_address_without_a_secret_is_accepted_everywhere(file: Path, name: str, text: str) -> None:
    file.write_text(f'{name} = "{text}"')
    assert getattr(load({name: text}, {}), name) == getattr(load({}, {}, file), name) == text


passwords = (
    st.text(min_size=1, max_size=12)
    .map(lambda text: f"{text}{SECRET}{text[::-1]}")
    .filter(lambda text: "\x00" not in text)
)


@given(password=passwords)
def test_no_password_is_shown_however_it_is_written(password: str) -> None:
    quoted = quote(password, safe="")
    escaped = password.replace("\\", "\\\\").replace("'", "\\'")
    for name, text in (
        ("dsn", f"postgresql://app:{quoted}@h/app"),
        ("dsn", f"host=h password='{escaped}'"),
        ("redis_url", f"redis://app:{quoted}@h:6379/0"),
        ("redis_url", f"redis://h:6379/0?password={quoted}"),
    ):
        assert SECRET not in mask(name, text)
        with pytest.raises(ConfigError):
            load({name: text}, {})


def test_a_dsn_that_does_not_parse_is_not_shown() -> None:
    settings = load({}, {"CACHEMIG_DSN": f"host=h password='{SECRET}"})
    assert SECRET not in repr(settings)
    assert "(not a valid DSN)" in repr(settings)


def test_gentle_sets_what_nothing_else_does_and_says_so(file: Path) -> None:
    file.write_text("gentle = true\nmax_load = 9")
    settings = load({"duty": "1"}, {"CACHEMIG_MIN_REDIS_MEMORY": "0"}, file)
    chosen = {name for name in GENTLE if settings.origins[name] == "gentle"}
    assert chosen == GENTLE.keys() - {"max_load", "duty", "min_redis_memory"}
    assert all(getattr(settings, name) == GENTLE[name] for name in chosen)
    assert (settings.max_load, settings.duty, settings.min_redis_memory) == (9, 1.0, 0)
    assert load({"gentle": "off"}, {}, file).duty == load({}, {}).duty == 1.0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("duty", "0"),
        ("duty", "1.5"),
        ("gentle", "perhaps"),
        ("max_load", "-1"),
        ("pause_windows", "at night"),
        ("pause_windows_zone", "Europe/Nowhere"),
    ],
)
def test_limits_that_make_no_sense_are_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load({name: text}, {})


# Identity ---------------------------------------------------------------------------------------------------------

# For every setting another value: its text, its value, and whether it decides what stands in Redis.
OTHER: dict[str, tuple[str, object, bool]] = {
    "dsn": ("host=other", "host=other", False),
    "read_dsn": ("host=other", "host=other", False),
    "redis_url": ("redis://other", "redis://other", False),
    "table": ("other", "other", True),
    "column": ("other", "other", True),
    "key_column": ("other", "other", True),
    "order_by": ("other", "other", True),
    "key_template": ("other:{key}", "other:{key}", True),
    "codec": ("zstd", "zstd", True),
    "ttl": ("7d", 7 * 86400.0, True),
    "ttl_from": ("now", "now", True),
    "ttl_jitter": ("0.2", 0.2, True),
    "shape": ("any", "any", True),
    "on_corrupt": ("stop", "stop", False),
    "recompute_profile": ("era", "era", False),
    "recompute_shape": ("summary", "summary", False),
    "recordings_location": ("/data/{file_path}", "/data/{file_path}", False),
    "recordings_endpoint": ("https://s3.example", "https://s3.example", False),
    "recordings_max_bytes": ("1KiB", 1024, False),
    "recordings_timeout": ("5s", 5.0, False),
    "max_value_bytes": ("1MiB", 2**20, True),
    "capture": ("compare", "compare", False),
    "accept": ("a,b", ("a", "b"), False),
    "chunk_bytes": ("1MiB", 2**20, False),
    "batch_bytes": ("1MiB", 2**20, False),
    "batch_keys": ("7", 7, False),
    "max_rate": ("10MiB", 10 * 2**20, False),
    "max_load": ("8", 8, False),
    "max_standby_lag": ("10s", 10.0, False),
    "max_redis_latency": ("5ms", 0.005, False),
    "min_redis_memory": ("1GiB", 2**30, False),
    "duty": ("0.5", 0.5, False),
    "pause_windows": ("mon-fri 08:00-18:00", (Window((0, 1, 2, 3, 4), 480, 1080),), False),
    "pause_windows_zone": ("Europe/Berlin", "Europe/Berlin", False),
    "gentle": ("on", True, False),
    "app_roles": ("anon,service_role", ("anon", "service_role"), False),
    "lock_timeout": ("5s", 5.0, False),
    "retry_for": ("1m", 60.0, False),
    "redis_timeout": ("5s", 5.0, False),
    "wait_replicas": ("2", 2, False),
    "grace": ("5s", 5.0, False),
    "max_lag": ("1m", 60.0, False),
    "verify_fresh": ("30m", 1800.0, False),
    "cutover_max_lag": ("1s", 1.0, False),
    "soak_cutover": ("48h", 172800.0, False),
    "soak_redis_only": ("14d", 1209600.0, False),
    "shadow_reads": ("200", 200, False),
    "client_wait": ("1m", 60.0, False),
    "ramp_max_errors": ("0.5", 0.5, False),
    "ramp_max_fallback": ("0.5", 0.5, False),
    "ramp_max_mismatch": ("3", 3, False),
    "ramp_max_slowdown": ("1.5", 1.5, False),
}


def test_every_setting_is_written_down_here() -> None:
    assert list(OTHER) == [f.name for f in fields()]


@pytest.mark.parametrize("name", OTHER)
def test_the_fingerprint_changes_with_what_stands_in_redis_and_with_nothing_else(name: str) -> None:
    _, value, decides = OTHER[name]
    changed = replace(Settings(), **{name: value})  # type: ignore[arg-type]  # of the setting's own type
    assert (changed.fingerprint() != Settings().fingerprint()) is decides
    assert (name in Settings().identity()) is decides


def test_whether_corrupt_values_stand_in_redis_is_part_of_the_fingerprint() -> None:
    assert Settings(on_corrupt="copy").fingerprint() != Settings().fingerprint()
    assert Settings(on_corrupt="set-aside").fingerprint() == Settings(on_corrupt="recompute").fingerprint()


def test_a_corrupt_value_is_recomputed_where_recordings_are_configured() -> None:
    assert Settings().corrupt == "set-aside"
    assert Settings(recordings_location="/data/{file_path}").corrupt == "recompute"
    assert Settings(recordings_location="/data/{file_path}", on_corrupt="stop").corrupt == "stop"


def test_the_fingerprint_does_not_ask_where_a_value_came_from(file: Path) -> None:
    file.write_text("ttl = 604800\nmax_value_bytes = '1024KiB'")
    of_flags = load({"ttl": "7d", "max_value_bytes": "1MiB"}, {})
    assert of_flags.fingerprint() == load({}, {}, file).fingerprint()
    assert of_flags.origins != load({}, {}, file).origins


def test_the_fingerprint_does_not_move_between_releases() -> None:
    """It is stored in the database: another one of the same settings would end every migration under way."""
    assert Settings().fingerprint() == "fb196d9424d3c297"
