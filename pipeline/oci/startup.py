"""The four files by which enroot starts an image, written from the image's config.

The config is a stranger's text and /etc/rc is a shell script: nothing in the config is ever run but the
command that it names, whatever quotes, newlines, `$(…)` or backticks are in it.
"""

from __future__ import annotations

import posixpath
import re
import shlex

from pipeline.oci.config import ImageConfig
from pipeline.oci.digest import Digest

FORMAT_VERSION = 1

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"([\"']).*[\"']\s*", re.DOTALL)
_FSTAB_ESCAPES = str.maketrans({"\\": "\\134", " ": "\\040"})
_RC_LOCAL = """\
# /etc/rc reads this file when the container starts.
# Put commands here to change what is run, or how.
"""


def startup_files(config: ImageConfig, provenance: Digest | None = None) -> dict[str, bytes]:
    """The content of each file by its path.

    provenance  the digest that /etc/rc names as where the image comes from; the config's when None. A digest
                alone, so that the bytes do not depend on the place that the image was read from.
    """
    texts = {
        "etc/environment": environment(config.env),
        "etc/fstab": fstab(config.volumes),
        "etc/rc": rc(config, provenance or config.digest),
        "etc/rc.local": _RC_LOCAL,
    }
    return {path: text.encode("utf-8") for path, text in texts.items()}


def rc(config: ImageConfig, provenance: Digest) -> str:
    """The script that /bin/sh runs in the container: go to the working directory, run the command."""
    lines = [f"# enroot-provenance: {provenance}"]
    lines += [f"# {_one_line(key)} {_one_line(value)}" for key, value in config.labels.items()]
    folder = shlex.quote(absolute(config.working_dir))
    entrypoint = [shlex.quote(word) for word in config.entrypoint]
    command = [*entrypoint, *(shlex.quote(word) for word in config.cmd)] or ["/bin/sh"]
    lines += [
        "",
        f"mkdir -p {folder} 2> /dev/null",
        f"cd {folder} && unset OLDPWD || exit 1",
        "",
        "if [ -s /etc/rc.local ]; then",
        "    . /etc/rc.local",
        "fi",
        "",
        "if [ $# -gt 0 ]; then",
        f"    exec {' '.join([*entrypoint, chr(34) + '$@' + chr(34)])}",
        "else",
        f"    exec {' '.join(command)}",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def environment(env: tuple[str, ...]) -> str:
    """`KEY=value` a line, as enroot reads it.

    enroot takes one pair of quotes around a value away, so a value that has its own gets one more. It cannot
    take a line break, which becomes a space lest the rest be read as another variable, and it replaces
    `${NAME}` by what NAME is on the host, for which it knows no escape. Names that no shell could hold are
    left out: enroot drops them.
    """
    lines = []
    for item in env:
        name, equals, value = item.partition("=")
        if not equals or not _ENV_NAME.fullmatch(name):
            continue
        value = re.sub(r"[\r\n]+", " ", value)
        if _QUOTED.fullmatch(value):
            value = f'"{value}"'
        lines.append(f"{name}={value}\n")
    return "".join(lines)


def fstab(volumes: tuple[str, ...]) -> str:
    """A line for each volume, which makes it a mount of its own, on itself.

    A path that fstab or enroot's substitution of variables would garble is left out; such a volume is then a
    plain folder of the image.
    """
    lines = []
    for volume in volumes:
        path = absolute(volume)
        if path == "/" or "$" in path or _CONTROL.search(path):
            continue
        path = path.translate(_FSTAB_ESCAPES)
        lines.append(f"${{ENROOT_ROOTFS}}{path} {path} none x-create=dir,bind,rw,nosuid,nodev\n")
    return "".join(lines)


def absolute(path: str) -> str:
    """`path` from the root on, without `.`, `..` and doubled slashes; `/` when empty."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _one_line(text: str) -> str:
    return _CONTROL.sub(" ", text)
