from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.convert.enroot_program import (
    Enroot,
    Places,
    import_environment,
    import_uri,
    meaning,
    netrc_line,
    parse_version,
    refuse_config,
    write_credentials,
)
from pipeline.errors import FormatError, ToolError
from pipeline.oci.config import parse_config
from tests.support.images.layers import image_config

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DIGEST = "sha256:" + "a" * 64


def enroot(*version: int) -> Enroot:
    return Enroot(path=Path("/usr/bin/enroot"), version=(version[0], version[1], version[2]))


def environment(outer: dict[str, str], tmp_path: Path, *, plain_http: bool = False) -> dict[str, str]:
    return import_environment(
        outer,
        places=Places.below(tmp_path / "scratch", cache=tmp_path / "cache"),
        plain_http=plain_http,
        zstd_level=5,
        block_size=1 << 20,
        processors=3,
        memory=512 << 20,
    )


def test_version() -> None:
    assert parse_version("4.1.2\n") == (4, 1, 2)
    with pytest.raises(ToolError, match="does not report"):
        parse_version("command not found")


@pytest.mark.parametrize(
    ("host", "repository", "reference", "uri"),
    [
        ("ghcr.io", "team/demo", DIGEST, f"docker://ghcr.io#team/demo@{DIGEST}"),
        ("127.0.0.1:5000", "demo", "key-12", "docker://127.0.0.1:5000#demo:key-12"),
        ("docker.io", "library/debian", DIGEST, f"docker://registry-1.docker.io#library/debian@{DIGEST}"),
    ],
)
def test_uri(host: str, repository: str, reference: str, uri: str) -> None:
    assert import_uri(host, repository, reference) == uri


def test_squash_options_hold_all_that_overriding_them_would_drop(tmp_path: Path) -> None:
    assert environment({}, tmp_path)["ENROOT_SQUASH_OPTIONS"] == (
        "-comp zstd -Xcompression-level 5 -b 1048576 -noappend -exit-on-error -mkfs-time 0 -no-xattrs"
        " -mem 512M"
    )


def test_the_users_own_settings_are_left_out_and_others_kept(tmp_path: Path) -> None:
    outer = {
        "ENROOT_CACHE_PATH": "/home/me",
        "ENROOT_REMAP_ROOT": "y",
        "SOURCE_DATE_EPOCH": "1",
        "https_proxy": "http://proxy:3128",
        "PATH": "/bin",
    }
    found = environment(outer, tmp_path)
    assert "ENROOT_REMAP_ROOT" not in found
    assert found["PARALLEL_HOME"].startswith(str(tmp_path / "scratch"))
    assert "SOURCE_DATE_EPOCH" not in found
    assert found["https_proxy"] == "http://proxy:3128"
    assert found["ENROOT_CACHE_PATH"] == str(tmp_path / "cache")
    for name in ("CONFIG", "TEMP", "RUNTIME", "DATA"):
        assert found[f"ENROOT_{name}_PATH"] == str(tmp_path / "scratch" / name.lower())


def test_plain_http_only_when_allowed(tmp_path: Path) -> None:
    assert environment({}, tmp_path)["ENROOT_ALLOW_HTTP"] == "no"
    assert environment({"ENROOT_ALLOW_HTTP": "yes"}, tmp_path)["ENROOT_ALLOW_HTTP"] == "no"
    assert environment({}, tmp_path, plain_http=True)["ENROOT_ALLOW_HTTP"] == "yes"


def test_digests_came_with_version_4() -> None:
    assert not enroot(3, 4, 1).takes_digests
    assert enroot(4, 0, 0).takes_digests


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"WorkingDir": "/../../victim/made"}, "working directory"),
        ({"WorkingDir": "/srv/$(touch pwned)"}, "working directory"),
        ({"WorkingDir": "/srv/`id`"}, "working directory"),
        ({"WorkingDir": '/srv/";id;"'}, "working directory"),
        ({"WorkingDir": "/srv\\"}, "working directory"),
        ({"Volumes": {"/a\n/etc /mnt none bind": {}}}, "volume"),
        ({"Volumes": {"/a /mnt none bind": {}}}, "volume"),
        ({"Volumes": {"/a/../../etc": {}}}, "volume"),
        ({"Volumes": {"/\\056\\056/etc": {}}}, "volume"),
        ({"Volumes": {"/${HOME}": {}}}, "volume"),
        ({"Labels": {"a\ntouch pwned #": "b"}}, "label"),
        ({"Cmd": ["sh", "-c", "one\ntwo"]}, "command"),
        ({"Entrypoint": ["a\nb"]}, "command"),
        ({"Env": ["A=1\nLD_PRELOAD=/x"]}, "environment"),
        ({"Env": ['A="quoted whole"']}, "environment"),
        ({"Env": ["PATH=/bin", "A='open"]}, "environment"),
        ({"Env": ["A=x${HOME}"]}, "environment"),
        ({"Entrypoint": [""], "Cmd": ["sh"]}, "entrypoint"),
    ],
)
def test_what_enroot_would_run_or_misread_is_refused(settings: dict[str, object], what: str) -> None:
    with pytest.raises(FormatError, match=f"the {what} .* run or misread") as caught:
        refuse_config(parse_config(image_config([], settings)))
    assert "converter native" in caught.value.hint


