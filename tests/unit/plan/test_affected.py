"""A history of commits, and for each exactly the images that it touches."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.reading import load
from pipeline.errors import ConfigError
from pipeline.oci.digest import Digest
from pipeline.plan.affected import affected_since

IMAGES = """\
version: 1
registry: {url: registry.example/team}
defaults:
  scan: {waivers: waivers.yaml}
images:
  alone:
    base: debian:12
    dockerfile: dockerfiles/alone/Dockerfile
    build_args: {A: "1"}
  first:
    base: debian:12
    dockerfile: dockerfiles/first/Dockerfile
    context: dockerfiles
  second:
    base: ubuntu:24.04
    dockerfile: dockerfiles/second/Dockerfile
    context: dockerfiles
    scan: {waivers: second.yaml}
  mirrored:
    base: ubuntu:24.04
"""


def lock_text(debian: str, ubuntu: str) -> str:
    lines = ["version: 1", "bases:"]
    for name, content in (("debian:12", debian), ("ubuntu:24.04", ubuntu)):
        lines += [
            f'  "docker.io/library/{name}":',
            "    linux/amd64:",
            f"      digest: {Digest.of(content.encode())}",
        ]
        lines += ["      locked_at: 2026-01-01T00:00:00Z"]
    return "\n".join(lines) + "\n"


class Repository:
    """A checkout in a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str) -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "GIT_CONFIG_NOSYSTEM": "1",
            **{
                f"GIT_{who}_{what}": "a@example.com"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        argv = ["git", "-C", str(self.root), *words]
        return subprocess.run(
            argv, env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def replace(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def commit(self) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "change")
        return self.git("rev-parse", "HEAD")

    def affected(self, revision: str) -> dict[str, tuple[str, ...]]:
        found = affected_since(load(self.root / "images.yaml", environment={}), revision)
        return {image.image: image.reasons for image in found}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path)
    made.write("images.yaml", IMAGES)
    made.write("images.lock", lock_text("d1", "u1"))
    for name in ("waivers.yaml", "second.yaml", "README.md", "dockerfiles/shared/common.sh"):
        made.write(name, "# 1\n")
    for name in ("alone", "first", "second"):
        made.write(f"dockerfiles/{name}/Dockerfile", "FROM base\nCOPY . /app\n")
        made.write(f"dockerfiles/{name}/train.py", "print(1)\n")
    made.write("dockerfiles/.dockerignore", "alone\n*/*.md\n")
    (tmp_path / "dockerfiles/alone/link").symlink_to("../shared/common.sh")
    made.commit()
    return made


ALL = {"alone", "first", "second", "mirrored"}

HISTORY: dict[str, tuple[Callable[[Repository], object], set[str]]] = {
    "nothing": (lambda r: None, set()),
    "a file outside of every context": (lambda r: r.write("README.md", "# 2\n"), set()),
    "a file of one context": (lambda r: r.write("dockerfiles/alone/train.py", "print(2)\n"), {"alone"}),
    "a file of a shared context": (
        lambda r: r.write("dockerfiles/shared/common.sh", "# 2\n"),
        {"first", "second"},
    ),
    "another image's file in a shared context": (
        lambda r: r.write("dockerfiles/first/train.py", "print(2)\n"),
        {"first", "second"},
    ),
    "a new file": (lambda r: r.write("dockerfiles/alone/new.py", "1\n"), {"alone"}),
    "a file gone": (lambda r: (r.root / "dockerfiles/alone/train.py").unlink(), {"alone"}),
    "a file moved out": (
        lambda r: (r.root / "dockerfiles/alone/train.py").rename(r.root / "dockerfiles/shared/train.py"),
        {"alone", "first", "second"},
    ),
    "mode": (lambda r: (r.root / "dockerfiles/alone/train.py").chmod(0o755), {"alone"}),
    "an ignored file": (lambda r: r.write("dockerfiles/first/NOTES.md", "# 2\n"), set()),
    "a link's target": (
        lambda r: [
            (r.root / "dockerfiles/alone/link").unlink(),
            (r.root / "dockerfiles/alone/link").symlink_to("../../README.md"),
        ],
        {"alone"},
    ),
    "an ignore file of one Dockerfile": (
        lambda r: r.write("dockerfiles/second/Dockerfile.dockerignore", "alone\n"),
        {"first", "second"},
    ),
    "a file with an odd name": (lambda r: r.write('dockerfiles/alone/a "b" ü\n', "1\n"), {"alone"}),
    "a file moved within a context": (
        lambda r: (r.root / "dockerfiles/alone/train.py").rename(r.root / "dockerfiles/alone/run.py"),
        {"alone"},
    ),
    "the ignore file": (lambda r: r.write("dockerfiles/.dockerignore", "alone\n"), {"first", "second"}),
    "a Dockerfile": (lambda r: r.write("dockerfiles/alone/Dockerfile", "FROM base\n"), {"alone"}),
    "one build argument": (lambda r: r.replace("images.yaml", '"1"', '"2"'), {"alone"}),
    "an image under another name": (
        lambda r: r.replace("images.yaml", "  alone:\n", "  lonely:\n"),
        {"lonely"},
    ),
    "a secret of one": (
        lambda r: r.replace("images.yaml", 'build_args: {A: "1"}', "secrets: {token: {env: T}}"),
        {"alone"},
    ),
    "the scan policy of all": (
        lambda r: r.replace(
            "images.yaml", "{waivers: waivers.yaml}", "{waivers: waivers.yaml, fail_on: low}"
        ),
        ALL,
    ),
    "the platform of all": (
        lambda r: r.replace("images.yaml", "defaults:\n", "defaults:\n  platform: linux/arm64\n"),
        ALL,
    ),
    "whom to notify": (
        lambda r: r.write("images.yaml", IMAGES + "notify: [{command: [notify-us]}]\n"),
        set(),
    ),
    "one base": (
        lambda r: r.replace("images.yaml", "alone:\n    base: debian:12", "alone:\n    base: debian:13"),
        {"alone"},
    ),
    "a default": (
        lambda r: r.replace("images.yaml", "defaults:\n", "defaults:\n  convert: {zstd_level: 9}\n"),
        ALL,
    ),
    "retention alone": (lambda r: r.replace("images.yaml", "defaults:\n", "defaults:\n  keep: 9\n"), set()),
    "a comment": (lambda r: r.write("images.yaml", IMAGES + "# a comment\n"), set()),
    "a new image": (
        lambda r: r.write("images.yaml", IMAGES + "  new: {base: debian:12}\n"),
        {"new"},
    ),
    "an image gone": (
        lambda r: r.write("images.yaml", IMAGES.partition("  mirrored:")[0]),
        set(),
    ),
    "the registry": (lambda r: r.replace("images.yaml", "example/team", "example/other"), ALL),
    "the lock of one base": (
        lambda r: r.write("images.lock", lock_text("d2", "u1")),
        {"alone", "first"},
    ),
    "the lock gone": (lambda r: (r.root / "images.lock").unlink(), ALL),
    "the waivers of most": (lambda r: r.write("waivers.yaml", "# 2\n"), {"alone", "first", "mirrored"}),
    "the waivers of one": (lambda r: r.write("second.yaml", "# 2\n"), {"second"}),
}


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "in the work tree"])
@pytest.mark.parametrize("case", HISTORY)
def test_each_change_chooses_its_images(repository: Repository, case: str, *, committed: bool) -> None:
    change, expected = HISTORY[case]
    before = repository.git("rev-parse", "HEAD")
    change(repository)
    if committed:
        repository.commit()
    found = repository.affected(before)
    assert set(found) == expected
    assert all(reasons and all(reasons) for reasons in found.values())


