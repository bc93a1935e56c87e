"""images.yaml to values: defaults, overrides, and errors that name file, line and key."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.config import yamlfile
from pipeline.config.lock import Lock, write_lock
from pipeline.config.reading import load
from pipeline.config.types import Config, ConvertOptions, EcrSettings, SecretSource, TagPattern
from pipeline.errors import ConfigError
from pipeline.oci.entry import DEFAULT_LIMITS, Limits

NGC = "nvcr.io/nvidia/pytorch:24.01-py3"
MINIMAL = f"""\
version: 1
images:
  demo:
    base: {NGC}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str) -> Path:
        for name in ("Dockerfile", "waivers.yaml"):
            (tmp_path / name).touch()
        path = tmp_path / "images.yaml"
        path.write_text(text)
        return path

    return _write


def quiet(path: Path, **flags: object) -> Config:
    return load(path, environment={}, **flags)  # type: ignore[arg-type]


def test_minimal_file_has_all_defaults(write: Write) -> None:
    config = quiet(write(MINIMAL))
    demo = config.image("demo")
    assert str(demo.base) == NGC
    assert str(demo.platform) == "linux/amd64"
    assert demo.mirrored
    assert demo.convert == ConvertOptions()
    assert (demo.scan.fail_on, demo.scan.scanner) == ("high", "auto")
    assert demo.channels == ("latest",)
    assert (demo.keep, demo.max_age, demo.test, demo.track) == (5, None, (), None)
    assert config.lock_path.name == "images.lock"


def test_image_wins_over_defaults_key_by_key(write: Write) -> None:
    config = quiet(
        write(
            f"""\
version: 1
defaults:
  platform: linux/arm64
  convert: {{converter: mksquashfs, zstd_level: 9, block_size: 1M}}
  scan: {{fail_on: critical, waivers: waivers.yaml, max_age: 12h}}
  keep: 7
  max_age: 30d
images:
  one: {{base: "{NGC}"}}
  two:
    base: {NGC}
    platform: linux/amd64
    convert: {{zstd_level: 1}}
    scan: {{fail_on: never}}
    keep: 2
    track: {{pattern: YY.MM-py3, policy: newest}}
"""
        )
    )
    one, two = config.image("one"), config.image("two")
    assert one.convert == ConvertOptions(converter="mksquashfs", zstd_level=9, block_size=1 << 20)
    assert two.convert == ConvertOptions(converter="mksquashfs", zstd_level=1, block_size=1 << 20)
    assert (one.scan.fail_on, two.scan.fail_on) == ("critical", None)
    assert one.scan.waivers == two.scan.waivers == config.path.parent / "waivers.yaml"
    assert two.scan.max_age == timedelta(hours=12)
    assert (one.keep, two.keep) == (7, 2)
    assert one.max_age == two.max_age == timedelta(days=30)
    assert (str(one.platform), str(two.platform)) == ("linux/arm64", "linux/amd64")
    assert two.track == TagPattern(pattern="YY.MM-py3", policy="newest")


def test_build_settings_are_paths_from_the_file(write: Write, tmp_path: Path) -> None:
    config = quiet(
        write(
            f"""\
version: 1
images:
  demo:
    base: {NGC}
    dockerfile: Dockerfile
    build_args: {{TRANSFORMERS: "4.36.0", TOKENIZERS_VERSION: "0.15"}}
    secrets: {{hf: {{env: HF_TOKEN}}, netrc: {{file: netrc}}}}
    target: final
    compression: zstd
    test: ["python -c 'import torch'"]
"""
        )
    )
    demo = config.image("demo")
    assert (demo.dockerfile, demo.context) == (tmp_path / "Dockerfile", tmp_path)
    assert demo.secrets == {
        "hf": SecretSource(env="HF_TOKEN"),
        "netrc": SecretSource(file=tmp_path / "netrc"),
    }
    assert demo.test == ("python -c 'import torch'",)
    assert demo.compression == "zstd"
    assert not demo.mirrored


