"""Calls to ECR through boto3's own chain of credentials, each refusal told with the permission that allows
it."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pipeline.errors import RegistryError

if TYPE_CHECKING:
    from mypy_boto3_ecr.client import ECRClient

_HOST = re.compile(r"(\d{12})\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|on\.aws)")
_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
_BAD_KEYS = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
    }
)
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_THROTTLED = frozenset({"ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"})
# What a call needs beside the action of its own name.
_MORE_PERMISSIONS = {
    "DescribeImageScanFindings": " (and inspector2:ListFindings for enhanced scanning)",
    "PutRegistryScanningConfiguration": " (and inspector2:Enable for enhanced scanning)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EcrHost:
    """An account's registry in one region."""

    account: str
    region: str


def parse_host(host: str) -> EcrHost | None:
    """Account and region of ``123456789012.dkr.ecr.us-east-1.amazonaws.com``; None for other hosts."""
    match = _HOST.fullmatch(host)
    return EcrHost(account=match.group(1), region=match.group(2)) if match else None


class AwsRefused(RegistryError):
    """AWS answered with an error; ``code`` is its word, ``operation`` the call."""

    def __init__(self, message: str, *, hint: str, code: str, operation: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.operation = operation


class NoAwsCredentials(RegistryError):
    """boto3's chain found nothing to sign with."""


class Ecr:
    """One account's ECR in one region. Safe to call from several threads."""

    def __init__(self, account: str, region: str) -> None:
        self.account = account
        self.region = region
        self._lock = threading.Lock()
        self._client: ECRClient | None = None

    def __repr__(self) -> str:
        return f"Ecr({self.account!r}, {self.region!r})"

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Call ``operation`` (boto3's name, such as ``describe_images``) and give its answer.

        Throttling and 5xx are waited out by botocore. Raises AwsRefused, NoAwsCredentials, RegistryError.
        """
        from botocore import exceptions as aws

        method = getattr(self._connected(), operation)
        name = "".join(word.capitalize() for word in operation.split("_"))
        try:
            answer: dict[str, Any] = method(**parameters)
        except aws.ClientError as error:
            raise self._refused(name, error, parameters) from None
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
            raise self._no_credentials(name, error) from None
        except (aws.TokenRetrievalError, aws.SSOError) as error:
            raise NoAwsCredentials(
                f"the AWS sign-in is over, asked for ecr:{name}",
                hint=f"aws sso login ({_profile()}): {error}",
            ) from None
        except (aws.EndpointConnectionError, aws.ConnectTimeoutError, aws.ConnectionError) as error:
            tls = isinstance(error, aws.SSLError)
            why = (
                f"{self.region} shows a TLS certificate that is not trusted"
                if tls
                else f"{self.region} cannot be reached"
            )
            network = "check the network and the region; a private subnet needs the ecr.api VPC endpoint"
            raise RegistryError(
                f"ECR in {why}, asked for ecr:{name}",
                hint="AWS_CA_BUNDLE can name the authority of a proxy in between" if tls else network,
            ) from error
        except aws.BotoCoreError as error:
            raise RegistryError(
                f"AWS failed on ecr:{name}: {type(error).__name__}", hint="try again"
            ) from error
        return answer

    def _connected(self) -> ECRClient:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> ECRClient:
        import boto3
        from botocore import exceptions as aws
        from botocore.config import Config

        settings = Config(
            retries={"mode": "standard", "total_max_attempts": 8},
            connect_timeout=10,
            read_timeout=60,
            user_agent_extra="sqshpipe",
        )
        try:
            return boto3.Session(region_name=self.region).client("ecr", config=settings)
        except aws.ProfileNotFound:
            raise NoAwsCredentials(
                f"the AWS profile {os.environ.get('AWS_PROFILE', '')!r} does not exist",
                hint="aws configure list-profiles; set or unset AWS_PROFILE",
            ) from None
        except (aws.InvalidRegionError, aws.UnknownRegionError, aws.NoRegionError):
            raise RegistryError(
                f"{self.region!r} is not an AWS region", hint="check registry.ecr.region"
            ) from None

    def _refused(self, name: str, error: Any, parameters: dict[str, Any]) -> AwsRefused:
        code = str(error.response.get("Error", {}).get("Code", ""))
        said = str(error.response.get("Error", {}).get("Message", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        where = f" on {parameters['repositoryName']}" if "repositoryName" in parameters else ""
        message, hint = f"AWS refused ecr:{name}{where} ({code}): {said}", ""
        if code in _DENIED:
            who = re.search(r"arn:[^\s]+", said)
            message = f"AWS denies ecr:{name}{where}" + (f" to {who.group(0)}" if who else "")
            hint = f"allow the action ecr:{name}{_MORE_PERMISSIONS.get(name, '')}; see sqshpipe ecr policy"
        elif code in _BAD_KEYS:
            message = f"AWS does not know the access key, asked for ecr:{name}"
            hint = f"check the credentials: aws sts get-caller-identity ({_profile()})"
            hint += f"; a region that the account has not enabled says the same, is {self.region} one?"
        elif code in _EXPIRED:
            message = f"the AWS credentials have expired, asked for ecr:{name}"
            hint = "sign in again (aws sso login), or renew the session's keys"
        elif code == "RepositoryNotFoundException":
            repository = parameters.get("repositoryName")
            message = f"ECR {self.account} in {self.region} has no repository {repository}"
            hint = "make it with: sqshpipe ecr apply; or is the region or the account another one?"
        elif code == "KmsException":
            hint = (
                "the role needs kms:CreateGrant, kms:DescribeKey and kms:RetireGrant on registry.ecr.kms_key"
            )
        elif code in _THROTTLED or status == HTTPStatus.TOO_MANY_REQUESTS:
            hint = "AWS throttles this account: try again in a minute"
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            message = f"AWS answers ecr:{name}{where} with status {status} ({code}): {said}"
            hint = "AWS is in trouble: try again later"
        return AwsRefused(message, hint=hint, code=code, operation=name)

    def _no_credentials(self, name: str, error: Exception) -> NoAwsCredentials:
        return NoAwsCredentials(
            f"no AWS credentials were found, asked for ecr:{name} ({type(error).__name__})",
            hint="aws sso login, AWS_PROFILE, an instance role, or OIDC in Actions; whatever boto3 takes",
        )


def _profile() -> str:
    return f"profile {os.environ.get('AWS_PROFILE', 'default')}"
