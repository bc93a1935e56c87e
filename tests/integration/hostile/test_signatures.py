"""Where signatures are required, nothing else resolves: a test for each way around it that was thought of."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.attest import signing
from pipeline.errors import ConfigError, PublishError, SqshpipeError, ToolError, VerificationError
from pipeline.node import job_mount, signed
from pipeline.node import pyxis_importer as importer
from pipeline.node.image_file import ImageFile
from pipeline.node.user_mount import User
from pipeline.store import caches, sealed, signatures, trust
from pipeline.store.record import Record
from pipeline.store.store import Store
from tests.support.command_line import app
from tests.support.images.squashed import squash
from tests.support.store.handmade_store import squashfs_like
from tests.support.store.releases import new_store, publish
from tests.unit.store.test_signatures import write_keys

HOST = importer.platform()
SIGNED, UNSIGNED = "demo:v1.0", "demo:v1.1"


@dataclasses.dataclass
class Site:
    """A node with a policy, a store with demo:v1.0 (signed, `stable`) and demo:v1.1 (unsigned, `latest`)."""

    folder: Path
    store: Store
    private: str
    public: str

    @property
    def marks(self) -> Path:
        return self.folder / "state" / "signed"

    def sign(self, name: str, key: str | None = None) -> Path:
        return signatures.sign(
            self.store.layout, self.store.find(name, HOST), signing.open_signer(key or self.private)
        )

    def get(self, reference: str, **more: object) -> str:
        values = {
            "store": str(self.store.root),
            "state": str(self.folder / "state"),
            "prefetch_mib": 0,
            **more,
        }
        return importer.get(importer.Settings({"schema": 1, **values}), f"docker://{reference}")

    def require(self, public: str, *more: object) -> Result:
        words = ["--prefix", self.folder / "node", "--state", self.folder / "state", "--importer-only"]
        ours = ["--mark-uid", os.getuid()]
        return run(
            "node", "install", *words, "--store", self.store.root, "--require-signature", public, *ours, *more
        )

    def record(self, version: str, **changes: Any) -> None:
        """Write a record as somebody who can write the store would, with its caches."""
        path = self.store.layout.record("demo", version, HOST)
        found = Record(**{**_facts(self.store.release("demo", version, HOST)), **changes})
        path.chmod(0o644)
        path.write_bytes(found.as_bytes())
        caches.rebuild(self.store.layout)


def _facts(record: Record | None) -> dict[str, Any]:
    assert record is not None
    return {item.name: getattr(record, item.name) for item in dataclasses.fields(Record)}


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object, as_: type[SqshpipeError] = VerificationError) -> str:
    """The sentence with which a command fails."""
    done = run(*words)
    assert isinstance(done.exception, as_), done.exception or done.output
    return done.exception.headline


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    policy = tmp_path / "etc" / "signatures.json"
    monkeypatch.setattr(trust, "NODE_POLICY", policy)
    monkeypatch.setattr(importer, "POLICY", str(policy))
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    private, public = write_keys(tmp_path, "ours")
    made = Site(tmp_path, new_store(tmp_path / "store"), private, public)
    for version in ("v1.0", "v1.1"):
        publish(made.store, version, squashfs_like(version), platform=HOST)
    made.store.promote(SIGNED, "stable")
    made.sign(SIGNED)
    done = made.require(public)
    assert done.exit_code == 0, done.output
    return made


def test_a_signed_release_is_found_by_all_and_marked_once(site: Site) -> None:
    store = site.store.root
    with pytest.raises(importer.Refused, match="no mark of a verified signature"):
        site.get(SIGNED)
    assert run("resolve", SIGNED, "--store", store).stdout == f"{store}/demo/v1.0.sqsh\n"
    (mark,) = site.marks.iterdir()
    before = mark.stat()
    assert (mark.read_text(), before.st_mode & 0o777) == (mark.name, 0o644)
    path = site.get(SIGNED)
    assert site.get("demo:stable") == path == str(site.store.find(SIGNED, HOST).path)
    assert run("promote", SIGNED, "tried", "--store", store).exit_code == 0
    assert site.marks.joinpath(mark.name).stat().st_mtime_ns == before.st_mtime_ns


def test_the_mark_is_called_alike_on_both_sides(site: Site) -> None:
    """The importer stands alone, so it makes the name itself."""
    release = site.store.resolve(SIGNED, HOST)
    (key,) = signing.open_keys(site.public)
    (mark,) = site.marks.iterdir()
    assert mark.name == trust.mark_name(key.keyid, release)


@pytest.mark.parametrize(
    "words",
    [
        ["resolve", UNSIGNED],
        ["resolve", "demo"],
        ["resolve", UNSIGNED, "--json"],
        ["promote", UNSIGNED, "other"],
        ["promote", "demo:latest", "other"],
        ["promote", UNSIGNED, "other", "--allow-external"],
        ["node", "mount", UNSIGNED, "--holder-pid", os.getpid()],
        ["node", "mount", UNSIGNED, "--job", 7],
        ["node", "check", UNSIGNED],
        ["node", "unpack", UNSIGNED],
        ["node", "profile", UNSIGNED, "--", "true"],
        ["run", UNSIGNED, "--", "true"],
        ["job", "script", UNSIGNED, "--", "true"],
        ["store", "lease", "create", UNSIGNED],
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)
def test_an_unsigned_release_is_found_by_none(site: Site, words: list[object]) -> None:
    options = ["--store", site.store.root]
    where = words.index("--") if "--" in words else len(words)
    assert "demo:v1.1 is not signed by the key" in refused(*words[:where], *options, *words[where:])
    assert site.store.state("demo").current("other") is None
    assert not site.marks.exists() or not list(site.marks.iterdir())
    with pytest.raises(importer.Refused, match=r"demo:v1\.1 has no mark"):
        site.get("demo")


@pytest.mark.parametrize("unsigned", ["demo:v1.1", "words:v1"], ids=["an image", "data"])
@pytest.mark.parametrize("words", [["run"], ["job", "script"]], ids=" ".join)
def test_data_that_is_not_signed_is_shown_to_no_image(site: Site, words: list[str], unsigned: str) -> None:
    folder = site.folder / "words"
    folder.mkdir()
    (folder / "a.txt").write_text("word\n")
    assert run("store", "import", folder, "--as", "words:v1", "--store", site.store.root).exit_code == 0
    said = refused(*words, SIGNED, "--data", f"{unsigned}=/data", "--store", site.store.root, "--", "true")
    assert said.startswith(f"{unsigned} is not signed by the key")
    assert "not signed" in refused("node", "mount", unsigned, "--job", 7, "--store", site.store.root)


def named_before_the_policy(site: Site, **channels: tuple[str, ...]) -> None:
    """Publish v1.2, signed, and let each channel name its versions, one after the other, v1.1 unsigned."""
    publish(site.store, "v1.2", squashfs_like("v1.2"), platform=HOST)
    site.sign("demo:v1.2")
    policy = trust.NODE_POLICY.read_bytes()
    trust.NODE_POLICY.unlink()
    for channel, versions in channels.items():
        for version in versions:
            site.store.promote(f"demo:{version}", channel)
    trust.NODE_POLICY.write_bytes(policy)


def test_a_rollback_names_no_unsigned_release(site: Site) -> None:
    """One from before the policy: a channel that names it would not resolve on any node."""
    named_before_the_policy(site, nightly=("v1.0", "v1.1", "v1.2"))
    assert run("rollback", "demo", "nightly", "--store", site.store.root).exit_code == 0
    assert site.store.state("demo").current("nightly") == "v1.0"
    assert "no" in refused("rollback", "demo", "nightly", "--store", site.store.root, as_=PublishError)
    assert site.store.state("demo").current("nightly") == "v1.0"


def test_a_yank_moves_channels_to_signed_releases_alone(site: Site) -> None:
    """As a rollback does: the channel went to what it had named before, which resolved on no node."""
    named_before_the_policy(site, nightly=("v1.0", "v1.1", "v1.2"), unsigned=("v1.1", "v1.2"))
    done = run("yank", "demo:v1.2", "--store", site.store.root)
    assert done.exit_code == 0, done.output
    state = site.store.state("demo")
    assert (state.current("nightly"), state.releases["v1.2"].yanked) == ("v1.0", True)
    assert site.get("demo:nightly") == str(site.store.find(SIGNED, HOST).path)
    assert "demo:v1.1 is not signed" in refused("resolve", "demo:unsigned", "--store", site.store.root)
    assert "demo:unsigned names no signed release now" in done.output
    assert run("yank", SIGNED, "--store", site.store.root).exit_code == 0
    assert run("resolve", "demo:nightly", "--store", site.store.root).exit_code != 0


NO_SIGNATURES = (
    "", "{", "[]", "7", "null", '{"dsseEnvelope": 7}', '{"dsseEnvelope": {"payload": 1}}', "[" * 100_000,
    '{"dsseEnvelope": {"payload": "!", "payloadType": "a", "signatures": [{"sig": "!", "keyid": 1}]}}',
    '{"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": []}',
    '{"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": [{"sig": ""}]}',
    '{"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": [null]}',
    '{"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": {"a": "b"}}',
)  # fmt: skip


def test_files_that_are_no_signature_neither_count_nor_hide_one(site: Site) -> None:
    for text in NO_SIGNATURES:
        for version in ("v1.0", "v1.1"):
            for suffix in (signatures.SUFFIX, signatures.ENVELOPE_SUFFIX):
                path = site.store.root / "demo/.meta" / version / f"0{suffix}"
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
        site.store.resolve(SIGNED, HOST)
        with pytest.raises(VerificationError, match="not signed"):
            site.store.resolve(UNSIGNED, HOST)


@pytest.mark.parametrize("key", ["payload", "payloadType", "sig", "mediaType"])
def test_a_signature_with_one_thing_changed(site: Site, key: str) -> None:
    path = site.sign(SIGNED)
    good = path.read_text()
    path.chmod(0o644)
    changes: list[Callable[[str], object]] = [
        lambda text: text[:-1],
        lambda text: ("B" if text[0] == "A" else "A") + text[1:],
        lambda text: [text],
    ]
    for change in changes:
        bundle = json.loads(good)
        envelope = bundle["dsseEnvelope"]
        holder = {"sig": envelope["signatures"][0], "mediaType": bundle}.get(key, envelope)
        holder[key] = change(holder[key])
        path.write_text(json.dumps(bundle))
        with pytest.raises(VerificationError, match="not signed"):
            site.store.resolve(SIGNED, HOST)
    path.write_text(good)
    site.store.resolve(SIGNED, HOST)


def test_prewarm_demands_it_on_the_node(site: Site) -> None:
    """Also where the machine that asked for it has been talked into anything, and with --no-check."""
    release = site.store.find(UNSIGNED, HOST)
    words = ["node", "warm-here", release.path, "--digest", release.sha256, "--no-check"]
    assert "not signed" in refused(*words, "--release", UNSIGNED, "--store", site.store.root)
    words[2:5] = [site.store.find(SIGNED, HOST).path, "--digest", site.store.find(SIGNED, HOST).sha256]
    assert run(*words, "--release", SIGNED, "--store", site.store.root).exit_code == 0
    assert site.get(SIGNED)
    other = ["node", "warm-here", release.path, "--digest", release.sha256]
    assert "is another file on this node" in refused(*other, "--release", SIGNED, "--store", site.store.root)


def test_a_scrub_marks_what_is_signed_and_reports_the_rest(site: Site) -> None:
    done = run("store", "scrub", "--store", site.store.root)
    assert isinstance(done.exception, VerificationError)
    assert "unsigned demo:v1.1 is not signed" in done.stdout
    assert site.get(SIGNED)
    site.sign(UNSIGNED)
    assert run("store", "scrub", "--store", site.store.root).exit_code == 0
    assert site.get(UNSIGNED)


def test_another_key(site: Site) -> None:
    private, _ = write_keys(site.folder, "theirs")
    site.sign(UNSIGNED, private)
    assert "not signed by the key" in refused("resolve", UNSIGNED, "--store", site.store.root)


def test_the_signature_of_another_release(site: Site) -> None:
    target = site.store.root / "demo/.meta/v1.1"
    shutil.copytree(site.sign(SIGNED).parent, target, dirs_exist_ok=True)
    assert "not signed" in refused("resolve", UNSIGNED, "--store", site.store.root)


def test_the_signature_of_another_image_with_the_same_bytes(site: Site) -> None:
    publish(site.store, "v1.0", squashfs_like("v1.0"), image="other", platform=HOST)
    shutil.copytree(site.sign(SIGNED).parent, site.store.root / "other/.meta/v1.0", dirs_exist_ok=True)
    site.store.resolve(SIGNED, HOST)
    assert "not signed" in refused("resolve", "other:v1.0", "--store", site.store.root)
    with pytest.raises(importer.Refused, match="no mark"):
        site.get("other:v1.0")
    with pytest.raises(importer.Refused, match="no mark"):
        site.get("other@sha256:" + site.store.find(SIGNED, HOST).sha256)


def test_the_signature_for_another_platform(site: Site) -> None:
    other = "linux/arm64" if HOST != "linux/arm64" else "linux/amd64"
    publish(site.store, "v1.0", squashfs_like("arm"), platform=other)
    with pytest.raises(VerificationError, match="not signed"):
        site.store.resolve(SIGNED, other)
    assert "not signed" in refused("promote", SIGNED, "other", "--store", site.store.root)


def test_a_record_that_changed_after_it_was_signed(site: Site) -> None:
    site.store.resolve(SIGNED, HOST)
    bad = site.store.find(UNSIGNED, HOST)
    site.record("v1.0", sha256=bad.sha256, size=bad.size)
    assert "not signed" in refused("resolve", SIGNED, "--store", site.store.root)
    with pytest.raises(importer.Refused, match="no mark"):
        site.get(SIGNED)


def test_a_record_whose_other_facts_changed(site: Site) -> None:
    site.record("v1.0", scan={"status": "passed", "scanner": "trivy"})
    assert "not signed" in refused("resolve", SIGNED, "--store", site.store.root)


def _rewritten(path: Path) -> None:
    path.chmod(0o644)
    times = path.stat()
    path.write_bytes(squashfs_like("evil"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _exchanged(path: Path) -> None:
    other = path.with_name("evil")
    other.write_bytes(squashfs_like("evil"))
    other.rename(path)


@pytest.mark.parametrize("change", [_rewritten, _exchanged])
def test_bytes_that_changed_after_they_were_marked(site: Site, change: Callable[[Path], None]) -> None:
    site.store.resolve(SIGNED, HOST)
    path = site.get(SIGNED)
    change(Path(path))
    with pytest.raises(importer.Refused, match="has changed its bytes"):
        site.get(SIGNED)
    words = [SIGNED, "--store", site.store.root]
    assert "does not have the sha256 that was signed" in refused(
        "node", "mount", *words, "--holder-pid", os.getpid()
    )
    assert "does not have the sha256 that was signed" in refused("run", *words, "--", "true")


def test_bytes_behind_a_symlink(site: Site) -> None:
    release = site.store.resolve(SIGNED, HOST)
    release.path.rename(site.folder / "moved")
    release.path.symlink_to(site.folder / "moved")
    with pytest.raises(importer.Refused):
        site.get(SIGNED)
    assert "cannot read" in refused("run", SIGNED, "--store", site.store.root, "--", "true")


def test_a_mark_of_somebody_else(site: Site) -> None:
    """A user cannot write to the folder; where it was opened to all, the user's own mark does not count."""
    site.store.resolve(SIGNED, HOST)
    (mark,) = site.marks.iterdir()
    assert site.marks.stat().st_mode & 0o022 == 0
    policy = json.loads(trust.NODE_POLICY.read_text())
    policy["mark_uids"] = [0 if os.getuid() else 54321]
    trust.NODE_POLICY.write_text(json.dumps(policy))
    assert mark.stat().st_uid == os.getuid()  # the job's own user, whose marks of hashed files do count
    with pytest.raises(importer.Refused, match="no mark"):
        site.get(SIGNED)


