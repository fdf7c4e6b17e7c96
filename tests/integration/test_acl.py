"""docs/deploy.md says what is true: the Redis user that it makes, its health check, its systemd unit."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis, exceptions

from cachemig.demo.servers import RedisServer
from cachemig.entries.verdicts import Verdict
from cachemig.ladder import Phase
from cachemig.steps import doctor, dual_write
from cachemig.steps.clean import clean
from cachemig.steps.plan import plan
from cachemig.steps.resync import resync
from cachemig.targets.keys import slot
from tests.conftest import REPOSITORY, OwnRedis
from tests.integration.cluster import RedisCluster
from tests.integration.conftest import Migrating, finish
from tests.integration.serving import move, opened_sync

DEPLOY = (REPOSITORY / "docs" / "deploy.md").read_text()
UNIT = REPOSITORY / "docs" / "examples" / "cachemig-sync.service"
ACL = next(line for line in DEPLOY.splitlines() if line.startswith("ACL SETUSER cachemig "))
APPLICATION_ACL = next(line for line in DEPLOY.splitlines() if line.startswith("ACL SETUSER app "))
((BOTH_ON_A_CLUSTER, CACHEMIG_ON_A_CLUSTER),) = re.findall(
    r"^Both need (.*?) besides for a Redis Cluster, and the first one (.*?);$", DEPLOY, re.MULTILINE
)
PASSWORD = "p@ss"


@pytest.fixture
def server(own_redis: OwnRedis) -> RedisServer:
    """A Redis with the documented user."""
    server = own_redis()
    rules = ACL.replace("SHA256_OF_THE_PASSWORD", hashlib.sha256(PASSWORD.encode()).hexdigest())
    with Redis.from_url(server.url) as admin:
        admin.execute_command(*rules.split())
        admin.execute_command(
            *APPLICATION_ACL.replace("SHA256_OF_THE_PASSWORD", hashlib.sha256(b"app").hexdigest()).split()
        )
    return server


@pytest.fixture
def admin(server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        client.config_resetstat()
        client.acl_log_reset()
        yield client


@pytest.fixture
def as_documented(migrating: Migrating, server: RedisServer) -> Migrating:
    """The migration as the documented user, under the default template, in a database other than 0."""
    migrating.redis_url = server.url.replace("unix://", "unix://cachemig:p%40ss@") + "?db=1"
    migrating.redis.close()
    migrating.redis = Redis.from_url(server.url + "?db=1")
    return migrating


def whole_migration(migrating: Migrating, ttl: str) -> None:
    migrating.set(key_template="analysis:{key}", ttl=ttl)
    for key, size in {"tiny": 2, "large": 20_000, "huge": 5 * 2**20, "{braced}": 20_000, "gone": 2}.items():
        migrating.put(key, {"x": "y" * size})
    found = doctor.examine(migrating.settings, migrating.target)
    assert [f for f in found if f.level is doctor.Level.ERROR] == []
    assert plan(migrating.settings, migrating.target).redis_error is None
    migrating.begin()
    assert migrating.backfill().tally.failed == 0
    migrating.execute("UPDATE sessions SET cache = cache || '{\"again\": 1}' WHERE file_hash <> 'gone'")
    migrating.execute("DELETE FROM sessions WHERE file_hash = 'gone'")
    assert migrating.sync().tally.failed == 0
    verified = migrating.verify()
    assert verified.outcome.passed
    assert verified.counts[Verdict.MATCH] == 4
    assert resync(migrating.settings, migrating.target, []).marked == 5
    migrating.sync()
    migrating.backfill()
    assert migrating.verify().outcome.passed
    finish(dual_write.switch(migrating.settings, migrating.target, enable=False))
    removed = finish(clean(migrating.settings, migrating.target, execute=True, values=True))
    assert (removed.own_keys, removed.values) == (5, 4)
    assert migrating.redis.dbsize() == 0
    migrating.execute("TRUNCATE sessions")


def test_the_documented_user_can_do_everything_and_nothing_is_listed_in_vain(
    as_documented: Migrating, admin: Redis
) -> None:
    for ttl in ("30d", "0"):
        whole_migration(as_documented, ttl)
    refused = {entry["object"] for entry in admin.acl_log()}
    assert refused == {"config|get"}  # doctor asks, and can do without
    used = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    listed = {rule.removeprefix("+") for rule in ACL.split() if rule.startswith("+")}
    assert listed <= used


@pytest.mark.long
def test_the_documented_users_on_a_cluster(clustered: Migrating, redis_cluster: RedisCluster) -> None:
    own, both = ({*re.findall(r"\+[a-z|]+", found)} for found in (CACHEMIG_ON_A_CLUSTER, BOTH_ON_A_CLUSTER))
    digests = {"cachemig": hashlib.sha256(PASSWORD.encode()).hexdigest(), "app": hashlib.sha256(b"app").hexdigest()}
    for number in range(len(redis_cluster.servers)):
        for rules, more in ((ACL, both | own), (APPLICATION_ACL, both)):
            user = rules.split()[2]
            allowed = rules.replace("SHA256_OF_THE_PASSWORD", digests[user]).split()
            redis_cluster.do(number, *allowed, *more)
        redis_cluster.do(number, "ACL", "LOG", "RESET")
        redis_cluster.do(number, "CONFIG", "RESETSTAT")
    plain = clustered.redis_url
    clustered.redis_url = plain.replace("://", "://cachemig:p%40ss@")
    clustered.set(key_template="analysis:{key}", wait_replicas="1")
    for key, size in {"tiny": 2, "large": 20_000, "{braced}": 20_000}.items():
        clustered.put(key, {"x": "y" * size})
    assert [f for f in doctor.examine(clustered.settings, clustered.target) if f.level is doctor.Level.ERROR] == []
    clustered.begin()
    assert clustered.backfill().tally.failed == 0
    assert clustered.verify().outcome.passed
    move(clustered, Phase.CUTOVER)
    number = slot(b"analysis:tiny")
    home = redis_cluster.owner(number)
    source = redis_cluster.open_slot(number, (home + 1) % 3)  # so that ASKING is used
    with opened_sync(clustered, plain.replace("://", "://app:app@")) as cache:
        assert cache.put("large", {"x": 1}).delivered
        assert cache.get("tiny") == {"x": "yy"}
        assert cache.health().redis_reachable
    assert [found.value is not None for found in clustered.target.fetch(["tiny", "large"])] == [True, True]
    for server in (source, (home + 1) % 3):
        redis_cluster.do(server, "CLUSTER", "SETSLOT", number, "STABLE")
    move(clustered, Phase.DUAL_WRITE)
    finish(dual_write.switch(clustered.settings, clustered.target, enable=False))
    finish(clean(clustered.settings, clustered.target, execute=True, values=True))
    refused, used = set(), set()
    for client in redis_cluster.clients:
        refused |= {entry["object"] for entry in client.acl_log()}
        used |= {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
        client.execute_command("ACL", "DELUSER", "cachemig", "app")  # type: ignore[no-untyped-call]
    assert refused <= {"config|get"}
    assert {rule.removeprefix("+") for rule in own | both} <= used


def test_an_application_can_do_everything_as_its_documented_user(as_documented: Migrating, admin: Redis) -> None:
    migrating = as_documented
    migrating.set(key_template="analysis:{key}")
    for key, size in {"tiny": 2, "large": 20_000, "{braced}": 20_000}.items():
        migrating.put(key, {"x": "y" * size})
    migrating.begin()
    migrating.backfill()
    admin.config_resetstat()
    admin.acl_log_reset()
    url = migrating.redis_url.replace("cachemig:p%40ss@", "app:app@")
    for phase in (Phase.DUAL_WRITE, Phase.CUTOVER, Phase.REDIS_ONLY):
        move(migrating, phase)
        for ttl in ("30d", "0"):
            lifetime = {"30d": 2_592_000.0, "0": 0.0}[ttl]
            migrating.execute(
                "UPDATE cachemig.migration SET settings = settings || jsonb_build_object('ttl', %s::float8)", lifetime
            )
            with opened_sync(migrating, url) as cache:
                for key, size in {"tiny": 2, "large": 20_000, "{braced}": 20_000}.items():
                    assert cache.put(key, {"x": "z" * size}).delivered
                    assert cache.get(key) == {"x": "z" * size}
                    assert cache.invalidate(key).delivered
                    assert cache.get_or_compute(key, lambda: {"x": 1}) == {"x": 1}
                assert cache.get_or_compute("nobody", lambda: None) is None
                cache.warm(["tiny"])
                assert cache.health().redis_reachable
    assert admin.acl_log() == []
    used = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    listed = {rule.removeprefix("+") for rule in APPLICATION_ACL.split() if rule.startswith("+")}
    assert listed - used <= {"client|setinfo", "select"}  # by the driver, as it sees fit


@pytest.mark.parametrize(
    "command",
    ["GET other", "SET cachemig:x 1", "FLUSHALL", "CONFIG GET requirepass", "KEYS *", "ACL LIST", "PUBLISH c m"],
)
def test_the_documented_user_can_do_nothing_else(as_documented: Migrating, command: str) -> None:
    as_documented.set(key_template="analysis:{key}")
    client = as_documented.target.client
    assert client.ping()
    with pytest.raises(exceptions.NoPermissionError):
        client.execute_command(*command.split())  # type: ignore[no-untyped-call]  # redis-py has no type for it


def test_the_health_check(migrating: Migrating, tmp_path: Path) -> None:
    (check,) = re.findall(r"^cachemig status --json .*$", DEPLOY, re.MULTILINE)
    check = check.replace("cachemig", f"{shlex.quote(sys.executable)} -m cachemig", 1).replace(
        "python3", shlex.quote(sys.executable)
    )

    def health() -> tuple[int, str]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PG", "CACHEMIG_"))},
            "CACHEMIG_DSN": migrating.dsn,
        }
        done = subprocess.run(
            ["bash", "-c", check], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.strip()

    assert health() == (1, "There is no migration in this database yet.")
    migrating.begin()  # writes cachemig.toml into the directory
    assert health() == (0, "oldest change 0 s")
    migrating.put("a", {"a": 1})
    assert health()[0] == 0
    migrating.execute("UPDATE cachemig.change SET at = at - interval '61 s'")
    assert health()[0] == 1
    migrating.sync()
    assert health() == (0, "oldest change 0 s")
    migrating.execute("ALTER TABLE sessions DISABLE TRIGGER cachemig_capture")
    assert health()[0] == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    # Its only complaint would be that the program is not installed here.
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text()))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_runs_a_command_that_there_is() -> None:
    (arguments,) = re.findall(r"^ExecStart=\S+/cachemig (.*)$", UNIT.read_text(), re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-m", "cachemig", *arguments.split(), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
