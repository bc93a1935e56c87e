"""Our errors for what docker-py and requests raise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import requests
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound

from pipeline.errors import ToolError
from pipeline.system.disk import says_full

# What reading a damaged answer raises.
NONSENSE = (LookupError, TypeError, ValueError, AttributeError)
# docker-py reads streams of events past requests, so that a line that breaks is urllib3's exception
_LOST = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.TimeoutError,
)


class NotThere(ToolError):
    """The engine has no such image."""


def lost(what: str, *, silent: bool = False) -> ToolError:
    """``what``, since the engine went away, or said nothing for too long."""
    return ToolError(
        f"{what}: the Docker Engine {'does not answer' if silent else 'broke off'}",
        hint="it was stopped, or it hangs: see its log, and run the same command again once it answers",
    )


@contextlib.contextmanager
def translate_errors(doing: str) -> Iterator[None]:
    """Turn docker-py's and requests' exceptions into ours, and those of reading a damaged answer."""
    try:
        yield
    except ImageNotFound as error:
        raise NotThere(f"{doing}: {reason(error)}") from error
    except _LOST as error:
        raise lost(f"{doing} failed", silent="timed out" in str(error)) from error
    except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError) as error:
        hint = full_hint() if says_full(reason(error)) else ""
        raise ToolError(f"{doing} failed: {reason(error)}", hint=hint) from error
    except NONSENSE as error:
        raise ToolError(
            f"{doing} failed: what answers is not a Docker Engine, or a damaged one: {error!r}",
            hint="sqshpipe doctor says which one is asked",
        ) from error


def full_hint(root: str = "") -> str:
    """What to do about the engine's own disk; ``root`` is the folder on it, where no message names it."""
    disk = f"the Docker Engine's disk is full{f' ({root})' if root else ''}"
    return f"{disk}: docker system df says of what, docker system prune frees"


def reason(error: Exception) -> str:
    """The engine's own words, where it has some."""
    if isinstance(error, APIError) and error.explanation:
        return str(error.explanation)
    return str(error)
