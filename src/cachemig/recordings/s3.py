"""Recordings in S3, or in what speaks its protocol: Supabase Storage at https://<project>.supabase.co/storage/v1/s3,
MinIO, and others. Through s3fs.

Keys come from where every AWS client takes them: AWS_* variables, the profile, the role of the machine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from cachemig.recordings.errors import RecordingUnavailable, by_status
from cachemig.recordings.store import Read, load

EXTRA = "'cachemig[s3]'"


@dataclass(frozen=True)
class S3:
    """A Store of keys in one bucket."""

    bucket: str
    endpoint: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @asynccontextmanager
    async def opened(self, path: str, stall: float) -> AsyncIterator[Read]:
        s3fs = load("s3fs", EXTRA)
        aiohttp = load("aiohttp", EXTRA)
        botocore = load("botocore.exceptions", EXTRA)
        config: dict[str, Any] = {
            "connect_timeout": stall,
            "read_timeout": stall,
            "retries": {"total_max_attempts": 1},  # the attempts are counted in one place, which is not here
        }
        if self.endpoint:
            config["s3"] = {"addressing_style": "path"}  # what is not AWS seldom has a host name for each bucket
        given = self.environment.get
        region = given("AWS_REGION") or given("AWS_DEFAULT_REGION")
        fs = s3fs.S3FileSystem(
            asynchronous=True,
            skip_instance_cache=True,
            endpoint_url=self.endpoint,
            key=given("AWS_ACCESS_KEY_ID"),
            secret=given("AWS_SECRET_ACCESS_KEY"),
            token=given("AWS_SESSION_TOKEN"),
            client_kwargs={"region_name": region} if region else {},
            config_kwargs=config,
        )
        fs.retries = 1
        try:
            client = await fs.set_session()
            try:
                yield (await fs.open_async(f"{self.bucket}/{path}", "rb")).read
            finally:
                await client.close()
        except RecordingUnavailable:
            raise
        except (botocore.NoCredentialsError, botocore.PartialCredentialsError, botocore.CredentialRetrievalError):
            raise RecordingUnavailable(
                "forbidden", "no AWS keys were found", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        except (botocore.ProfileNotFound, botocore.ParamValidationError, ValueError):
            raise RecordingUnavailable(
                "not-configured", "the endpoint, profile or bucket is not one that S3 can have"
            ) from None
        except KeyError:  # s3fs reads the Content-Length without looking whether there is one
            raise RecordingUnavailable("refused", "the server does not say how long the answer is") from None
        except (botocore.SSLError, aiohttp.ClientSSLError):
            raise RecordingUnavailable("unreachable", "the server's TLS certificate is not trusted") from None
        except (botocore.IncompleteReadError, aiohttp.ClientPayloadError):
            raise RecordingUnavailable("unreachable", "the answer was cut short", transient=True) from None
        except (OSError, botocore.BotoCoreError, aiohttp.ClientError) as exc:
            raise _refusal(exc) from None


def _refusal(exc: Exception) -> RecordingUnavailable:
    """What an error of s3fs means. It turns botocore's into an OSError, whose cause holds the status."""
    response = getattr(exc.__cause__, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    if isinstance(status, int) and status >= 300:
        return by_status(status)
    return RecordingUnavailable("unreachable", f"no answer from the server ({type(exc).__name__})", transient=True)
