"""`WWW-Authenticate` and `Link` as RFC 9110 and RFC 8288 write them, and as registries do."""

from __future__ import annotations

import time

import pytest

from pipeline.registry.headers import next_address, parse_challenges, resolve

BEARER = ("bearer", {"realm": "https://a/t", "service": "s"})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('Negotiate, Bearer realm="https://a/t",service="s"', [("negotiate", {}), BEARER]),
        ('Bearer realm="https://a/t",service="s", Negotiate', [BEARER, ("negotiate", {})]),
        ("NTLM, Negotiate , Basic", [("ntlm", {}), ("negotiate", {}), ("basic", {})]),
        ('Negotiate YII=, Bearer realm="https://a/t" , service="s"', [("negotiate", {}), BEARER]),
        ('Negotiate abc==,Bearer realm="https://a/t",service=s', [("negotiate", {}), BEARER]),
        ('Digest realm="a, Bearer realm=b", Bearer realm="https://a/t",service="s"', None),
        ('Bearer realm = "https://a/t" , service\t=\ts', [BEARER]),
        (', ,Bearer ,realm="https://a/t",, service="s",', [BEARER]),
        ('Bearer realm="a\\"b, c"', [("bearer", {"realm": 'a"b, c'})]),
        (
            "Bearer realm=https://a/t?x=y,service=s",
            [("bearer", {"realm": "https://a/t?x=y", "service": "s"})],
        ),
        ('@@@, Bearer realm="https://a/t",service="s"', [BEARER]),
        ('Bearer realm="https://a/t",service="s", x="not closed', [BEARER]),
        ('Bearer service="s", realm="not closed\\"', [("bearer", {"service": "s"})]),
    ],
)
def test_a_challenge_hides_no_other(line: str, expected: list[tuple[str, dict[str, str]]] | None) -> None:
    wanted = expected or [("digest", {"realm": "a, Bearer realm=b"}), BEARER]
    assert [(each.scheme, dict(each.parameters)) for each in parse_challenges(line)] == wanted


@pytest.mark.parametrize(
    "line",
    [
        " " * 400_000,
        "Bearer" + " " * 400_000 + "x",
        "," * 400_000,
        "a " * 200_000,
        "a=" * 200_000,
        "<" * 400_000,
        '"' * 400_000,
        'Bearer realm="' + "\\" * 400_001,
        "a, " * 130_000,
    ],
)
def test_headers_are_read_in_linear_time(line: str) -> None:
    started = time.process_time()
    parse_challenges(line)
    next_address([line], "https://r.example.com/v2/a/tags/list")
    next_address(["<a>;" + line], "https://r.example.com/v2/a/tags/list")
    assert time.process_time() - started < 5.0


PAGE = "https://r.example.com/v2/a/tags/list?n=2"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['</v2/a/tags/list?last=x>; rel="next"'], "https://r.example.com/v2/a/tags/list?last=x"),
        (['</n>; title="a, b"; rel="next"'], "https://r.example.com/n"),
        (['</n>; title="a; rel=prev"; rel=next'], "https://r.example.com/n"),
        (['</n>; title="a \\"quoted\\" b>"; rel="next"'], "https://r.example.com/n"),
        (['</p>; rel="prev", </n>; rel="next", </l>; rel="last"'], "https://r.example.com/n"),
        (['</p>; rel="prev"', '</n>; rel="next"'], "https://r.example.com/n"),
        (['</n>; rel="last next"'], "https://r.example.com/n"),
        (['</n>; REL="NEXT"'], "https://r.example.com/n"),
        (["</n> ; rel = next"], "https://r.example.com/n"),
        (["</n,m?a=b,c>;rel=next"], "https://r.example.com/n,m?a=b,c"),
        (["<?last=x>; rel=next"], "https://r.example.com/v2/a/tags/list?last=x"),
        (["<list2>; rel=next"], "https://r.example.com/v2/a/tags/list2"),
        (["<../../b>; rel=next"], "https://r.example.com/v2/b"),
        (["<//other.example.com/n#part>; rel=next"], "https://other.example.com/n"),
        (['</n>; rel="nextish"'], None),
        (['</n>; rel="prev"; rel="next"'], None),
        (['</n>; anchor="/elsewhere"; rel="next"'], None),
        (['</n>; anchor=""; rel="next"'], "https://r.example.com/n"),
        (['</n>; x-rel="next"'], None),
        (["</n; rel=next"], None),
        (["junk, </n>; rel=next"], "https://r.example.com/n"),
        ([], None),
    ],
)
def test_the_next_page_is_found(lines: list[str], expected: str | None) -> None:
    assert next_address(lines, PAGE) == expected


def test_addresses_are_resolved_as_rfc_3986_has_them() -> None:
    base = "http://a/b/c/d;p?q"
    examples = {
        "g": "http://a/b/c/g",
        "./g": "http://a/b/c/g",
        "g/": "http://a/b/c/g/",
        "/g": "http://a/g",
        "//g": "http://g",
        "?y": "http://a/b/c/d;p?y",
        "g?y": "http://a/b/c/g?y",
        "g;x?y#s": "http://a/b/c/g;x?y",
        "../..": "http://a/",
        "../../g": "http://a/g",
        "../../../g": "http://a/g",
        "./../g": "http://a/b/g",
    }
    assert {reference: resolve(base, reference) for reference in examples} == examples