def test_a_mark_that_others_can_write(site: Site) -> None:
    site.store.resolve(SIGNED, HOST)
    (mark,) = site.marks.iterdir()
    mark.chmod(0o666)
    with pytest.raises(importer.Refused, match="no mark"):
        site.get(SIGNED)


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "change", [lambda path: os.chown(path, 60011, 60011), lambda path: path.chmod(0o666)]
)
def test_a_mark_that_does_not_count_is_made_anew_by_who_verifies(
    site: Site, change: Callable[[Path], None]
) -> None:
    run("resolve", SIGNED, "--store", site.store.root)
    (mark,) = site.marks.iterdir()
    change(mark)
    with pytest.raises(importer.Refused, match="root runs `sqshpipe resolve"):
        site.get(SIGNED)
    run("resolve", SIGNED, "--store", site.store.root)
    assert site.get(SIGNED)


def test_a_mark_of_another_release_under_this_name(site: Site) -> None:
    release = site.store.resolve(SIGNED, HOST)
    (mark,) = site.marks.iterdir()
    (key,) = signing.open_keys(site.public)
    wanted = trust.mark_name(key.keyid, dataclasses.replace(release, version="v1.1"))
    for make in (shutil.copy, os.link, os.symlink):
        make(mark, site.marks / wanted)
        with pytest.raises(importer.Refused, match="no mark"):
            site.get(UNSIGNED)
        (site.marks / wanted).unlink()


