from __future__ import annotations

import pytest

from pipeline.convert.names import shown


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"etc/passwd", "/etc/passwd"),
        (b"", "/"),
        ("caf\xe9/\u4e2d".encode(), "/caf\xe9/\u4e2d"),
        (b"caf\xe9", "/caf\\xe9"),
        (b"a\x1b[31m\nb\x07", "/a\\x1b[31m\\nb\\x07"),
        ("a\u202eb".encode(), "/a\\u202eb"),
    ],
)
def test_a_path_is_one_harmless_line(path: bytes, text: str) -> None:
    assert shown(path) == text


def test_a_long_path_is_cut_in_the_middle() -> None:
    text = shown(b"start/" + b"x" * 4000 + b"/end")
    assert len(text) < 250
    assert text.startswith("/start/")
    assert text.endswith("/end")