def test_images_yaml_may_lie_in_a_folder_of_a_larger_checkout(repository: Repository) -> None:
    (repository.root / "ml").mkdir()
    for name in ("images.yaml", "images.lock", "waivers.yaml", "second.yaml", "dockerfiles"):
        (repository.root / name).rename(repository.root / "ml" / name)
    before = repository.commit()
    repository.write("README.md", "# 2\n")
    repository.write("ml/dockerfiles/alone/train.py", "print(2)\n")
    repository.write("ml/images.lock", lock_text("d1", "u2"))
    found = affected_since(load(repository.root / "ml" / "images.yaml", environment={}), before)
    assert {image.image for image in found} == {"alone", "second", "mirrored"}


def test_only_what_the_branch_changed_counts(repository: Repository) -> None:
    repository.git("checkout", "-q", "-b", "topic")
    repository.write("dockerfiles/alone/train.py", "print(2)\n")
    repository.commit()
    repository.git("checkout", "-q", "main")
    repository.write("dockerfiles/shared/common.sh", "# 2\n")
    repository.commit()
    repository.git("checkout", "-q", "topic")
    assert repository.affected("main") == {"alone": ("train.py changed",)}


def test_reasons_name_what_changed(repository: Repository) -> None:
    before = repository.git("rev-parse", "HEAD")
    repository.write("images.lock", lock_text("d1", "u2"))
    old, new = (str(Digest.of(text))[:19] for text in (b"u1", b"u2"))
    assert repository.affected(before)["mirrored"] == (
        f"images.lock: docker.io/library/ubuntu:24.04 {old} -> {new}",
    )