def test_an_index_that_names_other_bytes(site: Site) -> None:
    """index.json is believed without the record: what it names has no mark."""
    site.store.resolve(SIGNED, HOST)
    bad = site.store.find(UNSIGNED, HOST)
    index = site.store.layout.index("demo")
    text = index.read_text().replace(site.store.find(SIGNED, HOST).sha256, bad.sha256)
    body = json.loads(text)
    body.pop("crc32")
    index.write_bytes(sealed.seal(json.dumps(body)))
    assert importer.Image(f"{site.store.root}/demo", "demo").entry("v1.0")["sha256"] == bad.sha256
    with pytest.raises(importer.Refused, match="no mark"):
        site.get(SIGNED)


def test_an_index_from_before(site: Site) -> None:
    """The old index still names `latest`, which is not signed: it does not matter which index is read."""
    index = site.store.layout.index("demo")
    old = index.read_bytes()
    site.store.promote(SIGNED, "latest")
    assert site.get("demo") == str(site.store.find(SIGNED, HOST).path)
    index.write_bytes(old)
    assert site.get("demo") == str(site.store.find(SIGNED, HOST).path)
    event = max(site.store.layout.events("demo").iterdir())
    event.unlink()  # who can write the store can take an event away as well
    with pytest.raises(importer.Refused, match="no mark"):
        site.get("demo")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "break_",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_text('{"schema": 1}'),
        lambda path: path.write_text(path.read_text().replace('"schema": 1', '"schema": 2')),
        lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "keys": {}})),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/nonexistent")),
        _pipe,
    ],
    ids=["empty", "short", "newer", "no key", "folder", "dangling", "pipe"],
)
def test_a_policy_that_cannot_be_used(site: Site, break_: Callable[[Path], object]) -> None:
    site.store.resolve(SIGNED, HOST)
    break_(trust.NODE_POLICY)
    assert "cannot be used" in refused("resolve", SIGNED, "--store", site.store.root, as_=ConfigError)
    assert "cannot be used" in refused(
        "promote", SIGNED, "other", "--store", site.store.root, as_=ConfigError
    )
    with pytest.raises(importer.Refused):
        site.get(SIGNED)