def test_override_order_is_flag_environment_file(write: Write) -> None:
    path = write(MINIMAL + "registry: {url: file.example/x}\nstore: {root: from-file}\n")
    env = {"SQSHPIPE_STORE": "/env", "SQSHPIPE_REGISTRY": "env.example/team"}
    assert load(path, environment={}).store.root == path.parent / "from-file"
    assert load(path, environment=env).store.root == Path("/env")
    assert load(path, environment=env, store=Path("/flag")).store.root == Path("/flag")
    assert str(load(path, environment={}).registry.repository("demo")) == "file.example/x/demo"
    assert str(load(path, environment=env).registry.repository("demo")) == "env.example/team/demo"
    flagged = load(path, environment=env, registry="http://127.0.0.1:5000/a/b/").registry
    assert (str(flagged.repository("demo")), flagged.host, flagged.plain_http) == (
        "127.0.0.1:5000/a/b/demo",
        "127.0.0.1:5000",
        True,
    )


def test_ecr_by_settings_and_by_address_are_the_same(write: Write) -> None:
    by_settings = quiet(
        write(MINIMAL + 'registry: {ecr: {account: "123456789012", region: us-east-1, prefix: t}}\n')
    )
    host = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
    by_address = quiet(write(MINIMAL), registry=f"https://{host}/t")
    assert by_settings.registry == by_address.registry
    assert by_settings.registry.ecr == EcrSettings(account="123456789012", region="us-east-1", prefix="t")
    assert str(by_settings.registry.repository("demo")) == f"{host}/t/demo"


def test_store_and_registry_are_asked_for_only_where_needed(write: Write) -> None:
    config = quiet(write(MINIMAL))
    with pytest.raises(ConfigError, match="no store is given"):
        _ = config.store.root
    with pytest.raises(ConfigError, match="no registry is given"):
        config.registry.repository("demo")


def test_unknown_image_suggests_the_nearest(write: Write) -> None:
    config = quiet(write(MINIMAL))
    with pytest.raises(ConfigError, match=r"has no image 'demi' \(did you mean demo\?\)"):
        config.image("demi")
    assert [spec.name for spec in config.select([])] == ["demo"]
    assert [spec.name for spec in config.select(["demo", "demo"])] == ["demo"]


IMAGE = f"version: 1\nimages:\n  demo:\n    base: {NGC}\n"

