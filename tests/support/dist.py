"""What a release has to agree on: python -m tests.support.dist v0.1.0, after `make dist`."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

from pipeline import __version__

ROOT = Path(__file__).parents[2]
DATA = {
    "py.typed",
    "report/templates/report.html.j2",
    "cli/starters/images.yaml.j2",
    "cluster/templates/job.sbatch.j2",
}


def problems(dist: Path, tag: str) -> list[str]:
    """Sentences about what does not fit together; none when all is well."""
    found = []
    if tag != f"v{__version__}":
        found.append(f"the tag is {tag}, the package {__version__}")
    if f"\n## {__version__}" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        found.append(f"CHANGELOG.md has no section {__version__}")
    wheels, archives = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    if [len(wheels), len(archives)] != [1, 1]:
        return [*found, f"{dist} has {len(wheels)} wheels and {len(archives)} archives"]
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = set(wheel.namelist())
    found += [f"the wheel lacks {name}" for name in sorted(DATA) if f"pipeline/{name}" not in names]
    strays = {name.split("/")[0] for name in names} - {
        "pipeline",
        "sqshpipe.py",
        f"sqshpipe-{__version__}.dist-info",
    }
    found += [f"the wheel also has {name}" for name in sorted(strays)]
    with tarfile.open(archives[0]) as archive:
        members = archive.getnames()
    found += [f"the sdist has {name}" for name in members if name.endswith((".sqsh", ".pyc"))]
    return found


if __name__ == "__main__":
    reported = problems(ROOT / "dist", sys.argv[1])
    sys.stderr.writelines(f"{line}\n" for line in reported)
    sys.exit(1 if reported else 0)