def test_a_policy_with_an_invalid_key(site: Site) -> None:
    """The importer reads no keys, only their ids: it finds no new marks, since nobody can verify any more."""
    for change in (("BEGIN PUBLIC", "BEGUN PUBLIC"), (signing.open_key(site.public).keyid, "0" * 64)):
        assert site.require(site.public).exit_code == 0
        trust.NODE_POLICY.write_text(trust.NODE_POLICY.read_text().replace(*change))
        assert "cannot be used" in refused("resolve", SIGNED, "--store", site.store.root, as_=ConfigError)
        with pytest.raises(importer.Refused, match="no mark"):
            site.get(SIGNED)


@pytest.mark.needs("root")
def test_a_policy_that_users_cannot_read(site: Site) -> None:
    """Then nothing resolves for them; that they cannot read it must not count as no policy."""
    trust.NODE_POLICY.chmod(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="cannot be used"):
            trust.of_node()
        with pytest.raises(importer.Refused):
            importer.demand_mark(importer.Settings({}), importer.Found("demo", "v1.0", _entry(site)))
    finally:
        os.seteuid(0)


def _entry(site: Site) -> dict[str, object]:
    return {"sha256": "a" * 64, "file": "blobs/sha256/" + "a" * 64 + ".sqsh", "size": 1}


