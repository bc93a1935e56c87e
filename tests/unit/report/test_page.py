"""The page as text; tests/integration/test_page_in_browser.py looks at it as people do."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

from pipeline.report.gather import gather
from pipeline.report.page import page
from tests.support.store.releases import new_store
from tests.support.store.showcase import HOSTILE, attach_sbom, hostile, showcase

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)


class _Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.said))


def test_it_says_what_the_store_has(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    said = _Parsed(page(gather(store, now=NOW))).text
    assert f"srun --container-image={store.root}/megatron-training/v1.5.sqsh python train.py" in said
    assert "What changed since megatron-training:v1.4" in said
    assert re.search(r"torch \(python\) ?2\.4\.0 ?2\.5\.0", said)
    assert "2 of 5 layers are the same" in said
    assert re.search(r"layer 5 ?8\.1 kB, sha256:\w{12} ?8\.1 kB", said)
    assert "wandb (python)" in said
    assert "not reachable: no image is decoded in training" in said
    assert "job 84213 on gpu-017 of train" in said
    assert "stable → v1.4" in said
    assert "NCCL hangs on 16 nodes" in said
    assert "v1.2.sqsh" not in said, "a yanked release has no line to copy"


def test_nothing_outside_is_named_and_only_our_script_may_run(tmp_path: Path) -> None:
    text = page(gather(showcase(tmp_path / "store", tmp_path / "work"), now=NOW))
    parsed = _Parsed(text)
    assert not [attrs for _, attrs in parsed.tags if {"src", "style", "onclick"} & attrs.keys()]
    assert all(str(attrs["href"]).startswith("#") for tag, attrs in parsed.tags if "href" in attrs)
    policy = next(attrs["content"] for _, attrs in parsed.tags if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_ids_are_used_once_and_links_lead_somewhere(tmp_path: Path) -> None:
    parsed = _Parsed(page(gather(showcase(tmp_path / "store", tmp_path / "work"), now=NOW)))
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {str(attrs["href"])[1:] for _, attrs in parsed.tags if "href" in attrs}
    wanted |= {attrs["data-copies"] or "" for _, attrs in parsed.tags if "data-copies" in attrs}
    assert wanted <= set(ids)


def test_hostile_records_stay_text(tmp_path: Path) -> None:
    store = hostile(tmp_path / "store", tmp_path / "work")
    text = page(gather(store, now=NOW, files=True))
    parsed = _Parsed(text)
    assert not [tag for tag, _ in parsed.tags if tag in ("img", "iframe", "object", "embed", "link")]
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1
    assert parsed.text.count("<img src=x") > 15
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert HOSTILE not in text


def test_packages_of_sboms_are_told_and_stay_text(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    for version in ("v1.4", "v1.5"):
        attach_sbom(store, "megatron-training", version, {f"{HOSTILE}{version}": HOSTILE})
    parsed = _Parsed(page(gather(store, now=NOW)))
    assert "From the SBOMs" in parsed.text
    assert "From the images" in parsed.text, "of older versions, which have none"
    assert "onerror=" in parsed.text
    assert not [tag for tag, _ in parsed.tags if tag == "img"]


def test_damage_is_told_and_is_no_end(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    (store.root / "pytorch" / "24.02.json").chmod(0o644)
    (store.root / "pytorch" / "24.02.json").write_text("{")
    release = store.release("megatron-training", "v1.5")
    assert release is not None
    release.path.chmod(0o644)
    release.path.write_bytes(b"no squashfs any more")
    said = _Parsed(page(gather(store, now=NOW))).text
    assert "The record of this release cannot be read" in said
    assert "megatron-training:v1.5 was not looked into: " in said


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    assert "Nothing is published yet" in page(gather(new_store(tmp_path), now=NOW))


def test_many_releases_make_a_page_of_bounded_length(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    report = gather(store, now=NOW, limit=2, packages=False)
    assert [len(image.releases) for image in report.images] == [2, 2]
    assert report.images[0].releases[1].comparison is not None
    assert "and 4 older" in page(report)
    assert report.growth[-1][1] == report.bytes_on_disk
