"""All tags of a repository. ETags are kept between runs, so that an unchanged list is not sent again.

NGC repositories have hundreds of tags, and a refresh asks for them every few hours; a registry that gives
ETags then answers 304 with nothing (RFC 9110, 13.1.2).
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from pipeline.registry.auth import Scope
from pipeline.registry.client import RegistryClient, next_page, tags_in
from pipeline.system import untrusted

_PAGE = 1000


def known_tags(client: RegistryClient, repository: str, cache: Path) -> list[str]:
    """All tags of ``repository``, sorted; ``cache`` is the folder where answers are kept.

    Raises RegistryError. A cache that cannot be read or written costs a request, nothing else.
    """
    path = cache / client.host.replace(":", "_") / f"{repository.replace('/', '%')}.json"
    etag, held = _held(path)
    answer = client.session.ask(
        "GET",
        f"/v2/{repository}/tags/list?n={_PAGE}",
        scopes=(Scope(repository, "pull"),),
        what=f"the tags of {client.host}/{repository}",
        expected=(200, 304),
        headers={"If-None-Match": etag} if etag else None,
    )
    if answer.status == 304:
        return held
    if next_page(answer) is not None:  # an ETag of the first page says nothing of the rest
        return client.tags(repository)
    tags = sorted(set(tags_in(answer, f"{client.host}/{repository}")))
    fresh = answer.headers.get("etag", "")
    if fresh and fresh.isascii() and fresh.isprintable():  # what a header takes back
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            untrusted.replace_file(path, json.dumps({"etag": fresh, "tags": tags}).encode())
    return tags


def _held(path: Path) -> tuple[str, list[str]]:
    try:
        data = json.loads(path.read_bytes())
        return str(data["etag"]), [str(tag) for tag in data["tags"]]
    except (OSError, ValueError, LookupError, TypeError):
        return "", []
