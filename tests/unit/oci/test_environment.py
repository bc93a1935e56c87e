"""/etc/environment carries what Docker gives, through the steps in which enroot reads it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.oci import environment
from pipeline.oci.enroot_files import Start, parse_rc, rc
from tests.support.images.variables import CARRIED, LOST

HOST = {b"HOME": b"/of the host", b"X": b"other", b"EMPTY": b""}
TEXT = st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), max_size=40)
PIECES = st.lists(
    st.sampled_from(
        ['"', "'", " ", "\t", "\r", "\f", "$", "{", "}", "${X}", "${", "X", "=", "\\", "#", "\u2028", "\x85"]
    )
).map("".join)


def _after_enroot(
    content: bytes, host: dict[bytes, bytes], folder: Path, *, locale: str = "C"
) -> dict[bytes, bytes]:
    """The variables by real awk and sed, with commands that follow enroot's documentation of the file."""
    file = folder / "environment"
    file.write_bytes(content)
    names = "[A-Za-z_][A-Za-z0-9_]*"
    awk = (
        "{ rest = $0; while (match(rest, /[$][{]" + names + "[}]/)) {"
        ' printf "%s%s", substr(rest, 1, RSTART - 1), ENVIRON[substr(rest, RSTART + 2, RLENGTH - 3)];'
        " rest = substr(rest, RSTART + RLENGTH) } print rest }"
    )
    replaced = subprocess.run(
        ["awk", awk, file],
        env={**host, b"PATH": os.environb[b"PATH"]},
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    # as enroot's own expression: in a set of sed \ stands for itself, so it counts as a quote
    unquoted = rf"s/^\({names}\)=[\"\x27](.*)[\"\x27][[:space:]]*$/\1=\2/".replace("(.*)", r"\(.*\)")
    for _ in range(2):
        replaced = subprocess.run(
            ["sed", "-e", rf"s/^[[:space:]]\+//; /^{names}=/!d; /^ENROOT_/d", "-e", unquoted],
            input=replaced,
            env={"LC_ALL": locale, "PATH": os.environ["PATH"]},
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout
    return dict(line.split(b"=", 1) for line in replaced.split(b"\n") if line)


def _expected(items: list[str]) -> dict[bytes, bytes]:
    return dict(item.encode().split(b"=", 1) for item in items)


def test_every_value_comes_out_as_it_went_in() -> None:
    for item in CARRIED:
        assert environment.read(environment.write([item]), HOST) == _expected([item]), item
    assert environment.losses(CARRIED) == []


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_awk_and_sed_make_the_same_of_it(locale: str, tmp_path: Path) -> None:
    if not shutil.which("awk") or not shutil.which("sed"):
        pytest.skip("awk or sed is not here")
    items = [f"T_{number}={item.partition('=')[2]}" for number, item in enumerate(CARRIED)]
    content = environment.write(items)
    assert _after_enroot(content, HOST, tmp_path, locale=locale) == _expected(items)


def test_awk_and_sed_make_the_same_of_values_by_chance(tmp_path: Path) -> None:
    if not shutil.which("awk") or not shutil.which("sed"):
        pytest.skip("awk or sed is not here")
    pieces = [*"\"'\\ \t${}X=#\r\f\u2028\u00e9", "${X}"]
    chance = random.Random(19)
    values = ["".join(chance.choices(pieces, k=chance.randrange(6))) for _ in range(3000)]
    items = [f"T_{number}={value}" for number, value in enumerate(values)]
    content = environment.write(items)
    assert environment.losses(items) == []
    assert _after_enroot(content, HOST, tmp_path) == _expected(items)
    assert environment.read(content, HOST) == _expected(items)
    raw = [item for item in items if environment.is_plain(item)]
    assert _after_enroot("".join(f"{item}\n" for item in raw).encode(), HOST, tmp_path) == _expected(raw)


@given(st.one_of(TEXT, PIECES))
def test_any_value_comes_out_as_it_went_in(value: str) -> None:
    content = environment.write([f"A={value}", "B=next"])
    assert environment.read(content, HOST) == {b"A": value.encode(), b"B": b"next"}


@given(st.one_of(TEXT, PIECES))
def test_what_is_plain_needs_no_other_form(value: str) -> None:
    item = f"A={value}"
    raw = environment.read(item.encode(), HOST)
    if environment.is_plain(item):
        assert raw == {b"A": value.encode()}


def test_what_cannot_be_carried_is_named() -> None:
    assert [name for name, _ in environment.losses(LOST)] == [item.partition("=")[0] for item in LOST]
    read = environment.read(environment.write(LOST), HOST)
    assert read == {b"LINES": b"one TWO=2", b"T_LAST": b"x "}


def test_what_nobody_sets_is_no_loss() -> None:
    assert environment.losses(["NOTHING"]) == []
    assert environment.write(["NOTHING"]) == b""


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_what_a_shell_sets_itself_is_named(shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not here")
    names = ["IFS", "OLDPWD", "OPTERR", "OPTIND", "PPID", "PS1", "PS2", "PS4", "PWD", "_"]
    names += ["HOME", "LANG", "SHLVL", "TERM", "UMASK"]
    given = dict.fromkeys(names, "77")
    script = "cd / && unset OLDPWD || exit 1; exec env -0"
    done = subprocess.run(
        ["/bin/env", "-i", *(f"{name}=77" for name in names), program, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    left = dict(item.split("=", 1) for item in done.stdout.split("\0") if item)
    changed = {name for name in names if left.get(name) != given[name]}
    named = {name for name, _ in environment.losses([f"{name}=77" for name in names])}
    assert {"IFS", "PWD"} <= changed <= named
    assert named.isdisjoint({"HOME", "LANG", "TERM"})


def test_the_last_of_two_counts_and_the_host_is_asked() -> None:
    content = b'  A=1\nA="2"\nB=${HOME}\nC=${NOBODY}.\n# D=1\nENROOT_X=1\nno\nE=\'"x"\' \n'
    assert environment.read(content, HOST) == {b"A": b"2", b"B": b"/of the host", b"C": b".", b"E": b"x"}


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(WORDS, st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=3))
def test_the_start_script_says_what_the_config_said(
    folder: str, entrypoint: list[str], cmd: list[str]
) -> None:
    from pipeline.oci.digest import Digest
    from pipeline.oci.enroot_files import absolute
    from tests.unit.oci.test_rootfs import config

    made = config(WorkingDir=folder, Entrypoint=entrypoint, Cmd=cmd, Labels={"cd /x": "exec \n"})
    words = [] if entrypoint == [""] else entrypoint
    assert parse_rc(rc(made, Digest.of(b""))) == Start(
        working_dir=absolute(folder), entrypoint=tuple(words), command=(*words, *cmd) or ("/bin/sh",)
    )


def test_the_start_script_of_enroot_is_understood() -> None:
    text = """# x y

mkdir -p "/work dir" 2> /dev/null
cd "/work dir" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec 'a b' 'it'\\''s' "$@"
else
    exec 'a b' 'it'\\''s' '-c'
fi
"""
    entrypoint = ("a b", "it's")
    assert parse_rc(text) == Start(
        working_dir="/work dir", entrypoint=entrypoint, command=(*entrypoint, "-c")
    )
    without = text.replace("'a b' 'it'\\''s'", "")
    assert parse_rc(without) == Start(working_dir="/work dir", entrypoint=(), command=("-c",))


@pytest.mark.parametrize(
    "change", [('"/work dir"', '"/$(id)"'), ("'-c'", "$'-c'"), ("exec 'a", "eval 'a"), ("fi\n", "")]
)
def test_another_script_is_not_guessed_at(change: tuple[str, str]) -> None:
    text = 'cd "/work dir" && unset OLDPWD || exit 1\n\n'
    text += "if [ -s /etc/rc.local ]; then\n    . /etc/rc.local\nfi\n\n"
    text += "if [ $# -gt 0 ]; then\n    exec 'a' \"$@\"\nelse\n    exec 'a' '-c'\nfi\n"
    assert parse_rc(text) is not None
    assert parse_rc(text.replace(*change)) is None
