"""Pinning the base inside a Dockerfile: what counts as the base, and that nothing else is touched."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pipeline.errors import ConfigError
from pipeline.image.dockerfile import PinnedDockerfile, pin_base
from pipeline.oci.digest import Digest
from pipeline.oci.platform import Platform
from pipeline.oci.reference import Reference

DIGEST = Digest.of(b"base")
BASE = Reference.parse("nvcr.io/nvidia/pytorch:24.01-py3").with_digest(DIGEST)
AT = f"nvcr.io/nvidia/pytorch@{DIGEST}"


def pin(text: str, base: Reference = BASE, **build_args: str) -> str:
    return pinned_with(text, base, build_args).text


def pinned_with(
    text: str, base: Reference = BASE, build_args: Mapping[str, str] | None = None
) -> PinnedDockerfile:
    return pin_base(text, base, build_args or {}, name="Dockerfile", platform=Platform.parse("linux/arm64"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM nvcr.io/nvidia/pytorch:24.01-py3\n", f"FROM {AT}\n"),
        ("from nvcr.io/nvidia/pytorch:24.01-py3", f"from {AT}"),
        (
            "FROM --platform=linux/amd64 nvcr.io/nvidia/pytorch:24.01-py3 AS a\n",
            f"FROM --platform=linux/amd64 {AT} AS a\n",
        ),
        (
            "# FROM x\n\nFROM nvcr.io/nvidia/pytorch:24.01-py3\r\nRUN x\r\n",
            f"# FROM x\n\nFROM {AT}\r\nRUN x\r\n",
        ),
        (f"FROM nvcr.io/nvidia/pytorch:24.01-py3@{DIGEST}\n", f"FROM {AT}\n"),
        (
            "FROM \\\n# why\n  nvcr.io/nvidia/pytorch:24.01-py3 \\\n AS a\n",
            f"FROM \\\n# why\n  {AT} \\\n AS a\n",
        ),
        ("# escape=`\nFROM `\nnvcr.io/nvidia/pytorch:24.01-py3\n", f"# escape=`\nFROM `\n{AT}\n"),
    ],
)
def test_the_base_is_put_in_by_digest(text: str, expected: str) -> None:
    assert pin(text) == expected


def test_arguments_before_from_count_with_the_values_of_build_args() -> None:
    text = 'ARG REPO="nvcr.io/nvidia"\nARG VERSION=23.01\nFROM ${REPO}/pytorch:${VERSION}-py3\nARG VERSION\n'
    assert pin(text, VERSION="24.01").splitlines()[2] == f"FROM {AT}"
    with pytest.raises(ConfigError, match=r"builds on nvcr\.io/nvidia/pytorch:23\.01-py3, but its base"):
        pin(text)


@pytest.mark.parametrize("image", ["$BASE_IMAGE", "${BASE_IMAGE}", "${BASE_IMAGE:-busybox}"])
def test_base_image_is_given_by_images_yaml(image: str) -> None:
    pinned = pinned_with(f"ARG BASE_IMAGE\nFROM {image}\n")
    assert pinned.text == f"ARG BASE_IMAGE\nFROM {AT}\n"
    assert pinned.takes_base


def test_an_argument_without_arg_has_no_value_in_from() -> None:
    with pytest.raises(ConfigError, match="its base in images"):
        pin("FROM ${BASE_IMAGE:-busybox}\n")


def test_stages_are_no_images_and_other_images_are_reported() -> None:
    text = (
        "FROM golang:1.22 AS tools\nRUN make\n"
        "FROM nvcr.io/nvidia/pytorch:24.01-py3 AS base\n"
        "FROM base\nCOPY --from=tools /x /x\nCOPY --from=0 /y /y\nCOPY --from=busybox:1 /bin/sh /z\n"
        "COPY --chown=1:1 --from=nvcr.io/nvidia/pytorch:24.01-py3 /opt /opt\n"
    )
    pinned = pinned_with(text)
    assert pinned.others == ("golang:1.22", "busybox:1")
    assert pinned.registries == ("docker.io",)
    assert pinned.text.splitlines()[3] == "FROM base"
    assert pinned.text.endswith(f"COPY --chown=1:1 --from={AT} /opt /opt\n")


def test_images_that_flags_name_are_seen_on_every_line() -> None:
    text = (
        "# syntax=registry.example.com/dockerfile:1\n"
        "FROM nvcr.io/nvidia/pytorch:24.01-py3\n"
        "RUN --mount=type=cache,target=/c \\\n  --mount=from=nvcr.io/nvidia/pytorch:24.01-py3,target=/m \\\n"
        "  # a comment\n  --mount=type=bind,from=tools.example.com/uv:1,target=/u make"
        " --mount=from=no.example/x\n"
        "COPY \\\n  --from=nvcr.io/nvidia/pytorch:24.01-py3 /a /a\n"
    )
    pinned = pinned_with(text)
    assert pinned.text.splitlines()[3] == f"  --mount=from={AT},target=/m \\"
    assert pinned.text.splitlines()[7] == f"  --from={AT} /a /a"
    assert pinned.others == ("tools.example.com/uv:1",)
    assert pinned.syntax == "registry.example.com/dockerfile:1"
    assert pinned.registries == ("tools.example.com", "registry.example.com")


def test_text_inside_here_documents_and_continued_lines_is_not_read() -> None:
    text = (
        "FROM nvcr.io/nvidia/pytorch:24.01-py3\n"
        "RUN <<EOF cat <<-'TWO'\nFROM nvcr.io/nvidia/pytorch:24.01-py3\nEOF\nFROM busybox\n\tTWO\n"
        "RUN echo \\\nFROM nvcr.io/nvidia/pytorch:24.01-py3\n"
    )
    assert pin(text) == f"FROM {AT}\n" + text.split("\n", 1)[1]


def test_an_escaped_space_belongs_to_the_end_of_a_here_document() -> None:
    text = "RUN <<EOF\\ \nEOF\nFROM nvcr.io/nvidia/pytorch:24.01-py3\nEOF \nRUN x  \n"
    top = "# escape=`\nFROM {}\n"
    assert pin(top.format("nvcr.io/nvidia/pytorch:24.01-py3") + text) == top.format(AT) + text


def test_docker_hub_names_are_the_same_however_long_they_are_spelled() -> None:
    base = Reference.parse("ubuntu:22.04").with_digest(DIGEST)
    for spelled in ("ubuntu:22.04", "library/ubuntu:22.04", "docker.io/library/ubuntu:22.04"):
        assert pin(f"FROM {spelled}\n", base) == f"FROM docker.io/library/ubuntu@{DIGEST}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RUN true\n",
        "FROM scratch\n",
        "FROM busybox\n",
        f"FROM nvcr.io/nvidia/pytorch@{Digest.of(b'x')}\n",
    ],
)
def test_a_dockerfile_on_something_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pin(text)
    assert "Dockerfile builds on" in caught.value.message
    assert "BASE_IMAGE" in caught.value.hint


SUBSTITUTED = {
    "nested": "ARG V=24.01-py3\nFROM ${NONE:-nvcr.io/nvidia/pytorch:${V}}\n",
    "needed": "ARG V=24.01-py3\nFROM nvcr.io/nvidia/pytorch:${V:?set-V}\n",
    "if set": "ARG V\nFROM nvcr.io/nvidia/pytorch:${V:+wrong}24.01-py3\n",
    "set, but empty": "ARG V=\nFROM nvcr.io/nvidia/pytorch:${V-wrong}${V+24.01-py3}\n",
    "shortest end": "ARG TAG=24.01-py3-igpu\nFROM nvcr.io/nvidia/pytorch:${TAG%-igpu}\n",
    "longest end": "ARG TAG=24.01-py3+a+b\nFROM nvcr.io/nvidia/pytorch:${TAG%%+*}\n",
    "shortest beginning": "ARG TAG=v-24.01-py3\nFROM nvcr.io/nvidia/pytorch:${TAG#?-}\n",
    "longest beginning": "ARG IMAGE=a/b/pytorch\nFROM nvcr.io/nvidia/${IMAGE##*/}:24.01-py3\n",
    "first": "ARG TAG=24_01-py3\nFROM nvcr.io/nvidia/pytorch:${TAG/_/.}\n",
    "all": "ARG OWNER=n-v-i-d-i-a\nFROM nvcr.io/${OWNER//-/}/pytorch:24.01-py3\n",
    "all of it, once": "ARG TAG=x\nFROM nvcr.io/nvidia/pytorch:${TAG//*/24.01-py3}\n",
    "quotes": "ARG REPO='nvcr.io/nvidia'\nFROM \"$REPO/pytorch\":'24.01-py3'\n",
    "an escape": "FROM nvcr.io/nvidia/py\\torch:24.01-py3\n",
    "another escape": "# escape=`\nARG V=24.01`-py3\nFROM nvcr.io/nvidia/pytorch:$V\n",
    "argument of argument": 'ARG A=24.01 B="${A}-py3"\nFROM nvcr.io/nvidia/pytorch:$B\n',
    "platform": "FROM nvcr.io/nvidia/pytorch:24.01-py3 AS base-arm64\nFROM base-${TARGETARCH}\n",
    "lines": "ARG A=24.01 \\\n# why\n    B=py3\nFROM nvcr.io/nvidia/pytorch:$A-${B}\n",
}


@pytest.mark.parametrize("case", SUBSTITUTED)
def test_variables_are_substituted_as_by_buildkit(case: str) -> None:
    found = pinned_with(SUBSTITUTED[case])
    assert f"FROM {AT}" in found.text
    assert found.others == ()


def test_build_arguments_win_over_automatic_ones() -> None:
    text = "FROM nvcr.io/nvidia/pytorch:24.01-py3 AS base-mine\nFROM base-${TARGETARCH}\n"
    assert pinned_with(text, build_args={"TARGETARCH": "mine"}).others == ()
    assert pinned_with(text).others == ("base-arm64",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("FROM nvcr.io/nvidia/pytorch:${V:?set-V}\n", "line 1: V: set-V"),
        ("\nFROM ${V}\n", r"line 2: \$\{V\} has no value"),
        ("ARG A='x\nFROM x\n", "line 1: a single quote is not closed"),
        ("FROM ${V\n", "line 1: "),
        ("FROM ${V:#x}\n", "line 1: .*is not a substitution"),
        ("FROM\n", "line 1: FROM takes an image"),
        (f"FROM {'${A:-' * 3000}{'}' * 3000}\n", "line 1: .*nested too deep"),
        ("FROM a b\n", "line 1: FROM takes an image"),
        ("FROM a IS b\n", "line 1: FROM takes an image"),
    ],
)
def test_what_no_builder_takes_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"Dockerfile, {reason}"):
        pin(text)


HERE = {
    "any word": "COPY <<END-OF-FILE /x\nFROM {image}\nEND-OF-FILE\n",
    "a word with a quote": "RUN <<'A B'\nFROM {image}\nA B\n",
    "part of a word in quotes": 'RUN <<E"O"F\nFROM {image}\nEOF\n',
    "a space before the word": "RUN << EOF\nFROM {image}\nEOF\n",
    "a descriptor": "RUN 3<<EOF\nFROM {image}\nEOF\n",
    "on the next line": "RUN cat \\\n  <<EOF\nFROM {image}\nEOF\n",
    "a variable in the word": "RUN <<$E\nFROM {image}\n$E\n",
    "as a trigger": "ONBUILD RUN <<EOF\nFROM {image}\nEOF\n",
    "a line that is not the end": "RUN <<EOF\nFROM {image}\n EOF\nEOF \nFROM {image}\nEOF\n",
}


@pytest.mark.parametrize("case", HERE)
def test_here_documents_are_left_alone(case: str) -> None:
    text = HERE[case].format(image="nvcr.io/nvidia/pytorch:24.01-py3")
    assert pin(f"FROM nvcr.io/nvidia/pytorch:24.01-py3\n{text}") == f"FROM {AT}\n{text}"


@pytest.mark.parametrize(
    "line",
    [
        "RUN echo '<<EOF'",
        'RUN echo "a <<EOF"',
        "RUN echo $((1<<EOF))",
        "RUN echo a<<EOF",
        'RUN ["echo", "<<EOF"]',
        "LABEL a=<<EOF",
        "RUN cat <<<EOF",
        "RUN echo \u2028<<EOF'",
    ],
)
def test_what_begins_no_here_document(line: str) -> None:
    text = f"{line}\nFROM nvcr.io/nvidia/pytorch:24.01-py3\nRUN x\nEOF\n"
    assert pin(text) == f"{line}\nFROM {AT}\nRUN x\nEOF\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('COPY --from="{image}" /a /a', 'COPY --from="{at}" /a /a'),
        ("COPY --chmod='755' --from='{image}' /a /a", "COPY --chmod='755' --from='{at}' /a /a"),
        ("COPY --fr\\\nom={image} /a /a", "COPY --fr\\\nom={at} /a /a"),
        ('COPY --from=nvcr.io/"nvidia"/pytorch:24.01-py3 /a /a', "COPY --from={at} /a /a"),
        ("COPY --from=nvcr.io/nvi\\dia/pytorch:24.01-py3 /a /a", "COPY --from={at} /a /a"),
        ("RUN --mount='type=bind,from={image},target=/m' x", "RUN --mount='type=bind,from={at},target=/m' x"),
        ('RUN --mount=type=bind,from="{image}" x', 'RUN --mount=type=bind,from="{at}" x'),
        ("RUN --mount=From={image},target=/m x", "RUN --mount=From={at},target=/m x"),
        (
            'RUN --mount=from=nvcr.io/"nvidia"/pytorch:24.01-py3,target="/m m" x',
            'RUN --"mount=from={at},target=/m m" x',
        ),
        ("RUN -- --mount=from={image} x", "RUN -- --mount=from={image} x"),
        ("RUN x --mount=from={image}", "RUN x --mount=from={image}"),
        ("COPY --from=BASE /a /a", "COPY --from=BASE /a /a"),
        ('COPY --from="Base" /a /a', 'COPY --from="Base" /a /a'),
    ],
)
def test_flags_are_read_without_their_quotes(before: str, after: str) -> None:
    image = "nvcr.io/nvidia/pytorch:24.01-py3"
    found = pinned_with(f"FROM {image} AS base\n{before.format(image=image)}\n")
    assert found.text == f"FROM {AT} AS base\n{after.format(image=image, at=AT)}\n"
    assert found.others == ()


def test_a_stage_may_be_named_before_it_begins() -> None:
    text = "FROM nvcr.io/nvidia/pytorch:24.01-py3\nCOPY --from=later /a /a\nFROM scratch AS later\n"
    assert pinned_with(text).others == ()


@pytest.mark.parametrize(
    "top",
    [
        "# syntax=s.example/d:1\n",
        "#!/usr/bin/env x\n#Syntax = s.example/d:1 more\n",
        "// syntax=s.example/d:1\n",
    ],
)
def test_the_grammar_that_a_file_names(top: str) -> None:
    text = f"{top}FROM nvcr.io/nvidia/pytorch:24.01-py3\n"
    assert pinned_with(text).syntax == "s.example/d:1"
    assert pinned_with(text, build_args={"BUILDKIT_SYNTAX": "o.example/d:2"}).registries == ("o.example",)