@pytest.mark.parametrize("key", ["gone.pub", "store", "images.yaml"], ids=["missing", "folder", "no key"])
def test_images_yaml_with_a_key_that_cannot_be_read(site: Site, key: str) -> None:
    trust.NODE_POLICY.unlink()
    config = site.folder / "images.yaml"
    config.write_text(
        f"version: 1\nstore: {{root: {site.store.root}, require_signature: {key}}}\n"
        "images: {demo: {base: 'a:1'}}\n"
    )
    for words in (["resolve", SIGNED], ["promote", SIGNED, "other"], ["store", "scrub"], ["run", SIGNED]):
        options = [] if words[0] == "run" else ["--config", config]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(site.folder)
            assert "key" in refused(*words, *options, as_=ConfigError)
            assert "key" in refused(*words, *options, "--store", site.store.root, as_=ConfigError)


def test_images_yaml_requires_it_where_the_machine_does_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the store is named by an option or a variable, and images.yaml is not needed for it."""
    trust.NODE_POLICY.unlink()
    (site.folder / "images.yaml").write_text(
        f"version: 1\nstore: {{root: {site.store.root}, require_signature: ours.pub}}\n"
        "images: {demo: {base: 'a:1'}}\n"
    )
    below = site.folder / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    for words in (
        ["resolve", UNSIGNED],
        ["promote", UNSIGNED, "other"],
        ["run", UNSIGNED],
        ["store", "scrub"],
    ):
        refused(*words)
        refused(*words, "--store", site.store.root)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SQSHPIPE_STORE", str(site.store.root))
            refused(*words)
    assert run("resolve", SIGNED).exit_code == 0


def test_no_variable_and_no_option_ends_the_policy_of_a_node(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = site.folder / "free.yaml"
    free.write_text(f"version: 1\nstore: {{root: {site.store.root}}}\nimages: {{demo: {{base: 'a:1'}}}}\n")
    monkeypatch.setenv("SQSHPIPE_CONFIG", str(free))
    monkeypatch.setenv("SQSHPIPE_STORE", str(site.store.root))
    monkeypatch.setenv("SQSHPIPE_KEY", site.private)
    monkeypatch.setenv("SQSHPIPE_NODE_DIR", str(site.folder))
    monkeypatch.setenv("HOME", str(site.folder))
    alias = site.folder / "alias"
    alias.symlink_to(site.store.root)
    for words in ([], ["--config", free], ["--store", alias], ["--config", "/nonexistent"]):
        refused("resolve", UNSIGNED, *words)
    with pytest.raises(importer.Refused, match="no mark"):
        site.get(UNSIGNED, store=str(alias), verify=False, trusted_uids=[os.getuid()])


def test_the_importer_imports_nothing_instead(site: Site) -> None:
    imported = site.folder / "imported"
    enroot = site.folder / "enroot"
    enroot.write_text(f"#!/bin/sh\ntouch {imported}\n")
    enroot.chmod(0o755)
    for name in (UNSIGNED, "demo:v9", "unknown:v1", "nvcr.io/nvidia/pytorch:24.01-py3"):
        with pytest.raises(importer.Refused):
            site.get(name, missing="import", enroot=str(enroot))
    assert not imported.exists()


def test_signatures_behind_symlinks(site: Site) -> None:
    """A signature for v1.1 that lies elsewhere is not one of the store's files."""
    path = site.sign(UNSIGNED)
    elsewhere = site.folder / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises((VerificationError, PublishError)):
        site.store.resolve(UNSIGNED, HOST)
    shutil.move(path.parent, site.folder / "folder")
    path.parent.symlink_to(site.folder / "folder")
    with pytest.raises((VerificationError, PublishError)):
        site.store.resolve(UNSIGNED, HOST)


