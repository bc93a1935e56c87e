"""The page as text; tests/integration/test_page_in_browser.py looks at it as people do."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

from pipeline.release.publish import publish_external
from pipeline.report.gather import gather
from pipeline.report.page import page
from pipeline.store.record import DATA
from tests.support.store.releases import new_store
from tests.support.store.showcase import HOSTILE, attach_sbom, crowd, hostile, publish, showcase, sqsh

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
    assert "srun --container-image=megatron-training:v1.5 python train.py" in said
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
    assert {one for one in wanted if "=" not in one} <= set(ids)
    assert {one for one in wanted if "=" in one} == {"state=yanked"}, "a filter for the script"


def test_hostile_records_stay_text(tmp_path: Path) -> None:
    store = hostile(tmp_path / "store", tmp_path / "work")
    text = page(gather(store, now=NOW, files=True))
    parsed = _Parsed(text)
    assert not [tag for tag, _ in parsed.tags if tag in ("img", "iframe", "object", "embed", "link")]
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1
    assert parsed.text.count("<img src=x") > 15
    classes = " ".join(str(attrs.get("class")) for _, attrs in parsed.tags)
    assert "img" not in classes, "no text of a record becomes a class"
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert HOSTILE not in text


def test_packages_of_sboms_are_reported_and_stay_text(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    for version in ("v1.4", "v1.5"):
        attach_sbom(store, "megatron-training", version, {f"{HOSTILE}{version}": HOSTILE})
    parsed = _Parsed(page(gather(store, now=NOW)))
    assert "from the SBOMs" in parsed.text
    assert "from the images" in parsed.text, "of older versions, which have none"
    assert "onerror=" in parsed.text
    assert not [tag for tag, _ in parsed.tags if tag == "img"]


def test_damage_is_reported_and_does_not_end_the_run(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    (store.root / "pytorch" / "24.02.json").chmod(0o644)
    (store.root / "pytorch" / "24.02.json").write_text("{")
    release = store.release("megatron-training", "v1.5")
    assert release is not None
    release.path.chmod(0o644)
    release.path.write_bytes(b"no squashfs any more")
    said = _Parsed(page(gather(store, now=NOW))).text
    assert "The record of this release cannot be read" in said
    assert "megatron-training:v1.5 was not read: " in said


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    assert "Nothing is published yet" in page(gather(new_store(tmp_path), now=NOW))


def test_many_releases_make_a_page_of_bounded_length(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    report = gather(store, now=NOW, most=4, packages=False)
    assert [len(image.releases) for image in report.images] == [2, 2]
    assert report.images[0].releases[1].comparison is not None
    assert "and 4 older" in page(report)
    assert "9 releases" in _Parsed(page(report)).text
    assert report.growth[-1][1] == report.bytes_on_disk


def test_200_images_and_2000_releases_stay_under_2_mb(tmp_path: Path) -> None:
    text = page(gather(crowd(tmp_path / "store", images=200, releases=10), now=NOW, packages=False))
    assert len(text.encode()) < 2_000_000
    assert text.count('class="release"') == 2000, "each has its row"
    newest = [f"srun --container-image=team-{n % 17:02}-training-{n:03}:v1.9 " for n in range(200)]
    assert all(line in text for line in newest), "details of what people start come first"
    left_out = text.count('class="brief"')
    assert left_out < 1800
    assert f"Details of {2000 - left_out:,} of 2,000 releases" in text
    assert text.count("<figure>") == 201


def _row(text: str, release: str) -> str:
    found = re.search(rf'<details class="release" id="{re.escape(release)}".*?</summary>', text, re.DOTALL)
    assert found is not None, release
    return found[0]


def test_a_collapsed_row_shows_what_a_user_must_know(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    external = sqsh(tmp_path / "external", {"libc6": "2.39"}, weight=1000)
    publish_external(external, store=store, image="imported", version="1", allow_external=True)
    text = page(gather(store, now=NOW))
    assert " open" not in "".join(re.findall(r"<details[^>]*>", text)), "everything is collapsed"
    row = _Parsed(_row(text, "megatron-training:v1.4"))
    assert re.fullmatch(
        r"v1\.4stable in use by 2 2 high 1 waived mina@build-01 · \w{10}\d\.\d MB2026-09-03 09:30", row.text
    )
    assert "unscanned" in _Parsed(_row(text, "pytorch:24.03")).text
    assert "external" in _Parsed(_row(text, "imported:1")).text
    assert 'data-state="yanked ' in _row(text, "megatron-training:v1.2")


def test_a_yanked_release_is_never_the_newest(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    store.mark("pytorch:24.03", "yank", reason="broken")
    for version in ("24.02", "24.01"):
        report = gather(store, now=NOW, packages=False)
        newest = report.images[1].newest
        assert newest is not None
        assert newest.line.version == version
        store.mark(f"pytorch:{version}", "yank", reason="broken")
    said = _Parsed(page(gather(store, now=NOW, packages=False))).text
    assert "none resolves" in said


def test_the_sums_of_the_images_add_up(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    same = sqsh(tmp_path / "same", {"libc6": "2.39"}, weight=50_000)
    for image in ("one", "other", "third"):
        publish(store, same, image, "v1", "2026-11-01T00:00:00Z")
    publish(store, same, "one", "v2", "2026-11-02T00:00:00Z")
    store.promote("megatron-training:v1.5", "shipped")
    report = gather(store, now=NOW, packages=False)
    assert report.shared == same.stat().st_size
    assert sum(image.own for image in report.images) + report.shared == report.bytes_on_disk
    assert [image.shared for image in report.images] == [0, *[report.shared] * 2, 0, report.shared]
    assert report.bytes_on_disk == sum(each.stat().st_size for each in store.layout.blobs.iterdir())


def test_the_dockerfile_is_compared_line_by_line(tmp_path: Path) -> None:
    store = showcase(tmp_path / "store", tmp_path / "work")
    text = page(gather(store, now=NOW))
    assert text.count('<pre class="diff">') == 1, "one release changed it"
    diff = _Parsed(re.findall(r'<pre class="diff">.*?</pre>', text, re.DOTALL)[0])
    assert "+RUN pip install wandb==0.16.2" in diff.text
    assert "dockerfile" not in diff.text, "no hashes"


def test_data_is_mounted_and_has_no_line_that_starts_it(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    file = sqsh(tmp_path / "work", {}, weight=5000)
    publish(store, file, "wikitext2", "v1", "2026-11-01T00:00:00Z", kind=DATA, scan={"status": "unscanned"})
    text = page(gather(store, now=NOW))
    assert "srun" not in text.partition("</style>")[2].partition("<script>")[0]
    assert f"{store.root}/wikitext2/v1.sqsh" in text
    assert '<i class="plain">data</i>' in _row(text, "wikitext2:v1")
    assert "unscanned" not in _row(text, "wikitext2:v1")
