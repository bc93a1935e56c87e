"""Which IAM action a request to ECR's registry API needs, for the sentence that reports a refusal.

Source: the ECR API reference, where each action that "is used by the Amazon ECR proxy" says for which step
of a push or a pull. An answer to HEAD has no text, so only the request shows it.
"""

from __future__ import annotations

import re

_ACTIONS = {
    ("manifests", "PUT"): "PutImage",
    ("manifests", ""): "BatchGetImage",
    ("blobs/uploads", "POST"): "InitiateLayerUpload",
    ("blobs/uploads", "PUT"): "CompleteLayerUpload",
    ("blobs/uploads", ""): "UploadLayerPart",
    ("blobs", "HEAD"): "BatchCheckLayerAvailability",
    ("blobs", ""): "GetDownloadUrlForLayer",
    ("tags", ""): "ListImages",
    ("referrers", ""): "BatchGetImage",
}
_KIND = re.compile(r"/v2/.+/(manifests|blobs/uploads|blobs|tags|referrers)/")
_SAID = re.compile(r"not authorized to perform: (ecr:\w+)")


def needed(method: str, path: str) -> str:
    """``ecr:…`` for a request such as HEAD ``/v2/team/demo/manifests/v1``; empty for other requests."""
    kind = _KIND.search(path)
    if kind is None:
        return ""
    return f"ecr:{_ACTIONS.get((kind[1], method)) or _ACTIONS[kind[1], '']}"


def hint(action: str, said: str = "") -> str:
    """What to do about a refusal; ``said``, AWS's own words, counts before ``action``."""
    found = _SAID.search(said)
    named = found[1] if found else action
    allow = f"allow the action {named}" if named else "the AWS role lacks a permission"
    return f"{allow}; sqshpipe ecr policy prints what each role needs"
