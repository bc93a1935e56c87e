"""The four files by which enroot starts an image, written from the image's config.

The config is a stranger's text and /etc/rc is a shell script: nothing in the config is ever run but the
command that it names, whatever quotes, newlines, `$(…)` or backticks are in it.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import dataclass

from pipeline.oci import environment
from pipeline.oci.config import ImageConfig
from pipeline.oci.digest import Digest

FORMAT_VERSION = 3

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_FSTAB_ESCAPES = str.maketrans({"\\": "\\134", " ": "\\040"})
_RC_LOCAL = """\
# /etc/rc reads this file when the container starts.
# Put commands here to change what is run, or how.
"""
# One word as shlex.quote and bash's ${x@Q} write it: nothing in it is expanded by a shell.
_WORD = r"""(?:'[^']*'|"[^"$`\\]*"|\\'|[A-Za-z0-9@%+=:,./_-])+"""
_WORDS = rf"{_WORD}(?: {_WORD})*"
_RC = re.compile(
    rf"""^cd (?P<folder>{_WORD}) && unset OLDPWD \|\| exit 1
\s*if \[ -s /etc/rc\.local \]; then
\s*\. /etc/rc\.local
fi
\s*if \[ \$# -gt 0 \]; then
\s*exec (?:(?P<entrypoint>{_WORDS}) )?[ ]?"\$@"
else
\s*exec [ ]?(?P<command>{_WORDS})[ ]?
fi\n?\Z""",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How an image starts; `command` is what runs when nothing else is asked for, entrypoint included."""

    working_dir: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]


def parse_rc(text: str) -> Start | None:
    """What an /etc/rc says that `rc` or enroot wrote; None when it is another script."""
    found = _RC.search(text)
    if found is None:
        return None
    return Start(
        working_dir=shlex.split(found["folder"])[0],
        entrypoint=tuple(shlex.split(found["entrypoint"] or "")),
        command=tuple(shlex.split(found["command"])),
    )


def startup_files(config: ImageConfig, provenance: Digest | None = None) -> dict[str, bytes]:
    """The content of each file by its path.

    provenance  the digest that /etc/rc names as where the image comes from; the config's when None. A digest
                alone, so that the bytes do not depend on the place that the image was read from.
    """
    texts = {
        "etc/fstab": fstab(config.volumes),
        "etc/rc": rc(config, provenance or config.digest),
        "etc/rc.local": _RC_LOCAL,
    }
    files = {path: text.encode("utf-8") for path, text in texts.items()}
    return {"etc/environment": environment.write(config.env), **files}


def rc(config: ImageConfig, provenance: Digest) -> str:
    """The script that /bin/sh runs in the container: go to the working directory, run the command."""
    lines = [f"# enroot-provenance: {provenance}"]
    lines += [f"# {_one_line(key)} {_one_line(value)}" for key, value in config.labels.items()]
    folder = shlex.quote(absolute(config.working_dir))
    # Docker takes an entrypoint of one empty word for none: that is how an image gets rid of its base's.
    entrypoint = [] if config.entrypoint == ("",) else [shlex.quote(word) for word in config.entrypoint]
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
