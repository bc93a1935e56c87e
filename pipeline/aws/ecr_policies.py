"""The least that each role needs in IAM, as policy documents (pure); see docs/explanation/ecr.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pipeline.config.ecr_hosts import partition_of

Role = Literal["builder", "node", "scanner", "owner"]
ROLES: tuple[Role, ...] = ("builder", "node", "scanner", "owner")

_PULL = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
_PUSH = (
    "ecr:CompleteLayerUpload",
    "ecr:InitiateLayerUpload",
    "ecr:PutImage",
    "ecr:UploadLayerPart",
)
_SCAN = ("ecr:DescribeImageScanFindings", "ecr:StartImageScan")
_TAGS = ("ecr:ListImages",)  # an enroot that only imports by tag
_LOOK = ("ecr:DescribeRepositories", "ecr:GetLifecyclePolicy")
_MAKE = ("ecr:CreateRepository", "ecr:PutLifecyclePolicy")
_CHANGE = ("ecr:PutImageScanningConfiguration", "ecr:PutImageTagMutability")
_KMS = ("kms:CreateGrant", "kms:DescribeKey", "kms:RetireGrant")
# These cannot be bound to a repository.
_TOKEN = ("ecr:GetAuthorizationToken",)
_REGISTRY = ("ecr:GetRegistryScanningConfiguration",)
_INSPECTOR = ("inspector2:GetConfiguration", "inspector2:ListCoverage", "inspector2:ListFindings")


def policy(
    role: Role,
    *,
    account: str,
    region: str,
    prefix: str = "",
    enhanced: bool = False,
    kms_key: str | None = None,
    signing_profile: str | None = None,
) -> dict[str, Any]:
    """The policy document of ``role`` on the repositories under ``prefix``.

    builder: pulls, pushes, makes missing repositories, reads findings. node: pulls. scanner: reads findings
    and pulls for trivy. owner: what ``ecr apply`` changes beyond that. Who makes repositories that
    ``kms_key`` encrypts has to be able to grant ECR its use; who pushes what ``signing_profile`` signs has
    to be able to sign with it.
    """
    partition = partition_of(region).name
    repositories = f"{prefix}/*" if prefix else "*"
    arn = f"arn:{partition}:ecr:{region}:{account}:repository/{repositories}"
    on_repositories: dict[Role, tuple[str, ...]] = {
        "builder": (*_PULL, *_PUSH, *_SCAN, *_TAGS, *_LOOK, *_MAKE),
        "node": _PULL,
        "scanner": (*_PULL, *_SCAN),
        "owner": (*_LOOK, *_MAKE, *_CHANGE),
    }
    on_all: dict[Role, tuple[str, ...]] = {
        "builder": (*_TOKEN, *_REGISTRY),
        "node": _TOKEN,
        "scanner": _TOKEN,
        "owner": _REGISTRY,
    }
    anywhere = on_all[role]
    if enhanced and role in ("builder", "scanner"):
        anywhere = (*anywhere, *_INSPECTOR)
        on_repositories[role] = (*on_repositories[role], "ecr:DescribeImages")
    if enhanced and role == "owner":
        anywhere = (*anywhere, "ecr:PutRegistryScanningConfiguration", "inspector2:Enable")
    if signing_profile is not None and role == "owner":
        anywhere = (*anywhere, "ecr:GetSigningConfiguration", "ecr:PutSigningConfiguration")
    statements = [
        _statement("Repositories", on_repositories[role], arn),
        _statement("Anywhere", anywhere, "*"),
    ]
    if kms_key is not None and role in ("builder", "owner"):
        # IAM takes a key's ARN alone; a short id is made one, an alias cannot be
        key = (
            kms_key if kms_key.startswith("arn:") else f"arn:{partition}:kms:{region}:{account}:key/{kms_key}"
        )
        every = f"arn:{partition}:kms:{region}:{account}:key/*"
        statements.append(_statement("Key", _KMS, every if "alias/" in kms_key else key))
    if signing_profile is not None and role == "builder":
        statements.append(_statement("Signing", ("signer:SignPayload",), signing_profile))
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(name: str, actions: Sequence[str], resource: str) -> dict[str, Any]:
    return {"Sid": name, "Effect": "Allow", "Action": sorted(actions), "Resource": resource}
