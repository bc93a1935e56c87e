"""Scrub finds what is damaged, marks it, and continues where it was stopped; du counts shared bytes once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError, VerificationError
from pipeline.store import scrub as scrubbing
from pipeline.store.scrub import scrub
from pipeline.store.store import Store
from pipeline.store.usage import usage
from tests.support.store.releases import new_store, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = new_store(tmp_path / "containers")
    for version in ("v1.0", "v1.1", "v1.2"):
        publish(store, version)
    return store


def rot(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("content", "what"), [(b"rot!", "its sha256 is"), (b"v1", "2 bytes instead of 4"), (None, "missing")]
)
def test_what_is_damaged_no_longer_resolves_until_it_is_published_again(
    store: Store, content: bytes | None, what: str
) -> None:
    blob = store.resolve("demo:v1.2").path
    if content is None:
        blob.unlink()
    else:
        rot(blob, content)
    report = scrub(store.layout)
    assert [(damage.releases, what in damage.what) for damage in report.damaged] == [(("demo:v1.2",), True)]
    assert report.checked == 3
    with pytest.raises(VerificationError, match="damaged"):
        store.resolve("demo")
    assert not (store.root / "demo/v1.2.sqsh").is_symlink()
    assert scrub(store.layout).damaged == report.damaged
    publish(store, "v1.2")
    assert store.resolve("demo").path.read_bytes() == b"v1.2"
    assert scrub(store.layout).damaged == []


def test_the_other_platform_still_resolves(store: Store) -> None:
    arm = publish(store, "v1.2", b"arm", platform="linux/arm64")
    rot(arm.path, b"rot")
    scrub(store.layout, names=["demo:v1.2"])
    assert store.resolve("demo:v1.2").sha256
    with pytest.raises(VerificationError, match="damaged"):
        store.resolve("demo:v1.2", "linux/arm64")


def test_bytes_put_right_by_hand_are_taken_back(store: Store) -> None:
    blob = store.resolve("demo:v1.0").path
    rot(blob, b"rot!")
    scrub(store.layout)
    rot(blob, b"v1.0")
    scrub(store.layout)
    assert store.resolve("demo:v1.0").state == "published"


def test_a_run_that_was_cut_is_resumed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    look, looked = scrubbing._look, []

    def cut(*arguments: object) -> str:
        if len(looked) == 2:
            raise KeyboardInterrupt
        looked.append(arguments[1])
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(scrubbing, "_look", cut)
    with pytest.raises(KeyboardInterrupt):
        scrub(store.layout)
    monkeypatch.undo()
    report = scrub(store.layout)
    assert (report.checked, report.skipped) == (1, 2)
    assert scrub(store.layout).checked == 3


def test_the_rate_is_limited(store: Store) -> None:
    slept: list[float] = []
    scrub(store.layout, bytes_per_second=1.0, sleep=slept.append)
    assert 10 < slept[-1] <= 12


def test_shared_bytes_cost_once(store: Store) -> None:
    publish(store, "v1.3", b"v1.0")
    publish(store, "v1.0", b"v1.0", image="other")
    found = usage(store.layout)
    assert (found.total, found.images) == (12, {"demo": 12, "other": 4})
    assert {f"{cost.image}:{cost.version}": (cost.size, cost.own) for cost in found.costs} == {
        "demo:v1.0": (4, 0),
        "demo:v1.1": (4, 4),
        "demo:v1.2": (4, 4),
        "demo:v1.3": (4, 0),
        "other:v1.0": (4, 0),
    }


def test_a_name_that_there_is_not_is_no_success(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"no release demo:v9\.9") as caught:
        scrub(store.layout, names=["demo:v9.9"])
    assert "v1." in caught.value.hint
    with pytest.raises(ConfigError, match="no release dmeo"):
        scrub(store.layout, names=["dmeo"])


def test_a_record_that_cannot_be_read_is_damage_too(store: Store) -> None:
    (store.root / "demo/v0.9.json").write_text("{")
    report = scrub(store.layout)
    assert (report.checked, report.damaged) == (3, [])
    assert "v0.9.json is damaged" in report.broken[0]
    assert scrub(store.layout, names=["demo"]).broken == report.broken
