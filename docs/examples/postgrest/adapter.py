"""The cache over HTTP, through PostgREST (Supabase's Data API), for programs that cannot import cachemig.

Needs httpx alone. Each call is one request, one transaction and one SQL function of the schema `cachemig`; the database
decides by phase. A write leaves its mark in the same transaction, and `cachemig sync` carries it to Redis.

    cache = Cache("https://PROJECT.supabase.co/rest/v1", service_role_key)
    found = cache.get(file_hash)
    if found is None:
        cache.put(file_hash, analyse(file_hash))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import httpx


class Elsewhere(Exception):
    """The column is not used any more (phase redis-only or dropped): this call is for a client of Redis."""


class Refused(Exception):
    """PostgREST or Postgres refused the call; `code` is an SQLSTATE or begins with PGRST."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Found:
    """`version`: to be given to `put`; None where the role does not see every row, and before `dual-write`."""

    value: Any
    version: int | None
    phase: str
    reads_from: Literal["column", "redis"]
    """Where a client that has a connection to Redis would read. In cutover the column is as good, and never older."""


@dataclass(frozen=True)
class Stored:
    """`outcome`: written; no-row, where no row that this role sees has the key; changed, where `if_version` is over."""

    outcome: Literal["written", "no-row", "changed"]
    version: int | None
    phase: str


class Cache:
    """Raises Refused, Elsewhere, and httpx.HTTPError where nobody answers; a write may have been made then."""

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        schema: str = "cachemig",
        timeout_s: float = 5.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`api_key` stands for a role; `headers` may name a user by his own token: {"Authorization": "Bearer …"}."""
        self._client = httpx.Client(
            base_url=url,
            timeout=timeout_s,
            headers={
                "apikey": api_key,
                "Authorization": f"Bearer {api_key}",
                "Content-Profile": schema,
                "Accept": "application/vnd.pgrst.object+json",
                **(headers or {}),
            },
        )

    def get(self, key: str) -> Found | None:
        """The value; None where there is none."""
        row = self._call("get", key=key)
        if row["phase"] in ("redis-only", "dropped"):
            raise Elsewhere(row["phase"])
        if row["value"] is None:
            return None
        return Found(json.loads(row["value"]), row["version"], row["phase"], row["reads_from"])

    def put(self, key: str, value: Any, *, if_version: int | None = None) -> Stored:
        """Stores a value; None and {} remove it. `if_version`: only if nobody has written since that was read."""
        condition = {} if if_version is None else {"if_version": if_version}
        return self._stored(self._call("put", key=key, value=value, **condition))

    def invalidate(self, key: str) -> Stored:
        return self._stored(self._call("invalidate", key=key))

    def read_from(self, key: str) -> Literal["column", "redis"]:
        """Where a read of the key goes now. Ask each time: the answer is good until the ladder moves."""
        where: Literal["column", "redis"] = self._call("read_from", key=key)
        return where

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stored(self, row: dict[str, Any]) -> Stored:
        if row["outcome"] == "elsewhere":
            raise Elsewhere(row["phase"])
        return Stored(row["outcome"], row["version"], row["phase"])

    def _call(self, function: str, **arguments: Any) -> Any:
        # POST for reads too: by GET a key such as `eq.1` would be taken for a filter.
        answer = self._client.post(f"/rpc/{function}", json=arguments)
        if answer.is_success:
            return answer.json()
        try:
            told = answer.json()
            raise Refused(answer.status_code, told.get("code") or "", told.get("message") or "")
        except ValueError:
            raise Refused(answer.status_code, "", answer.text[:200]) from None
