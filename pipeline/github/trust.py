"""Whom the AWS roles trust: workflows of one repository, in one environment, on named branches and tags.

GitHub signs who runs (https://docs.github.com/actions/concepts/security/openid-connect); AWS compares the
token's subject. By default the subject of a job with an environment does not contain the branch. A setting of
the repository adds it; without this setting these policies match nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError

Role = Literal["build", "publish"]
ENVIRONMENTS: dict[Role, str] = {"build": "sqshpipe-build", "publish": "sqshpipe-publish"}
ISSUER = "token.actions.githubusercontent.com"
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}")
_REF = re.compile(r"refs/(?:heads|tags|pull)/[A-Za-z0-9._/*-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """One repository, ``owner/name``, an AWS account, and which refs may publish."""

    repository: str
    account: str
    partition: str = "aws"
    refs: Sequence[str] = ("refs/heads/main", "refs/tags/v*")

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repository):
            raise ConfigError(f"{self.repository!r} is not OWNER/NAME")
        if not re.fullmatch(r"[0-9]{12}", self.account):
            raise ConfigError(f"{self.account!r} is not an AWS account", hint="it has 12 digits")
        for ref in self.refs:
            # A bare * would also take the merge refs of pull requests.
            if not _REF.fullmatch(ref) or ref.split("/", 2)[2].startswith("*"):
                raise ConfigError(f"{ref!r} is not a ref that can be trusted", hint="such as refs/heads/main")

    def policy(self, role: Role) -> dict[str, Any]:
        """The trust policy of ``role``; ``build`` is also for pull requests of own branches."""
        refs = [*self.refs, "refs/pull/*/merge"] if role == "build" else list(self.refs)
        subjects = [f"repo:{self.repository}:environment:{ENVIRONMENTS[role]}:ref:{ref}" for ref in refs]
        return {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Sid": f"Sqshpipe{role.capitalize()}",
                    "Effect": "Allow",
                    "Principal": {
                        "Federated": f"arn:{self.partition}:iam::{self.account}:oidc-provider/{ISSUER}"
                    },
                    "Action": "sts:AssumeRoleWithWebIdentity",
                    "Condition": {
                        "StringEquals": {f"{ISSUER}:aud": "sts.amazonaws.com"},
                        "StringLike": {f"{ISSUER}:sub": subjects},
                    },
                }
            ],
        }

    def subject_setup(self) -> str:
        """The command that puts environment and ref into the subject, once a repository."""
        keys = " ".join(f"-f 'include_claim_keys[]={key}'" for key in ("repo", "environment", "ref"))
        where = f"repos/{self.repository}/actions/oidc/customization/sub"
        return f"gh api -X PUT {where} -F use_default=false {keys}"
