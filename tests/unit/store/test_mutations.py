"""Whatever happens to one file of a store: no live bytes go, no published file changes, nothing else resolves
than records and events say, no verb ends without a sentence, and the other images work.

Each case changes one file, runs the verbs, and looks at the result with `documented_store`, which shares no
code with the store. `--slow` runs every mutation of every file.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import app as command_line
from pipeline.errors import SqshpipeError
from pipeline.store import channels, inventory
from pipeline.store.events import Change
from pipeline.store.store import Store
from tests.support.faults import mutations
from tests.support.store import documented_store
from tests.support.store.releases import publish

SECONDS = 20
PRUNE = ["store", "prune", "--no-slurm", "--keep", "1", "--grace", "0", "--delete-after", "0"]


class Sample:
    """A store with all that may be in one, and older contents of each of its caches."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.older: dict[str, list[bytes]] = {}
        store = Store(root)
        for number in range(5):
            publish(store, f"v1.{number}", image="alpha")
        self._remember()
        store.promote("alpha:v1.2", "stable")
        store.mark("alpha:v1.3", "yank", reason="wrong")
        for version, kinds in {"v1.0": ("hide", "delete"), "v1.1": ("hide",)}.items():
            for kind in kinds:
                self._event("alpha", version, kind)
        store.layout.blob(documented_store.read(root)["alpha"].records["v1.0"]["sha256"]).unlink()
        self._remember()
        publish(store, "v2.0", b"v1.2", image="beta")
        publish(store, "v2.1", b"arm", image="beta", platform="linux/arm64")
        publish(store, "v2.1", image="beta")
        publish(store, "v2.2", image="beta")
        store.promote("beta:v2.0", "nightly")
        self._remember()
        store.mark("beta:v2.0", "keep")
        for version in ("v3.0", "v3.1"):
            publish(store, version, image="gamma")
        store.promote("gamma:v3.0", "stable")
        store.promote("gamma:v3.1", "stable")
        store.rebuild()
        self.files = sorted(
            str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file()
        )

    def _event(self, image: str, version: str, kind: str) -> None:
        layout = Store(self.root).layout
        channels.decide(layout, image, lambda _: Change(kind=kind, version=version), wanted=lambda _: ())

    def _remember(self) -> None:
        for path in self.root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.older.setdefault(str(path.relative_to(self.root)), []).append(path.read_bytes())

    def others(self, name: str) -> list[bytes]:
        """Sound contents that do not belong there: older ones, and those of other files."""
        own = (self.root / name).read_bytes() if not (self.root / name).is_symlink() else b""
        found = {content for content in self.older.get(name, ()) if content != own}
        for other in self.files:
            path = self.root / other
            alike = path.name == Path(name).name or path.parent.name == "events" == Path(name).parent.name
            if other != name and alike and not path.is_symlink():
                found.add(path.read_bytes())
        return sorted(found - {own})


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on what survives one, and flushing takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("sample") / "containers")


