"""/etc/rc in real shells: nothing of a config runs or expands but the command that it names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.oci.config import parse_config
from pipeline.oci.enroot_files import startup_files
from tests.support.images.hostile_images import CONFIG
from tests.support.images.layers import image_config

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
SAVE_ARGUMENTS = '#!/bin/sh\nfor word; do printf \'[%s]\' "$word"; done >> "$SAVED"\npwd >> "$SAVED"\n'
WORDS = [
    "$(touch pwned)",
    "`touch pwned`",
    "a'b\"c",
    "two\nlines",
    "${HOME}",
    "; touch pwned;",
    "-n",
    "\\",
    "!x",
    "#c",
    "*",
    "~",
]


def _run(shell: str, folder: Path, settings: dict[str, object], *arguments: str) -> tuple[str, list[str]]:
    """Run the script below `folder` instead of the root; gives what the command was given, and all files."""
    program = folder / "program"
    program.write_text(SAVE_ARGUMENTS)
    program.chmod(0o755)
    work = folder / "work"
    settings = {
        **settings,
        "Entrypoint": [str(program), *WORDS],
        "WorkingDir": f"{work}/$(touch pwned)/it's ${{HOME}}",
    }
    files = startup_files(parse_config(image_config([], settings)))
    for path, data in files.items():
        (folder / path.replace("/", "-")).write_bytes(data)
    script = files["etc/rc"].replace(b"/etc/rc.local", str(folder / "etc-rc.local").encode())
    (folder / "rc").write_bytes(script)
    argv = [shell, "sh"] if shell == "busybox" else [shell]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/expanded", "SAVED": str(folder / "saved")}
    done = subprocess.run(
        [*argv, folder / "rc", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return (folder / "saved").read_text(), found


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("arguments", [(), ("$(touch pwned)", "x y")], ids=["cmd", "arguments"])
def test_only_the_command_runs_with_its_words_as_they_are(
    shell: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    settings = {key: value for key, value in CONFIG.items() if key not in ("Entrypoint", "WorkingDir")}
    saved, files = _run(shell, tmp_path, settings, *arguments)
    given = [*WORDS, *(arguments or CONFIG["Cmd"])]
    work = f"{tmp_path}/work/$(touch pwned)/it's ${{HOME}}"
    assert saved == "".join(f"[{word}]" for word in given) + f"{work}\n"
    assert not [name for name in files if name.endswith("pwned")]


def test_the_environment_file_has_one_line_a_variable_and_no_invalid_name() -> None:
    files = startup_files(parse_config(image_config([], CONFIG)))
    lines = files["etc/environment"].decode().split("\n")[:-1]
    assert [line.partition("=")[0] for line in lines] == [
        "QUOTES", "LINES", "SUBSHELL", "TICKS", "ESCAPE", "BIDI", "EMPTY", "SPACE",
    ]  # fmt: skip
    assert "SUBSHELL=$(touch /tmp/pwned)" in lines, "enroot replaces ${NAME} alone, and runs nothing"
    fstab = files["etc/fstab"].decode().splitlines()
    assert fstab == [
        f"${{ENROOT_ROOTFS}}{path} {path} none x-create=dir,bind,rw,nosuid,nodev"
        for path in ["/data\\040with\\040space"]
    ]
