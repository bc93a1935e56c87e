"""boto3's own configuration and credentials, and what is wrong with them in one sentence.

boto3 reads profiles, files, variables and programs when a client is made and again when a request is signed.
Each of them can be damaged, and boto3 raises more than its own exceptions for that. boto3 is imported when it
is first needed: it is slow to load.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from pipeline.authn import NoCredentials
from pipeline.errors import ConfigError, RegistryError, SqshpipeError
from pipeline.text import shown

if TYPE_CHECKING:
    from botocore.config import Config

_WHERE = "check the AWS_… variables and the files ~/.aws/config and ~/.aws/credentials"
_SOURCES = "aws sso login, AWS_PROFILE, an instance role, or OIDC in Actions; whatever boto3 takes"


class NoAwsCredentials(NoCredentials):
    """boto3's chain found nothing to sign with; the message says why."""


def client(service: str, config: Config | None = None) -> Any:
    """boto3's client for ``service``, such as ``s3``. Raises what `trouble` gives."""
    import boto3
    from botocore import exceptions as aws

    try:
        # a session of its own: the one that boto3 shares is not safe in threads, and remembers
        return boto3.Session().client(service, config=config)  # type: ignore[call-overload]  # no constant
    except (aws.BotoCoreError, OSError, ValueError, LookupError) as error:
        raise trouble(error, asked=service) from None


def profile() -> str:
    """``profile NAME``, for the hint of an error."""
    return f"profile {os.environ.get('AWS_PROFILE', 'default')}"


def bad_bundle(error: Exception) -> ConfigError | None:
    """Our error for a file of authorities that cannot be used; None for every other error of boto3's."""
    inside = getattr(error, "kwargs", {}).get("error", error)
    reason = inside.args[0] if isinstance(inside, Exception) and inside.args else inside
    unreadable = isinstance(reason, (FileNotFoundError, IsADirectoryError, PermissionError))
    if not unreadable and not re.search(r"\[X509|PEM lib|CA certificate bundle", str(inside)):
        return None
    why = (
        reason.strerror
        if isinstance(reason, OSError) and unreadable
        else "no certificate can be read from it"
    )
    name = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or "ca_bundle"
    return ConfigError(
        f"the authorities for TLS in {shown(name)} cannot be used: {why}",
        hint="check AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE and ca_bundle in ~/.aws/config",
    )


def trouble(error: Exception, *, asked: str) -> SqshpipeError:
    """Our error for what boto3 raised before AWS answered; ``asked`` is the action, ``ecr:PutImage``.

    NoAwsCredentials where there is nothing to sign with, ConfigError where the configuration of AWS cannot be
    used, RegistryError for the rest.
    """
    from botocore import exceptions as aws

    if bundle := bad_bundle(error):
        return bundle
    if isinstance(error, aws.ProfileNotFound):
        return NoAwsCredentials(
            f"the AWS profile {os.environ.get('AWS_PROFILE', '')!r} does not exist",
            hint="aws configure list-profiles; set or unset AWS_PROFILE",
        )
    login_error = getattr(aws, "LoginError", aws.SSOError)  # newer than the oldest botocore that we take
    if isinstance(error, (aws.TokenRetrievalError, aws.SSOError, aws.NoAuthTokenError, login_error)):
        return NoAwsCredentials(
            f"the AWS sign-in is over, asked for {asked}", hint=f"aws sso login ({profile()}): {shown(error)}"
        )
    if isinstance(error, aws.PartialCredentialsError):
        return NoAwsCredentials(f"{shown(error)} asked for {asked}", hint=f"{_WHERE}, or {_SOURCES}")
    if isinstance(error, (aws.NoCredentialsError, aws.CredentialRetrievalError, aws.MetadataRetrievalError)):
        name = type(error).__name__
        # what a credential_process printed is not shown: it may hold a secret
        return NoAwsCredentials(f"no AWS credentials were found, asked for {asked} ({name})", hint=_SOURCES)
    if isinstance(error, aws.BotoCoreError):
        if re.search(r"Config|^Invalid|^Unknown|^MissingDependency", type(error).__name__):
            return ConfigError(f"the AWS configuration cannot be used: {shown(error)}", hint=_WHERE)
        return RegistryError(f"AWS failed on {asked}: {type(error).__name__}", hint="try again")
    if isinstance(error, OSError):
        what = error.filename or "a file or a program"
        why = error.strerror or type(error).__name__
        return NoAwsCredentials(
            f"the AWS configuration names {shown(what)}, which cannot be used ({why}), asked for {asked}",
            hint=_WHERE,
        )
    # a text that was quoted could hold a password: only boto3's own word for an address is shown
    address = str(error) if str(error).startswith("Invalid endpoint") and "@" not in str(error) else ""
    said = shown(address) if address else type(error).__name__
    return ConfigError(
        f"the AWS configuration cannot be used: {said}", hint=f"{_WHERE}; AWS_ENDPOINT_URL too"
    )
