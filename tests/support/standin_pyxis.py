"""A stand-in for pyxis, which no registry has: a real plugin of Slurm with the options of one version.

Like pyxis it refuses an option in plugstack.conf that it does not know: in slurmd and sbatch, not in srun.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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
#include <string.h>
extern void slurm_error(const char *, ...);
extern void slurm_info(const char *, ...);
extern int spank_context(void);
enum { ALLOCATOR = 3, SLURMD = 4 };
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
"""
MAKEFILE = """\
# its own flags come first and the caller's after them, as in pyxis: an argument of make would replace both
CPPFLAGS := -D_GNU_SOURCE $(CPPFLAGS)
spank_pyxis.so: pyxis.c
\techo '$(CPPFLAGS)' | grep -qxF -- '-D_GNU_SOURCE -I/opt/slurm/include'
\t$(CC) $(CPPFLAGS) -shared -fPIC -o $@ $<
"""


def slurm_number() -> str:
    """The version of the Slurm that is installed here, as its plugins carry it."""
    said = subprocess.run(["/usr/sbin/slurmd", "-V"], capture_output=True, text=True, check=True).stdout
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