ERRORS = {
    "unknown key": (
        IMAGE + "    dockerfil: x\n",
        r"line 5, images\.demo\.dockerfil: unknown key .*dockerfile\?",
    ),
    "unknown key, nothing near": (
        IMAGE + "zzz: 1\n",
        r"line 5, zzz: unknown key \(known here: cache, defaults",
    ),
    "a bucket without trust": (
        IMAGE + "store: {root: /containers, s3: s3://bucket/containers}\n",
        r"line 5, store: s3 needs trust_synced: true",
    ),
    "no bucket": (
        IMAGE + "store: {root: /containers, s3: https://bucket, trust_synced: true}\n",
        r"line 5, store\.s3: .*s3://",
    ),
    "key in the wrong place": (
        IMAGE + "scan: {scanner: none}\n",
        r"line 5, scan: it stands under defaults, or in an image's entry",
    ),
    "unknown nested key": (
        IMAGE + "    convert:\n      zstd_levle: 1\n",
        r"line 6, .*convert\.zstd_levle: .*zstd_level\?",
    ),
    "unknown key in defaults": (
        IMAGE + "defaults: {kep: 1}\n",
        r"line 5, defaults\.kep: unknown key \(did you mean keep\?",
    ),
    "missing base": ("version: 1\nimages:\n  demo: {}\n", r"line 3, images\.demo: base is missing"),
    "missing version": ("images:\n  demo:\n    base: a:1\n", r"version is missing"),
    "other version": (IMAGE.replace("version: 1", "version: 2"), r"line 1, version: .*not 2"),
    "no images": ("version: 1\nimages: {}\n", r"line 2, images: "),
    "base without a tag": (
        "version: 1\nimages:\n  demo:\n    base: debian\n",
        r"line 4, images\.demo\.base: .*has no tag",
    ),
    "base that is no reference": (
        "version: 1\nimages:\n  demo:\n    base: UP er\n",
        r"line 4, images\.demo\.base: ",
    ),
    "missing Dockerfile": (
        IMAGE + "    dockerfile: nope/Dockerfile\n",
        r"line 5, .*nope/Dockerfile does not exist",
    ),
    "missing context": (
        IMAGE + "    dockerfile: Dockerfile\n    context: nope\n",
        r"line 6, .*nope is not a folder",
    ),
    "missing waivers": (
        IMAGE + "defaults:\n  scan:\n    waivers: no.yaml\n",
        r"line 7, defaults\.scan\.waivers: no\.yaml",
    ),
    "float as build argument": (
        IMAGE + "    dockerfile: Dockerfile\n    build_args:\n      T: 4.36\n",
        r'line 7, images\.demo\.build_args\.T: 4\.36 is a number here, put it in quotes: "4\.36"',
    ),
    "secret as build argument": (
        IMAGE + '    dockerfile: Dockerfile\n    build_args: {HF_TOKEN: "x-value"}\n',
        r"line 6, images\.demo\.build_args: HF_TOKEN looks like a secret",
    ),
    "secret with two sources": (
        IMAGE + "    dockerfile: Dockerfile\n    secrets: {a: {env: A, file: b}}\n",
        r"secrets\.a: give exactly one of env and file",
    ),
    "build arguments without Dockerfile": (
        IMAGE + '    build_args: {A: "1"}\n',
        r"images\.demo: build_args needs a docker",
    ),
    "upper case name": (IMAGE.replace("demo", "Demo"), r"line 3, images\.Demo: 'Demo' is not an image name"),
    "name that leaves the folder": (
        IMAGE.replace("demo", "../x"),
        r"line 3, .*'\.\./x' is not an image name",
    ),
    "reserved name": (IMAGE.replace("demo", "blobs"), r"line 3, .*an image cannot be called 'blobs'"),
    "bad block size": (
        IMAGE + "    convert: {block_size: 100K}\n",
        r"line 5, .*block_size: write a power of two",
    ),
    "bad level": (IMAGE + "    convert: {zstd_level: 23}\n", r"line 5, .*zstd_level: .*22, not 23"),
    "bad converter": (
        IMAGE + "    convert: {converter: mksqashfs}\n",
        r"converter: .*'mksquashfs'.*not 'mksqashfs'",
    ),
    "bad time": (IMAGE + "    max_age: 30 days\n", r"line 5, .*max_age: write a time such as 90m"),
    "bad platform": (IMAGE + "    platform: amd64\n", r"line 5, .*platform: "),
    "bad channel": (
        IMAGE + "    channels: [key-abc]\n",
        r"channels\[0\]: 'key-abc' is not a channel name",
    ),
    "account as number": (IMAGE + "registry: {ecr: {account: 123456789012, region: us-east-1}}\n", r"quotes"),
    "two registries": (
        IMAGE + 'registry: {url: a.b, ecr: {account: "123456789012", region: us-east-1}}\n',
        r"line 5, registry: give exactly one of url and ecr",
    ),
    "registry with a password": (
        IMAGE + "registry: {url: 'u:hunter2@h.example'}\n",
        r"registry\.url: no user or password",
    ),
    "registry without a host": (
        IMAGE + "registry: {url: team/images}\n",
        r"registry\.url: 'team' is not a host",
    ),
    "duplicate key": (
        IMAGE + "    base: other:1\n",
        r"line 5, base: given twice, also on line 4",
    ),
    "duplicate key on a line": ("{version: 1, version: 1}\n", r"line 1, version: given twice"),
    "no mapping": ("- 1\n", "has no settings"),
    "empty": ("", "has no settings"),
    "tab": ("version: 1\n\timages: {}\n", r"line 2: not valid YAML"),
    "not text": ("version: 1\nimages: {demo: {base: [1]}}\n", r"line 2, images\.demo\.base: "),
    "object tag": ("version: !!python/object:os.system 1\n", r"line 1: not valid YAML"),
    "alias to itself": ("version: 1\nimages: &a {demo: *a}\n", "nested too deep"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_file_line_and_key(write: Write, case: str) -> None:
    text, pattern = ERRORS[case]
    path = write(text)
    with pytest.raises(ConfigError, match=pattern) as caught:
        quiet(path)
    assert str(path) in caught.value.message
    assert "hunter2" not in str(caught.value)
    assert "x-value" not in str(caught.value)


def test_alias_bomb_is_refused(write: Write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="too many values"):
        quiet(write("\n".join(lines)))


def test_several_errors_are_reported_at_once(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        quiet(write(IMAGE + "    keep: 0\n    kep: 1\n"))
    assert len(caught.value.message.splitlines()) == 2


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml does not exist .*--config"):
        quiet(tmp_path / "nope.yaml")


def test_secret_values_written_as_defaults_never_come_back(write: Write) -> None:
    # The value of a refused argument must not be shown, whatever the name is called.
    for name in ("API_KEY", "MY_SECRET", "DB_PASSWORD", "GITHUB_TOKEN", "AUTH", "AWS_SECRET_ACCESS_KEY"):
        with pytest.raises(ConfigError, match=f"{name} looks like a secret") as caught:
            quiet(write(IMAGE + f'    dockerfile: Dockerfile\n    build_args: {{{name}: "x-value"}}\n'))
        assert "x-value" not in str(caught.value)


@pytest.mark.parametrize("typed", ["4.10", "24.10", "1.0", "12.", "007.50", "true", "False"])
def test_the_hint_for_a_missing_quote_has_the_text_as_typed(write: Write, typed: str) -> None:
    """The text of 4.10 is another than that of the number 4.1: in quotes it would be another version."""
    with pytest.raises(ConfigError, match=re.escape(f'put it in quotes: "{typed}"')):
        quiet(write(IMAGE + f"    dockerfile: Dockerfile\n    build_args: {{A: {typed}}}\n"))


def test_ordinary_names_are_no_secrets(write: Write) -> None:
    for name in ("TRANSFORMERS", "KEYBOARD", "MONKEY_VERSION", "AUTHOR", "TORCH_CUDA_ARCH_LIST", "BYPASS"):
        quiet(write(IMAGE + f'    dockerfile: Dockerfile\n    build_args: {{{name}: "1"}}\n'))


def test_limits_of_images(write: Write) -> None:
    assert quiet(write(MINIMAL)).limits == DEFAULT_LIMITS
    limits = "limits: {unpacked: 64G, ratio: 40, entries: 1000, devices: refuse, setuid: refuse}\n"
    assert quiet(write(MINIMAL + limits)).limits == Limits(
        max_unpacked=64 << 30, max_ratio=40, max_entries=1000, devices=False, setuid=False
    )
    for wrong in ("unpacked: 1X", "unpacked: -5", "ratio: 0", "devices: drop", "bytes: 5"):
        with pytest.raises(ConfigError, match="limits"):
            quiet(write(f"{MINIMAL}limits: {{{wrong}}}\n"))


@pytest.mark.parametrize(
    ("written", "time"),
    [
        ("90m", timedelta(minutes=90)),
        ("120", timedelta(hours=2)),
        ("00:05:00", timedelta(minutes=5)),
        ("2-00:00:00", timedelta(days=2)),
        ("1-12", timedelta(hours=36)),
    ],
)
def test_slurms_time_is_taken_as_slurm_writes_it(write: Write, written: str, time: timedelta) -> None:
    text = MINIMAL + f"defaults: {{slurm: {{time: {written}}}}}\n"
    assert quiet(write(text)).image("demo").slurm.time == time


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "socket", "folder", "device"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "images.yaml"
    if "pipe" in kind:
        os.mkfifo(tmp_path / "pipe" if "link" in kind else file)
    if "link" in kind:
        file.symlink_to("pipe")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(file))
    elif kind == "folder":
        file.mkdir()
    elif kind == "device":
        file.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="cannot be read: not a regular file"):
        yamlfile.read(file)
    with pytest.raises(ConfigError, match="not a regular file"):
        write_lock(file, Lock())