def run(*words: str) -> tuple[int, str, str]:
    """The command in this process, as `main` runs it; it must end in time."""
    out, err = io.StringIO(), io.StringIO()

    def late(*_: object) -> None:
        raise AssertionError(f"{words} does not end")

    before, argv = signal.signal(signal.SIGALRM, late), sys.argv
    signal.alarm(SECONDS)
    sys.argv = ["sqshpipe", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command_line._run()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        sys.argv = argv
    assert code != 1, (words, err.getvalue())
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return code, out.getvalue().strip(), err.getvalue()


def check(sample: Sample, root: Path, name: str, change: Callable[[Path], None]) -> None:
    """Change the file `name` of a copy of the store, use it, and look at what came of it."""
    shutil.copytree(sample.root, root, symlinks=True)
    change(root / name)
    was, mutated, bytes_were = (
        documented_store.read(sample.root),
        documented_store.read(root),
        documented_store.blobs(root),
    )
    hurt = next((image for image in was if name.startswith(f"{image}/")), "")
    blob = Path(name).stem if name.startswith("blobs/") else ""
    _names(root, was, mutated, hurt, blob)
    for one in was.values():
        del one.channels["latest"]  # it moves to what is published now
    _use(root, hurt)
    for _ in range(2):
        code, _, err = run(*PRUNE, "--store", str(root))
        assert code == 0, err
    _names(root, was, mutated, hurt, blob)
    assert run("store", "scrub", "--store", str(root))[0] in (0, 7)
    assert run("list", "--any-state", "--store", str(root))[0] in (0, 8)
    _look(root, was, mutated, bytes_were, name)
    assert run("store", "rebuild", "--store", str(root))[0] in (0, 8)


def _names(
    root: Path,
    was: dict[str, documented_store.Image],
    mutated: dict[str, documented_store.Image],
    hurt: str,
    blob: str,
) -> None:
    """A channel resolves to what records and events say; in images that are not hurt every channel does."""
    for image, channel in [(image, channel) for image, one in was.items() for channel in one.channels]:
        code, out, err = run(
            "resolve", f"{image}:{channel}", "--platform", "linux/amd64", "--store", str(root)
        )
        right = was[image].current(channel) or ""
        digests = was[image].digests(right)
        if code == 0:
            allowed = {right, mutated[image].current(channel)} if image in mutated else {right}
            found = {
                one["version"]
                for one in was[image].records.values()
                if one["sha256"] in str(Path(out).resolve())
            }
            assert found & allowed, (image, channel, out)
        elif image != hurt and blob not in digests:
            raise AssertionError(f"{image}:{channel} no longer resolves: {err}")


def _use(root: Path, hurt: str) -> None:
    """Publish and promote: it works in images that are not hurt; the other may refuse with a sentence."""
    store = Store(root)
    for image, version in (("alpha", "v1.4"), ("beta", "v2.2"), ("gamma", "v3.1")):
        try:
            publish(store, "v9.9", f"new {image}".encode(), image=image, created="2027-01-01T00:00:00Z")
            store.resolve(f"{image}:v9.9")
        except SqshpipeError as error:
            assert image == hurt, error
        for words in (("promote", f"{image}:{version}", "taken"), ("keep", f"{image}:{version}")):
            code, _, err = run(*words, "--store", str(root))
            assert code == 0 or (image == hurt and code in (2, 7, 8)), (words, err)


def _look(
    root: Path,
    was: dict[str, documented_store.Image],
    mutated: dict[str, documented_store.Image],
    bytes_were: dict[str, str],
    name: str,
) -> None:
    now, bytes_are = documented_store.read(root), documented_store.blobs(root)
    gone = bytes_were.keys() - bytes_are.keys()
    unreadable = [path for one in mutated.values() for path in one.unreadable]
    assert not (gone and unreadable), f"{gone} deleted though {unreadable} cannot be read"
    for digest in gone:
        for image, one in was.items():
            for record in one.records.values():
                marks = now[image].marks.get(record["version"], set())
                assert record["sha256"] != digest or "delete" in marks, (
                    f"live bytes of {image}: {record['version']}"
                )
    assert {digest: bytes_are[digest] for digest in bytes_were.keys() - gone} == {
        digest: bytes_were[digest] for digest in bytes_were.keys() - gone
    }, "published bytes have changed"
    for image, one in was.items():
        for version in {one.current(channel) or "" for channel in one.channels}:
            named = mutated[image].current("stable") if image in mutated else None
            new = now[image].marks.get(version, set()) - one.marks.get(version, set())
            kept = name.startswith(f"{image}/.meta/events/") and named != version
            assert kept or not new & {"hide", "delete", "yank"}, (
                f"{image}:{version} is named and was hidden: {new}"
            )
        for stem, record in one.records.items():
            if name != f"{image}/{stem}.json":
                assert now[image].records.get(stem) == record, f"the record {image}/{stem} has changed"


def cases(sample: Sample) -> list[tuple[str, str]]:
    """(file, name of a mutation) of everything that there is to try."""
    names = [*(mutation.__name__ for mutation in mutations.ALL), "another"]
    return [(name, mutation) for name in sample.files for mutation in names]


def one_case(sample: Sample, folder: Path, name: str, mutation: str, seed: int) -> bool:
    dice = random.Random(f"{name} {mutation} {seed}")

    def change(path: Path) -> None:
        if mutation == "another":
            others = sample.others(name)
            if not others or path.is_symlink():
                raise mutations.Unfit
            path.unlink()
            path.write_bytes(dice.choice(others))
        else:
            next(one for one in mutations.ALL if one.__name__ == mutation)(path, dice)

    root = folder / "containers"
    try:
        check(sample, root, name, change)
    except mutations.Unfit:
        return False
    except BaseException as error:
        raise AssertionError(f"{mutation} of {name} (seed {seed}): {error}") from error
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return True


def test_some_files_changed_in_some_ways(sample: Sample, tmp_path: Path) -> None:
    todo = cases(sample)
    random.Random(20261130).shuffle(todo)
    tried, done = 0, iter(todo)
    while tried < 20:
        tried += one_case(sample, tmp_path, *next(done), seed=0)


@pytest.mark.slow
def test_every_file_changed_in_every_way(sample: Sample, tmp_path: Path) -> None:
    for seed in range(2):
        for name, mutation in cases(sample):
            one_case(sample, tmp_path, name, mutation, seed)


def test_the_sample_has_what_it_should(sample: Sample) -> None:
    found = documented_store.read(sample.root)
    assert not inventory.take(Store(sample.root).layout).broken
    assert found["alpha"].marks["v1.0"] == {"hide", "delete"}
    assert found["alpha"].current("stable") == "v1.2"
    assert found["beta"].current("nightly") == "v2.0"
    assert len(sample.files) > 50
