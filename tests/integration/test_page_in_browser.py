"""The page as people see it: in Chromium, light and dark, wide and on a phone, also with hostile records."""

from __future__ import annotations

import re
import subprocess
import zlib
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pipeline.report.gather import gather
from pipeline.report.page import page
from tests.support.store.showcase import crowd, hostile, showcase

pytestmark = pytest.mark.needs("chromium")

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)
LIGHT, DARK = (0xF6, 0xF7, 0xF5), (0x11, 0x15, 0x14)


def _chromium(work: Path, file: Path, *options: str, end: str = "") -> str:
    """Run it on a file, with a profile of its own, and give its stdout; `end` is added to its address."""
    profile = work / f"profile-{len(list(work.iterdir()))}"
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage"]
    argv = ["chromium", "--headless", "--no-sandbox", *quiet, f"--user-data-dir={profile}", *options]
    done = subprocess.run(
        [*argv, file.as_uri() + end], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def _written(tmp_path: Path, name: str) -> Path:
    make = {"showcase": showcase, "hostile": hostile}[name]
    file = tmp_path / "page.html"
    file.write_text(page(gather(make(tmp_path / "store", tmp_path / "work"), now=NOW)), encoding="utf-8")
    return file


def _first_pixel(png: Path) -> tuple[int, ...]:
    """Red, green, blue of the upper left corner, which no filter of PNG changes."""
    raw, packed, position = png.read_bytes(), b"", 8
    while position < len(raw):
        length, kind = int.from_bytes(raw[position : position + 4], "big"), raw[position + 4 : position + 8]
        packed += raw[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        position += 12 + length
    return tuple(zlib.decompress(packed)[1:4])


def test_the_script_runs_under_the_policy_and_the_release_of_the_address_opens(tmp_path: Path) -> None:
    file = _written(tmp_path, "showcase")
    shown = _chromium(tmp_path, file, "--dump-dom", end="#megatron-training:v1.4")
    assert shown.count(">Copy</button>") == 16, "by name and by path for each release that resolves"
    opened = re.findall(r'<details[^>]* id="([^"]+)"[^>]* open=""', shown)
    assert opened == ["megatron-training", "megatron-training:v1.4"]
    assert re.search(r'<time datetime="[^"]+" title="[^"]+ UTC">\d+ \w+ ago</time>', shown)
    assert shown.count('class="bar') == 9


def _visible(shown: str) -> list[str]:
    """Ids of the images and releases that are not hidden, in the order of the page."""
    found = re.findall(r'<details class="(?:image|release)" id="([^"]+)"([^>]*)>', shown)
    return [name for name, rest in found if " hidden" not in rest]


@pytest.mark.parametrize(
    ("end", "releases"),
    [
        ("#state=yanked", ["megatron-training:v1.2"]),
        ("#state=unscanned&channel=latest", ["pytorch:24.03"]),
        ("#channel=stable", ["megatron-training:v1.4"]),
        ("#q=wandb+%2Brun", ["megatron-training:v1.3"]),
        ("#q=MEGATRON+V1.5", ["megatron-training:v1.5"]),
        ("#q=%3Cnothing%3E", []),
    ],
)
def test_search_and_filters_show_what_matches(tmp_path: Path, end: str, releases: list[str]) -> None:
    shown = _chromium(tmp_path, _written(tmp_path, "showcase"), "--dump-dom", end=end)
    assert [name for name in _visible(shown) if ":" in name] == releases
    images = {name.partition(":")[0] for name in releases}
    assert {name for name in _visible(shown) if ":" not in name} == images
    assert shown.count(' open=""') == len(images), "a result is opened"
    counted = f"{len(images)} image{'' if len(images) == 1 else 's'}, {len(releases)} release"
    assert counted in re.findall(r"<output[^>]*>(.*?)</output>", shown)[0]


def test_images_are_sorted_and_a_name_shows_all_its_releases(tmp_path: Path) -> None:
    file = _written(tmp_path, "showcase")
    images = re.findall(r'<details class="image" id="([^"]+)"', file.read_text())
    assert images == ["megatron-training", "pytorch"], "the newest first"
    file.write_text(file.read_text().replace('id="pytorch"', 'id="a-pytorch"'))
    shown = _chromium(tmp_path, file, "--dump-dom", end="#sort=name")
    assert [name for name in _visible(shown) if ":" not in name] == ["a-pytorch", "megatron-training"]
    shown = _chromium(tmp_path, file, "--dump-dom", end="#q=megatron")
    assert len(_visible(shown)) == 1 + 6
    assert ' open=""' not in shown


def test_2000_releases_open_and_are_searched_in_under_a_second(tmp_path: Path) -> None:
    store = crowd(tmp_path / "store", images=200, releases=10)
    (tmp_path / "page.html").write_text(page(gather(store, now=NOW, packages=False)), encoding="utf-8")
    probe = tmp_path / "probe.html"
    probe.write_text(
        """<iframe width=1280 height=900></iframe><script>
        const frame = document.querySelector("iframe"), times = [];
        const start = performance.now();
        frame.onload = () => {
          times.push(performance.now() - start);
          const page = frame.contentDocument, field = page.querySelector("[name=q]");
          for (const text of ["t", "team-03 v1.9", "2 high mina"]) {
            const before = performance.now();
            field.value = text;
            field.dispatchEvent(new Event("input", {bubbles: true}));
            page.body.getBoundingClientRect();
            times.push(performance.now() - before);
          }
          document.title = times.map(Math.round).join(" ") + " " + page.querySelector("output").textContent;
        };
        frame.src = "page.html";
        </script>"""
    )
    took = []
    for _ in range(3):  # another process may have taken the time of one
        shown = _chromium(tmp_path, probe, "--dump-dom", "--allow-file-access-from-files")
        said = re.search(r"<title>([\d ]+) 200 images, 2,000 releases</title>", shown)
        assert said is not None, shown[:300]
        took.append(max(map(int, said[1].split())))
        if took[-1] < 1000:
            break
    assert min(took) < 1000, took


def test_it_is_light_and_dark(tmp_path: Path) -> None:
    file = _written(tmp_path, "showcase")
    for name, options, ground in (
        ("light", (), LIGHT),
        ("dark", ("--blink-settings=preferredColorScheme=0",), DARK),
    ):
        png = tmp_path / f"{name}.png"
        _chromium(tmp_path, file, "--window-size=1100,1400", f"--screenshot={png}", *options)
        assert _first_pixel(png) == ground, name


@pytest.mark.parametrize("name", ["showcase", "hostile"])
@pytest.mark.parametrize("width", [320, 360, 1100])
def test_nothing_sticks_out_on_a_phone_or_a_desk(tmp_path: Path, name: str, width: int) -> None:
    file = _written(tmp_path, name)
    probe = tmp_path / "probe.html"
    probe.write_text(
        f"""<iframe width={width} height=800 src="{file.name}"></iframe><script>
        onload = () => {{
          const page = document.querySelector("iframe").contentDocument;
          page.querySelectorAll("details").forEach((one) => one.open = true);
          const out = [...page.querySelectorAll("section *")].filter(
            (one) => one.getBoundingClientRect().right
              > one.closest("section").getBoundingClientRect().right);
          const wide = page.documentElement.scrollWidth;
          document.title = `${{wide}} ${{out.map((one) => one.outerHTML.slice(0, 80))}}`;
        }}</script>"""
    )
    shown = _chromium(
        tmp_path, probe, "--dump-dom", "--allow-file-access-from-files", "--window-size=1300,900"
    )
    said = re.search(r"<title>(\d+) (.*?)</title>", shown, re.DOTALL)
    assert said is not None, shown[:500]
    assert int(said[1]) <= width, "the page scrolls sideways"
    assert not said[2]


def test_hostile_records_neither_run_nor_show_as_markup(tmp_path: Path) -> None:
    shown = _chromium(tmp_path, _written(tmp_path, "hostile"), "--dump-dom")
    assert "<img" not in shown
    assert "<title>Images in" in shown, "no record has changed the title"
    assert "&lt;img src=x" in shown
