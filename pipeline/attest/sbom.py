"""A list of what an image holds (CycloneDX JSON), by syft or trivy where one of them is installed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.oci.reference import Reference
from pipeline.registry.credentials import Credentials
from pipeline.scan.trivy import Trivy
from pipeline.system import process
from pipeline.system.http import plain_http_allowed

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_TIMEOUT = 3600.0


def make_sbom(
    image: Reference, credentials: Credentials | None, *, platform: str
) -> tuple[str, bytes] | None:
    """The tool's name and the SBOM; None when neither tool is installed. ToolError when the tool fails."""
    try:
        syft = process.which("syft", hint="")
    except ToolError:
        try:
            trivy = Trivy.find()
        except ToolError:
            return None
        return f"trivy {trivy.version}", trivy.sbom(image, credentials, platform=platform)
    return "syft", _syft(syft, image, credentials, platform)


def _syft(program: Path, image: Reference, credentials: Credentials | None, platform: str) -> bytes:
    environment = {"SYFT_CHECK_FOR_APP_UPDATE": "false"}
    if credentials is not None and not credentials.identity_token:
        environment |= {
            "SYFT_REGISTRY_AUTH_AUTHORITY": image.registry,
            "SYFT_REGISTRY_AUTH_USERNAME": credentials.username,
            "SYFT_REGISTRY_AUTH_PASSWORD": credentials.password,
        }
    if plain_http_allowed(image.registry):
        environment["SYFT_REGISTRY_INSECURE_USE_HTTP"] = "true"
    with tempfile.TemporaryDirectory(prefix="sqshpipe-syft-") as folder:
        output = Path(folder) / "sbom.json"
        words = ["scan", f"registry:{image}", "--platform", platform, "--output", f"cyclonedx-json={output}"]
        process.run([program, *words, "--quiet"], extra_env=environment, timeout=_TIMEOUT)
        return output.read_bytes()
