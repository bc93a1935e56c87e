"""trivy, where it is installed: scans of images that ECR does not scan, and SBOMs.

Its own TRIVY_* variables (cache, database, proxies) are left as the user set them. The password travels in
the environment of the process, since every user can read an argument list.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.oci.reference import Reference
from pipeline.registry.credentials import Credentials
from pipeline.scan import trivy_result
from pipeline.scan.findings import ScanResult
from pipeline.system import process
from pipeline.system.disk import says_full
from pipeline.system.http import plain_http_allowed

_HINT = "install trivy, or choose another scan.scanner"
_FAILED = "trivy needs its vulnerability database: TRIVY_DB_REPOSITORY can name a mirror of it"
_FULL = "a disk is full: free space, or let TMPDIR and TRIVY_CACHE_DIR name folders on larger ones"
_TIMEOUT = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trivy:
    """An installed trivy."""

    program: Path
    version: str

    @classmethod
    def find(cls) -> Trivy:
        """Find trivy in PATH and ask it for its version. Raises ToolError when it is missing or fails."""
        program = process.which("trivy", hint=_HINT)
        said = process.run([program, "--version"], timeout=60).stdout
        match = re.search(r"Version:\s*(\S+)", said)
        return cls(program=program, version=match.group(1) if match else "unknown")

    def scan_image(
        self, reference: Reference, credentials: Credentials | None, *, platform: str
    ) -> ScanResult:
        """Scan an image in its registry, by digest. ToolError with trivy's last lines when it fails."""
        words = ["image", "--image-src", "remote", "--platform", platform, str(reference)]
        return self._scan(words, _access(reference, credentials))

    def scan_sbom(self, sbom: Path) -> ScanResult:
        """Scan what an SBOM lists: all that is needed is the file."""
        return self._scan(["sbom", str(sbom)], {})

    def sbom(self, reference: Reference, credentials: Credentials | None, *, platform: str) -> bytes:
        """A CycloneDX SBOM of an image in its registry, as JSON."""
        words = ["image", "--image-src", "remote", "--platform", platform, "--format", "cyclonedx"]
        with tempfile.TemporaryDirectory(prefix="sqshpipe-trivy-") as folder:
            output = Path(folder) / "sbom.json"
            self._run([*words, "--output", str(output), str(reference)], _access(reference, credentials))
            return output.read_bytes()

    def _scan(self, words: list[str], environment: Mapping[str, str]) -> ScanResult:
        with tempfile.TemporaryDirectory(prefix="sqshpipe-trivy-") as folder:
            output = Path(folder) / "report.json"
            kind, *rest = words
            # its report goes to a file: a large one on a pipe would have to be held twice
            options = ["--scanners", "vuln", "--format", "json", "--output", str(output)]
            if kind == "sbom":
                options = options[2:]
            self._run([kind, *options, *rest], environment)
            return trivy_result.read(
                output.read_text(encoding="utf-8"),
                scanner=f"trivy {self.version}",
                completed_at=datetime.now(timezone.utc),
            )

    def _run(self, words: list[str], environment: Mapping[str, str]) -> None:
        quiet = ["--quiet", "--no-progress"] if words[0] == "image" else []
        try:
            process.run([self.program, *words, *quiet], extra_env=environment, hint=_FAILED, timeout=_TIMEOUT)
        except ToolError as error:
            if not says_full(error.message):
                raise
            raise ToolError(error.headline, hint=_FULL, details=error.details) from error


def _access(reference: Reference, credentials: Credentials | None) -> dict[str, str]:
    # trivy uses plain HTTP only for a registry that is marked as insecure
    environment = {"TRIVY_INSECURE": "true"} if plain_http_allowed(reference.registry) else {}
    if credentials is not None and not credentials.identity_token:
        environment |= {"TRIVY_USERNAME": credentials.username, "TRIVY_PASSWORD": credentials.password}
    return environment