def test_paths_instead_of_names(site: Site) -> None:
    """A path into the store counts as the release that has its bytes; no other path is mounted here."""
    store, own = site.store.root, site.folder / "own.sqsh"
    own.write_bytes(squashfs_like("own"))
    good = site.store.find(SIGNED, HOST)
    hold = ["--holder-pid", os.getpid()]
    link = store / "demo" / "link.sqsh"
    link.symlink_to(own)
    for path in (own, link):
        assert "is not a release" in refused("run", path, "--", "true", as_=ConfigError)
        words = ["node", "mount", path, *hold, "--digest", good.sha256]
        assert "is not a release" in refused(*words, as_=ConfigError)
    for path in (store / "demo/v1.1.sqsh", site.store.find(UNSIGNED, HOST).path):
        assert "no signed release has the bytes" in refused("run", path, "--", "true")
        assert "no signed release" in refused("node", "mount", path, *hold, "--digest", good.sha256)
    planted = store / "blobs/sha256" / f"{'0' * 64}.sqsh"
    planted.write_bytes(squashfs_like("own"))
    assert "no signed release" in refused("run", planted, "--", "true")
    found = signed.check_path(ImageFile(path=good.path, sha256=good.sha256))
    assert found.sha256 == good.sha256
    _rewritten(good.path)
    assert "does not have the sha256" in refused("run", store / "demo/v1.0.sqsh", "--", "true")


