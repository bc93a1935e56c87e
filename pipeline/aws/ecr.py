"""Calls to ECR and Inspector with boto3's own chain of credentials.

A refusal names the permission that is missing.
"""

from __future__ import annotations

import re
import threading
from http import HTTPStatus
from typing import Any, Literal

from pipeline.aws.errors import bad_bundle, profile, trouble
from pipeline.errors import RegistryError

Service = Literal["ecr", "inspector2"]
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
# What a call needs in addition to the action of the same name.
_MORE_PERMISSIONS = {
    "DescribeImageScanFindings": " (and inspector2:ListFindings for enhanced scanning)",
    "PutRegistryScanningConfiguration": " (and inspector2:Enable for enhanced scanning)",
}


class AwsRefused(RegistryError):
    """AWS answered with an error; ``code`` is AWS's error code, ``operation`` the call."""

    def __init__(self, message: str, *, hint: str, code: str, operation: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.operation = operation


class Ecr:
    """One account's ECR in one region. Safe to call from several threads."""

    def __init__(self, account: str, region: str) -> None:
        self.account = account
        self.region = region
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Ecr({self.account!r}, {self.region!r})"

    def call(self, operation: str, *, service: Service = "ecr", **parameters: Any) -> dict[str, Any]:
        """Call ``operation`` (boto3's name, such as ``describe_images``) and return its answer.

        botocore waits and retries after throttling and after 5xx. Raises AwsRefused, NoAwsCredentials,
        RegistryError, and ConfigError when the AWS configuration cannot be used.
        """
        from botocore import exceptions as aws

        name = f"{service}:" + "".join(word.capitalize() for word in operation.split("_"))
        try:
            # making the client reads the configuration, so it fails in the same ways as the call
            answer: dict[str, Any] = getattr(self._connected(service), operation)(**parameters)
        except aws.ClientError as error:
            raise self._refused(name, error, parameters) from None
        except (aws.InvalidRegionError, aws.UnknownRegionError, aws.NoRegionError):
            raise RegistryError(
                f"{self.region!r} is not an AWS region", hint="check registry.ecr.region"
            ) from None
        except (aws.ConnectionError, aws.HTTPClientError) as error:
            raise bad_bundle(error) or self._unreachable(name, error) from error
        except (aws.BotoCoreError, OSError, ValueError, LookupError) as error:
            raise trouble(error, asked=name) from None
        return answer

    def _unreachable(self, name: str, error: Exception) -> RegistryError:
        from botocore import exceptions as aws

        if isinstance(error, aws.SSLError):
            return RegistryError(
                f"ECR in {self.region} shows a TLS certificate that is not trusted, asked for {name}",
                hint="AWS_CA_BUNDLE can name the authority of a proxy in between",
            )
        return RegistryError(
            f"ECR in {self.region} cannot be reached, asked for {name}",
            hint="check the network and the region; a private subnet needs the ecr.api VPC endpoint",
        )

    def _connected(self, service: Service) -> Any:
        with self._lock:
            if service not in self._clients:
                self._clients[service] = self._connect(service)
            return self._clients[service]

    def _connect(self, service: Service) -> Any:
        import boto3
        from botocore.config import Config

        settings = Config(
            retries={"mode": "standard", "total_max_attempts": 8},
            connect_timeout=10,
            read_timeout=60,
            user_agent_extra="sqshpipe",
        )
        return boto3.Session(region_name=self.region).client(service, config=settings)

    def _refused(self, name: str, error: Any, parameters: dict[str, Any]) -> AwsRefused:
        operation = name.partition(":")[2]
        code = str(error.response.get("Error", {}).get("Code", ""))
        said = str(error.response.get("Error", {}).get("Message", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        where = f" on {parameters['repositoryName']}" if "repositoryName" in parameters else ""
        message, hint = f"AWS refused {name}{where} ({code}): {said}", ""
        if code in _DENIED:
            who = re.search(r"arn:[^\s]+", said)
            message = f"AWS denies {name}{where}" + (f" to {who.group(0)}" if who else "")
            hint = f"allow the action {name}{_MORE_PERMISSIONS.get(operation, '')}; see sqshpipe ecr policy"
        elif code in _BAD_KEYS:
            message = f"AWS does not know the access key, asked for {name}"
            hint = f"check the credentials: aws sts get-caller-identity ({profile()})"
            hint += f"; a region that the account has not enabled says the same, is {self.region} one?"
        elif code in _EXPIRED:
            message = f"the AWS credentials have expired, asked for {name}"
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
            message = f"AWS answers {name}{where} with status {status} ({code}): {said}"
            hint = "AWS is in trouble: try again later"
        return AwsRefused(message, hint=hint, code=code, operation=operation)