def test_first_push_and_a_first_images_file_mean_everything(repository: Repository) -> None:
    assert set(repository.affected("0" * 40)) == ALL
    repository.git("checkout", "-q", "--orphan", "bare")
    repository.git("rm", "-q", "--cached", "-r", ".")
    (repository.root / "images.yaml").rename(repository.root / "images.kept")
    before = repository.commit()
    (repository.root / "images.kept").rename(repository.root / "images.yaml")
    assert set(repository.affected(before)) == ALL


def test_an_unreadable_past_means_everything(repository: Repository) -> None:
    good = (repository.root / "images.yaml").read_text()
    repository.write("images.yaml", "version: [\n")
    before = repository.commit()
    repository.write("images.yaml", good)
    assert set(repository.affected(before)) == ALL


@pytest.mark.parametrize("revision", ["nowhere", "--output=x", "deadbeef"])
def test_unknown_revisions_are_reported(repository: Repository, revision: str) -> None:
    with pytest.raises(ConfigError, match=r"revision|does not know"):
        repository.affected(revision)


def test_outside_of_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "images.yaml").write_text("version: 1\nimages: {a: {base: 'debian:12'}}\n")
    with pytest.raises(ConfigError, match="not in a git work tree"):
        affected_since(load(tmp_path / "images.yaml", environment={}), "HEAD")


def test_a_push_is_compared_with_the_commit_that_it_replaced(repository: Repository) -> None:
    """A force push drops a commit: against the common ancestor nothing would have changed."""
    repository.replace("dockerfiles/alone/train.py", "1", "2")
    dropped = repository.commit()
    repository.git("reset", "-q", "--hard", "HEAD~1")
    repository.write("README.md", "# 2\n")
    repository.commit()
    config = load(repository.root / "images.yaml", environment={})
    assert repository.affected(dropped) == {}
    assert [one.image for one in affected_since(config, dropped, exact=True)] == ["alone"]


@pytest.mark.parametrize("before", ["f" * 40, "0" * 40], ids=["gone by a force push", "first push"])
def test_a_push_whose_earlier_commit_is_not_known_touches_all_images(
    repository: Repository, before: str
) -> None:
    config = load(repository.root / "images.yaml", environment={})
    assert [one.image for one in affected_since(config, before, exact=True)] == list(config.images)