def test_a_mount_that_a_prolog_makes(site: Site) -> None:
    """By digest, for a job: the signature of a release with these bytes is verified, and a mark is left."""
    values = {"store": str(site.store.root), "state": str(site.folder / "state")}
    settings = importer.Settings({"schema": 1, **values})
    sha256 = site.store.find(UNSIGNED, HOST).sha256
    site.record("v1.1", checks=("tree",))
    user = User(uid=os.getuid(), gid=os.getgid())
    with pytest.raises(ToolError, match=r"demo:v1\.1 is not signed by the key"):
        job_mount.acquire(settings, sha256, "7", user)
    site.sign(UNSIGNED)
    assert job_mount._release_of(settings, sha256).version == "v1.1"
    assert site.get(UNSIGNED), "the importer of the same job finds the mark"
    _rewritten(site.store.find(UNSIGNED, HOST).path)
    with pytest.raises(ToolError, match="has changed its bytes"):
        job_mount.acquire(settings, sha256, "7", user)
    signed_sha256 = trust.demand_of(site.store.layout, "demo", "v1.0", HOST, None).sha256

    def found(digest: str) -> importer.Found:
        return importer.Found("demo", "v1.0", {"sha256": digest, "file": f"blobs/sha256/{digest}.sqsh"})

    job_mount._demand_signature(settings, found(signed_sha256))
    with pytest.raises(importer.Refused, match="has changed"):  # exchanged meanwhile
        job_mount._demand_signature(settings, found(sha256))
    site.store.layout.record("demo", "v1.0", HOST).unlink()
    with pytest.raises(importer.Refused, match="has no record"):
        job_mount._demand_signature(settings, found(signed_sha256))


def test_a_yanked_release_by_its_path(site: Site) -> None:
    path = site.store.find(SIGNED, HOST).path
    site.store.mark(SIGNED, "yank")
    assert "no signed release" in refused("run", path, "--", "true")


def test_nothing_is_named_before_it_is_signed(site: Site) -> None:
    """`latest` stays where it is; once signed, publishing again or `promote` moves it."""
    site.sign(UNSIGNED)
    content = squashfs_like("v1.2")
    publish(site.store, "v1.2", content, platform=HOST)
    assert site.store.state("demo").current("latest") == "v1.1"
    publish(site.store, "v1.3", content + b"x", platform=HOST, external=True, allow_external=True)
    assert site.store.state("demo").current("latest") == "v1.1"
    site.sign("demo:v1.2")
    publish(site.store, "v1.2", content, platform=HOST)
    assert site.store.state("demo").current("latest") == "v1.2"


def test_no_new_release_takes_the_bytes_of_an_unsigned_one(site: Site) -> None:
    """Who can write the store could say that any bytes were made from an image, and have them signed."""
    source = "sha256:" + "c" * 64
    site.record("v1.1", source={"digest": source}, keys={"convert": "k" * 64})
    assert site.store.made_from(source, ["k" * 64], HOST) is None
    site.sign(UNSIGNED)
    found = site.store.made_from(source, ["k" * 64], HOST)
    assert found is not None
    assert found.name == UNSIGNED


def test_an_install_without_the_option_keeps_the_policy(site: Site) -> None:
    words = ["--prefix", site.folder / "node", "--state", site.folder / "state", "--importer-only"]
    assert run("node", "install", *words, "--store", site.store.root).exit_code == 0
    refused("resolve", UNSIGNED, "--store", site.store.root)
    with pytest.raises(importer.Refused, match="no mark"):
        site.get(UNSIGNED)


def test_marks_lie_neither_in_the_store_nor_where_all_can_write(site: Site) -> None:
    done = site.require(site.public, "--marks", site.store.root / "marks")
    assert "cannot lie in the store" in str(done.exception)
    alias = site.folder / "alias"
    alias.symlink_to(site.store.root)
    assert "cannot lie in the store" in str(site.require(site.public, "--marks", alias / "marks").exception)
    shared = site.folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert "others may write to" in str(site.require(site.public, "--marks", shared).exception)


