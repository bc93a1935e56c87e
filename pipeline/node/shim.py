"""A `squashfuse` for enroot that shows a kernel mount of this node where there is one for the job's user.

It makes no mounts of files and has no rights of its own: it binds what a prolog has made for this user (see
`user_mount`), or becomes the real squashfuse. Nothing in it looks at the store, which may not answer. enroot
waits until the place is a mount, and ends the process with the step.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from pipeline.errors import ToolError
from pipeline.node import shared_mount
from pipeline.system import untrusted

FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""PATH of a service of systemd, so that of slurmd: pyxis gives it to enroot, and not the job's."""
_MARK = "# squashfuse of sqshpipe"
_SCRIPT = r"""#!/bin/sh
{mark}: binds the kernel mount that this node has for the job's user, else becomes squashfuse.
# enroot calls: squashfuse -f -o uid=UID,gid=GID IMAGE FOLDER
set -f
squashfuse() {{
    old=$IFS IFS=:
    for folder in $PATH {folders}; do
        if [ -f "$folder/squashfuse" ] && [ -x "$folder/squashfuse" ]; then
            second=
            {{ read -r _; read -r second; }} < "$folder/squashfuse"
            case $second in
            "{mark}"*) ;;
            *) IFS=$old; exec "$folder/squashfuse" "$@" ;;
            esac
        fi
    done
    echo "squashfuse: only that of sqshpipe is in PATH, and this node has no kernel mount of the file" >&2
    exit 127
}}

bind() {{ # mount refuses where enroot's seccomp filter lets setuid succeed; enroot-mount reads lines of fstab
    printf '%s %s none bind\n' "$1" "$2" | enroot-mount - || mount --bind "$1" "$2"
}} 2> /dev/null

if [ $# != 5 ] || [ "$1 $2" != "-f -o" ]; then squashfuse "$@"; fi
name=${{4##*/}}
digest=${{name%.sqsh}}
case $digest in *[!0-9a-f]*) squashfuse "$@" ;; esac
if [ ${{#digest}} != 64 ] || [ ! -f {node}/"$digest/names" ]; then squashfuse "$@"; fi
while read -r path && [ "$path" != "$4" ]; do :; done < {node}/"$digest/names"
read -r uid_inside uid uids < /proc/self/uid_map
read -r gid_inside gid gids < /proc/self/gid_map
root={node}/$digest/users/$uid.$gid/root
shown="uid=$uid_inside,gid=$gid_inside 1 1"
if [ "$path" != "$4" ] || [ "$3 $uids $gids" != "$shown" ]; then squashfuse "$@"; fi
case $5 in *[!A-Za-z0-9._/+@%-]*) squashfuse "$@" ;; esac
if ! mountpoint -q "$root" || ! bind "$root" "$5"; then squashfuse "$@"; fi
exec sleep infinity
"""


def script(node: Path = shared_mount.ROOT_NODE_FOLDER) -> str:
    """The program, for a file of mode 0755 that is called squashfuse; `node` is where root mounts."""
    return _SCRIPT.format(
        mark=_MARK,
        folders=" ".join(FOLDERS),
        node=shlex.quote(str(node)),
    )


def install(prefix: Path) -> Path:
    """Write PREFIX/sbin/squashfuse, swapped by rename. Raises ToolError."""
    path = prefix / "sbin" / "squashfuse"
    try:
        with untrusted.folder_to_write(path.parent, make=0o755):
            pass
        if path.exists() and not is_shim(path):
            raise ToolError(f"{path} is a squashfuse that is not of sqshpipe", hint="choose another --prefix")
        node = Path(os.environ.get("SQSHPIPE_NODE_DIR") or shared_mount.ROOT_NODE_FOLDER)
        untrusted.replace_file(path, script(node).encode(), mode=0o755)
    except OSError as error:
        raise ToolError(f"cannot write {path}: {error.strerror}", hint="run it as root") from error
    return path


def is_shim(path: Path) -> bool:
    """Whether a program, or what a link leads to, is this one of whatever version."""
    try:
        with path.open("rb") as file:
            return file.read(4096).split(b"\n")[1:2][0].startswith(_MARK.encode())
    except (OSError, IndexError):
        return False


def first_in(path: str) -> Path | None:
    """The squashfuse that a search of `path` finds, as PATH is written; None when it is missing."""
    for folder in filter(None, path.split(":")):
        found = Path(folder) / "squashfuse"
        if found.is_file() and os.access(found, os.X_OK):
            return found
    return None
