"""What git knows of the sources: which files changed, what a file said, what this checkout is called."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, ToolError
from pipeline.system import process

_HINT = "install git, or leave out what needs it"
_TIMEOUT = 60.0
_NOTHING_BEFORE = re.compile(r"0{40}|0{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A work tree; ``root`` is its top folder."""

    root: Path

    @classmethod
    def around(cls, folder: Path) -> Checkout:
        """The work tree that ``folder`` is in. Raises ConfigError outside of one, ToolError without git."""
        said = _git(folder, "rev-parse", "--show-toplevel", check=False)
        if said.returncode != 0:
            raise ConfigError(f"{folder} is not in a git work tree", hint="run it in a checkout")
        return cls(root=Path(said.stdout.rstrip("\n")))

    def known(self, revision: str) -> str | None:
        """The commit that ``revision`` names; None when git does not know it here. Raises ConfigError."""
        if revision.startswith("-"):
            raise ConfigError(f"{revision!r} is not a revision")
        found = _git(self.root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", check=False)
        return found.stdout.strip() if found.returncode == 0 else None

    def branched_from(self, revision: str) -> str | None:
        """The commit where HEAD left ``revision``; None for the all-zero name that a first push reports.

        Raises ConfigError when the revision is not here.
        """
        if _NOTHING_BEFORE.fullmatch(revision):
            return None
        commit = self.known(revision)
        if commit is None:
            raise ConfigError(
                f"git does not know {revision!r} here",
                hint="a shallow clone lacks history: fetch it (in Actions: fetch-depth: 0)",
            )
        base = _git(self.root, "merge-base", commit, "HEAD", check=False)
        # After a forced push the branch may share no history with that commit: then it is compared directly.
        return base.stdout.strip() if base.returncode == 0 else commit

    def changed_since(self, commit: str) -> frozenset[Path]:
        """Files that differ between ``commit`` and the work tree, untracked ones too; absolute paths."""
        tracked = _git(self.root, "diff", "--name-only", "--no-renames", "-z", commit, "--")
        untracked = _git(self.root, "ls-files", "--others", "--exclude-standard", "-z")
        names = (tracked.stdout + untracked.stdout).split("\0")
        return frozenset(self.root / name for name in names if name)

    def content(self, commit: str, path: Path) -> bytes | None:
        """What ``path`` said at ``commit``; None when it was not there."""
        name = path.resolve().relative_to(self.root.resolve()).as_posix()
        said = _git(self.root, "cat-file", "blob", f"{commit}:{name}", check=False)
        return said.stdout.encode() if said.returncode == 0 else None

    def commit(self, contents: Mapping[Path, bytes], message: str) -> str:
        """Commit these files on top of HEAD; returns the commit's name. Work tree and branch stay unchanged.

        Its time is HEAD's, so that the same change is the same commit, however often it is made.
        """
        head = _git(self.root, "rev-parse", "HEAD").stdout.strip()
        moment = _git(self.root, "show", "-s", "--format=%cI", head).stdout.strip()
        identity = {f"GIT_{who}_DATE": moment for who in ("AUTHOR", "COMMITTER")}
        for who in ("AUTHOR", "COMMITTER"):
            identity |= {f"GIT_{who}_NAME": "sqshpipe refresh", f"GIT_{who}_EMAIL": "sqshpipe@localhost"}
        with tempfile.TemporaryDirectory(prefix="sqshpipe-index-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            _git(self.root, "read-tree", head, extra_env=index)
            for path, content in contents.items():
                name = path.resolve().relative_to(self.root.resolve()).as_posix()
                blob = _git(self.root, "hash-object", "-w", "--stdin", stdin=content).stdout.strip()
                _git(
                    self.root,
                    "update-index",
                    "--add",
                    "--cacheinfo",
                    f"100644,{blob},{name}",
                    extra_env=index,
                )
            tree = _git(self.root, "write-tree", extra_env=index).stdout.strip()
        made = _git(self.root, "commit-tree", tree, "-p", head, extra_env=identity, stdin=message.encode())
        return made.stdout.strip()

    def committed(self) -> str:
        """When HEAD was committed, in ISO 8601 with its offset. ToolError without a commit."""
        return _git(self.root, "show", "-s", "--format=%cI", "HEAD").stdout.strip().replace("Z", "+00:00")


def revision(folder: Path) -> str | None:
    """The commit that ``folder`` is checked out at, with ``-dirty`` when files differ; None without git."""
    try:
        said = _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", check=False)
    except ToolError:
        return None
    return said.stdout.strip() or None if said.returncode == 0 else None


def _git(
    folder: Path,
    *words: str,
    check: bool = True,
    stdin: bytes | None = None,
    extra_env: Mapping[str, str] | None = None,
) -> process.Completed:
    argv: list[str | Path] = ["git", "-C", folder, *words]
    try:
        return process.run(argv, check=check, hint=_HINT, timeout=_TIMEOUT, stdin=stdin, extra_env=extra_env)
    except ToolError as error:
        if "dubious ownership" in error.message:
            hint = f"git config --global --add safe.directory {folder.resolve()}"
            raise ToolError(error.headline, hint=hint, details=error.details) from error
        raise