def test_ordinary_configs_pass() -> None:
    settings = {
        "WorkingDir": "/srv/my app..d/it's",
        "Volumes": {"/data": {}, "/var/lib/x..y": {}},
        "Labels": {"org.opencontainers.image.title": "two\nlines $(x)"},
        "Entrypoint": ["/bin/sh", "-c", "echo $HOME `id`"],
        "Env": ["PATH=/bin", "A=$B $(c) it's", "A-B=1"],
    }
    refuse_config(parse_config(image_config([], settings)))
    refuse_config(parse_config(image_config([])))


def test_credentials_are_readable_by_us_alone(tmp_path: Path) -> None:
    places = Places.below(tmp_path / "scratch", cache=tmp_path / "cache")
    write_credentials(places, "127.0.0.1:5000", "demo", "secret")
    assert places.credentials.read_text() == "machine 127.0.0.1 login demo password secret\n"
    assert places.credentials.stat().st_mode & 0o777 == 0o600
    assert places.config.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("host", "hosts"),
    [
        ("docker.io", ["registry-1.docker.io", "auth.docker.io"]),
        ("nvcr.io", ["nvcr.io", "authn.nvidia.com"]),
        ("ghcr.io", ["ghcr.io"]),
    ],
)
def test_credentials_are_also_for_the_host_that_gives_tokens(
    host: str, hosts: list[str], tmp_path: Path
) -> None:
    places = Places.below(tmp_path / "scratch", cache=tmp_path / "cache")
    write_credentials(places, host, "$oauthtoken", "key")
    assert [line.split()[1] for line in places.credentials.read_text().splitlines()] == hosts


@pytest.mark.parametrize("password", ["plain", "$money", "$HOME", "$a*b?[c]", '$(id)`id`;&|<>"', "s*me`id`"])
def test_a_password_survives_the_shell_that_enroot_gives_it_to(password: str) -> None:
    word = netrc_line("host", "user", password).split(" ", 5)[5].rstrip("\n")
    if word.startswith("$"):  # only then does enroot evaluate it: system("echo " word)
        word = subprocess.run(
            ["sh", "-c", f"echo {word}"], check=True, capture_output=True, text=True
        ).stdout[:-1]
    assert word == password


@pytest.mark.parametrize(
    "password", ["two words", "line\nbreak", '"quoted', "$with'quote", "$back\\slash", "$a}b", ""]
)
def test_a_password_that_netrc_cannot_hold_is_refused_without_showing_it(password: str) -> None:
    with pytest.raises(ToolError, match="password for host cannot be written") as caught:
        netrc_line("host", "user", password)
    assert not password or password not in str(caught.value)


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ("[ERROR] URL https://x/v2/y returned error code: 406 Not Acceptable", "#263"),
        ("[ERROR] URL https://x/v2/y returned error code: 404 Not Found", "#277"),
        ("[ERROR] URL https://x/v2/y returned error code: 401 Unauthorized", "credentials"),
        ("[ERROR] Could not process JSON input", "#59"),
        ("tar: usr/b: Cannot hard link to 'usr/a': No such file or directory", "hard link"),
        ("enroot-mksquashovlfs: failed to mount overlay: 0:1: Invalid argument", "SQSHPIPE_SCRATCH"),
        ("enroot-mksquashovlfs: failed to create mount namespace: Operation not permitted", "#260"),
        ("Write failed because No space left on device", "SQSHPIPE_SCRATCH"),
        ("[ERROR] Command not found: parallel", "install"),
        ("tar: Malformed extended header: excess GNU.sparse.map=0", "its tar cannot read"),
    ],
)
def test_known_failures_are_explained(output: str, word: str) -> None:
    assert word in meaning(output)


def test_an_unknown_failure_is_left_as_it_is() -> None:
    assert meaning("something else") == ""
