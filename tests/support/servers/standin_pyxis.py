"""A stand-in for pyxis, which no registry has: a real plugin of Slurm with the options of one version.

Like pyxis it refuses an option in plugstack.conf that it does not know: in slurmd and sbatch, not in srun. Of
srun's options it has --container-image and --container-name, and starts them as pyxis before 0.22 does: where
no container of that name is in STANDIN_DATA, enroot creates one for the step; the tasks run in its folder.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.node_root import SYSTEM

# What each version of pyxis knows in plugstack.conf (read from its sources).
OLD = ("runtime_path", "execute_entrypoint", "container_scope", "sbatch_support")
KNOWN = {
    "0.16.1": OLD,
    "0.19.0": OLD,
    "0.20.0": OLD,
    "0.21.0": (*OLD, "use_enroot_load", "importer"),
    "0.24.0": (*OLD, "use_enroot_load", "importer", "use_squashfuse"),
}
SOURCE = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
extern void slurm_error(const char *, ...);
extern void slurm_info(const char *, ...);
extern int spank_context(void);
extern int spank_getenv(void *, const char *, char *, int);
extern int spank_get_item(void *, int, ...);
enum { ALLOCATOR = 3, SLURMD = 4 };
enum { JOB_ID = 2, STEP_ID = 3 };
const char plugin_name[] = "pyxis";
const char plugin_type[] = "spank";
const unsigned int plugin_version = @SLURM@;
const unsigned int spank_plugin_version = 1;
static const char *const known[] = { @KNOWN@, 0 };
int slurm_spank_init(void *spank, int count, char **words)
{
    (void) spank;
    if (spank_context() != ALLOCATOR && spank_context() != SLURMD)
        return 0;
    slurm_info("pyxis: version v@VERSION@");
    for (int i = 0; i < count; i++) {
        int found = 0;
        for (int k = 0; known[k]; k++)
            found |= strncmp(known[k], words[i], strlen(known[k])) == 0;
        if (!found) {
            slurm_error("pyxis: unknown configuration option: %s", words[i]);
            return -1;
        }
    }
    return 0;
}

static char image[4096], name[256], root[4096];
static int take(int which, const char *text, int remote)
{
    (void) remote;
    snprintf(which ? name : image, which ? sizeof name : sizeof image, "%s", text ? text : "");
    return 0;
}
static int ignore(int which, const char *text, int remote)
{
    (void) which, (void) text, (void) remote;
    return 0;
}
struct option {
    const char *name, *argument, *usage;
    int has_argument, value;
    int (*taken)(int, const char *, int);
} spank_options[] = {
    { "container-image", "FILE", "the image", 1, 0, take },
    { "container-name", "NAME", "used again by later steps", 1, 1, take },
    { "container-env", "NAMES", "ignored", 1, 0, ignore },
    { "container-mounts", "MOUNTS", "ignored", 1, 0, ignore },
    { "container-readonly", 0, "ignored", 0, 0, ignore },
    { 0, 0, 0, 0, 0, 0 },
};
int slurm_spank_user_init(void *spank, int count, char **words)
{
    (void) count, (void) words;
    char data[2048], path[4096], text[12288];
    unsigned job = 0, step = 0;
    struct stat found;
    if (!*image && !*name)
        return 0;
    if (spank_getenv(spank, "STANDIN_DATA", data, sizeof data) ||
        spank_getenv(spank, "PATH", path, sizeof path))
        return -1;
    setenv("PATH", path, 1);
    spank_get_item(spank, JOB_ID, &job);
    spank_get_item(spank, STEP_ID, &step);
    if (!*name)
        snprintf(name, sizeof name, "%u.%u", job, step);
    snprintf(root, sizeof root, "%s/pyxis_%s", data, name);
    if (stat(root, &found) == 0)
        return 0;
    snprintf(text, sizeof text, "exec enroot create --name pyxis_%s '%s' >&2", name, image);
    return *image && system(text) == 0 ? 0 : -1;
}
int slurm_spank_task_init(void *spank, int count, char **words)
{
    (void) spank, (void) count, (void) words;
    if (!*root)
        return 0;
    if (geteuid() != 0 && unshare(CLONE_NEWUSER) != 0)
        return -1;
    if (chroot(root) != 0 || chdir("/") != 0) {
        slurm_error("pyxis: error: no container %s, or it cannot be entered", root);
        return -1;
    }
    return 0;
}
"""
ENROOT = r"""#!/bin/bash
# What enroot 3.4.1 does for `create` and `remove`, and nothing else of it.
fail() { printf '[ERROR] %s\n' "$*" >&2; exit 1; }
verb=$1 name=
shift
while [ $# -gt 0 ]; do
    case $1 in
        --name) name=$2; shift 2 ;;
        --force) shift ;;
        *) break ;;
    esac
done
root=$(realpath -ms "$ENROOT_DATA_PATH/${name:-$1}")
case $verb in
    version) echo 3.4.1 ;;
    create)
        [ -e "$root" ] && fail "File already exists: $root"
        unsquashfs -no-progress -user-xattrs -d "$root" "$1" >&2
        chmod -f -R u+rX "$root" || :
        ;;
    remove) [ -d "$root" ] || fail "No such file or directory: $root"; rm -rf --one-file-system "$root" ;;
    *) fail "the stand-in has no $verb" ;;
esac
"""
MAKEFILE = """\
# its own flags come first and the caller's after them, as in pyxis: an argument of make would replace both
CPPFLAGS := -D_GNU_SOURCE $(CPPFLAGS)
spank_pyxis.so: pyxis.c
\techo '$(CPPFLAGS)' | grep -qxF -- '-D_GNU_SOURCE -I/opt/slurm/include'
\t$(CC) $(CPPFLAGS) -shared -fPIC -o $@ $<
"""


def slurm_number() -> str:
    """The version of Slurm on the node of node_root, as its plugins carry it."""
    argv = ["/usr/sbin/slurmd", "-V"]
    if str(SYSTEM) != "/":
        argv = ["chroot", str(SYSTEM), *argv]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    major, minor, micro = (int(each) for each in re.findall(r"\d+", said)[:3])
    return hex(major << 16 | minor << 8 | micro)


def source(version: str, *, slurm: str | None = None) -> str:
    """The C source of the stand-in of that version."""
    known = ", ".join(f'"{each}="' for each in KNOWN[version])
    filled = SOURCE.replace("@KNOWN@", known).replace("@VERSION@", version)
    return filled.replace("@SLURM@", slurm or slurm_number())


def build(target: Path, version: str, *, slurm: str | None = None) -> Path:
    """Compile the stand-in as TARGET; `slurm`: for another version of Slurm, as a hexadecimal number."""
    target.parent.mkdir(parents=True, exist_ok=True)
    argv = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)]
    subprocess.run(argv, input=source(version, slurm=slurm), text=True, check=True, timeout=60)
    return target
