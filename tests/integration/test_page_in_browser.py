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
from tests.support.store.showcase import hostile, showcase

pytestmark = pytest.mark.needs("chromium")

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)
LIGHT, DARK = (0xF6, 0xF7, 0xF5), (0x11, 0x15, 0x14)


def _chromium(work: Path, file: Path, *options: str) -> str:
    """Run it on a file, with a profile of its own, and give its stdout."""
    profile = work / f"profile-{len(list(work.iterdir()))}"
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage"]
    argv = ["chromium", "--headless", "--no-sandbox", *quiet, f"--user-data-dir={profile}", *options]
    done = subprocess.run([*argv, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
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
    shown = _chromium(tmp_path, file, "--dump-dom")
    buttons = re.findall(r"<button [^>]*>", shown)
    assert len(buttons) == 8, "one for each release that resolves"
    assert not [button for button in buttons if " hidden" in button], "the script shows what needs it"
    assert shown.count("<rect ") == 9


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
