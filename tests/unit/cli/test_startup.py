"""What small verbs must not load: `resolve` runs inside job scripts, a node's page cache cold."""

import subprocess
import sys

import pytest

HEAVY = {"structlog", "pydantic", "httpx", "docker", "boto3", "botocore", "rich", "asyncio", "jinja2", "yaml"}


@pytest.mark.parametrize("verb", [["resolve", "demo"], ["--help"]], ids=["resolve", "help"])
def test_small_verbs_load_little(verb, tmp_path):
    program = (
        "import sys; sys.argv[1:] = {verb!r}\n"
        "from pipeline.cli import app\n"
        "try: app.main()\n"
        "except SystemExit: pass\n"
        "print(*sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    ).format(verb=[*verb, *(["--store", str(tmp_path)] if verb[0] == "resolve" else [])], heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    allowed = {"rich"} if verb == ["--help"] else set()
    assert set(done.stderr.splitlines()[-1].split()) <= allowed