def test_a_key_that_counts_no_longer(site: Site) -> None:
    """Two keys in one file count alike; a mark of the one that was taken out does not serve any more."""
    private, public = write_keys(site.folder, "next")
    both = site.folder / "both.pub"
    both.write_text(Path(site.public).read_text() + Path(public).read_text())
    assert site.require(str(both)).exit_code == 0
    site.sign(UNSIGNED, private)
    assert site.store.resolve(SIGNED, HOST)
    assert site.store.resolve(UNSIGNED, HOST)
    assert site.get(SIGNED)
    assert site.get(UNSIGNED)
    assert site.require(public).exit_code == 0
    assert site.get(UNSIGNED)
    with pytest.raises(importer.Refused, match="no mark"):
        site.get(SIGNED)
    with pytest.raises(VerificationError):
        site.store.resolve(SIGNED, HOST)


def test_who_may_not_write_marks_still_gets_an_answer(site: Site) -> None:
    shutil.rmtree(site.marks)
    assert run("resolve", SIGNED, "--store", site.store.root).exit_code == 0
    assert not site.marks.exists()


MACHINE = """
set -e
cp -a /etc {folder}/etc-of-the-node
mount --bind {folder}/etc-of-the-node /etc
exec "$@"
"""


@pytest.mark.needs("root", "unshare", "mksquashfs", "setpriv")
def test_on_a_machine_with_its_real_policy() -> None:
    """The installed programs, /etc/sqshpipe/signatures.json where it belongs, and a user who is not root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        _on_a_machine(Path(folder))


def _on_a_machine(folder: Path) -> None:
    private, public = write_keys(folder, "ours")
    store = new_store(folder / "store")
    for version in ("v1.0", "v1.1"):
        content = squash(folder, f"{version}.sqsh", word=version).read_bytes()
        publish(store, version, content, platform=HOST)
    signatures.sign(store.layout, store.find(SIGNED, HOST), signing.open_signer(private))
    node, state = folder / "node", folder / "state"
    tool = f"{sys.executable} -m pipeline"
    user = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    script = f"""
    {tool} -q node install --prefix {node} --store {store.root} --state {state} --importer-only \
        --require-signature {public} > /dev/null
    get() {{ {user} {node}/bin/pyxis-importer get docker://demo:$1; }}
    get v1.0 && exit 21
    {user} {tool} -q resolve demo:v1.0 --store {store.root} || exit 22
    get v1.0 && exit 23
    {tool} -q run demo:v1.0 --store {store.root} --no-gpu -- cat /word || exit 24
    get v1.0 || exit 25
    get v1.1 && exit 26
    {tool} -q run demo:v1.1 --store {store.root} -- /version && exit 27
    exit 0
    """
    command = MACHINE.format(folder=folder)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, "sh", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not Path("/etc/sqshpipe/signatures.json").exists()
    assert done.stdout.splitlines()[-2:] == ["v1.0", str(store.find(SIGNED, HOST).path)]


def test_a_sync_lets_no_channel_name_an_unsigned_release(site: Site, tmp_path: Path) -> None:
    """Whoever writes the other store cannot stop the jobs that name `latest`, nor the channels of others."""
    policy = trust.NODE_POLICY.read_bytes()
    target = new_store(tmp_path / "target")
    trust.NODE_POLICY.unlink()
    site.store.promote(UNSIGNED, "stable")
    publish(site.store, "v1.0", squashfs_like("zeta"), image="zeta", platform=HOST)
    site.sign("zeta:v1.0")
    site.store.promote("zeta:v1.0", "stable")
    trust.NODE_POLICY.write_bytes(policy)
    words = ["store", "sync", site.store.root, target.root]
    assert run(*words).exit_code == 0
    assert target.state("demo").current("latest") == "v1.0"
    assert target.resolve("demo", HOST).version == "v1.0"
    assert "stable of demo stays as it is" in refused(*words, "--channel", "stable", as_=PublishError)
    assert target.state("demo").current("stable") is None
    assert target.state("zeta").current("stable") == "v1.0"


def test_a_sync_asks_for_the_signatures_of_images_yaml(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust.NODE_POLICY.unlink()
    target = new_store(tmp_path / "target")
    monkeypatch.chdir(tmp_path)
    Path("images.yaml").write_text(
        f"version: 1\nregistry: {{url: registry.example.com/x}}\n"
        f"store: {{root: {target.root}, require_signature: {site.public}}}\n"
        "images: {demo: {base: registry.example.com/base:1, dockerfile: null}}\n"
    )
    done = run("store", "sync", site.store.root, target.root)
    assert done.exit_code == 0, done.output
    assert target.state("demo").current("latest") == "v1.0"
