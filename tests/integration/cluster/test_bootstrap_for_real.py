"""The node bootstrap run for real, not dry: on this host's own root behind an overlay, as Ubuntu 24.04.

Bash, curl, tar, make and python3 are the real ones, and nothing is skipped. What is not ours stands in: the
package manager, systemd, and small source archives that are built as those of pyxis and squashfuse are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster import bootstrap, settings
from tests.support.node_root import Node, archive, node_root, pinned
from tests.support.servers import standin_pyxis

pytestmark = pytest.mark.needs("unshare", "mount", "make", "cc", "curl", "slurmd", "root")

SQUASHFUSE = (
    "all:\ninstall:\n\tprintf '#!/bin/sh\\n' > $(PREFIX)/bin/squashfuse; chmod 755 $(PREFIX)/bin/squashfuse\n"
)
CONFIGURE = (
    '#!/bin/sh\nfor each; do case $each in --prefix=*) echo "PREFIX=${each#*=}" >> Makefile ;; esac; done\n'
)
ENROOT = "#!/bin/sh\n[ $1 != start ] || { echo started; exit; }\necho 4.1.2\n"
TOOLS = {
    # installs what it is given as a file, and like dpkg asks about a changed enroot.conf without an option
    "apt-get": """\
#!/bin/bash
echo "apt-get $*" >> /commands
[ "$1" != install ] || touch /installed
for each; do
    case $each in
        *enroot*.deb)
            [ ! -e /etc/enroot/enroot.conf ] || [[ $* = *--force-confold* ]] || exit 100
            install -m 755 "$each" /usr/bin/enroot ;;
    esac
done
""",
    "dpkg": "#!/bin/sh\ntest -e /installed\n",
    "systemctl": """\
#!/bin/sh
echo "systemctl $*" >> /commands
case $* in
    "is-active --quiet slurmd") exit 0 ;;
    is-active*) exit 3 ;;
    is-failed*) exit 1 ;;
    "restart slurmd") [ ! -e /broken ] ;;
esac
""",
    "aws": "#!/bin/sh\necho a-token\n",
}


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """The scripts that a node downloads, and the tools that stand in."""
    folder = tmp_path / "given"
    (folder / "tools").mkdir(parents=True)
    for name, text in TOOLS.items():
        (folder / "tools" / name).write_text(text)
        (folder / "tools" / name).chmod(0o755)
    enroot = folder / "enroot_4.1.2-1_amd64.deb"
    enroot.write_text(ENROOT)
    software = settings.Software(
        enroot=(pinned(enroot, "4.1.2"),),
        pyxis=archive(
            folder,
            "pyxis-0.24.0",
            **{"Makefile": standin_pyxis.MAKEFILE, "pyxis.c": standin_pyxis.source("0.24.0")},
        ),
        squashfuse=archive(folder, "squashfuse-0.6.1", Makefile=SQUASHFUSE, configure=CONFIGURE),
    )
    made = settings.parse(
        {
            "os": "ubuntu2404",
            "registries": ["123456789012.dkr.ecr.us-east-1.amazonaws.com/containers"],
            "software": software.model_dump(),
        }
    )
    (folder / "bootstrap.sh").write_text(bootstrap.script(made))
    return folder


@pytest.fixture
def node(given: Path, tmp_path: Path) -> Iterator[Node]:
    with node_root(given, tmp_path / "place") as made:
        yield made


def test_a_bare_node_becomes_ready_and_a_second_run_changes_nothing(node: Node) -> None:
    code, said = node.run("bash /given/bootstrap.sh --check")
    assert code == 1
    assert "MISSING  pyxis" in said
    code, said = node.run("bash /given/bootstrap.sh s3://what ParallelCluster adds")
    assert code == 0, said
    assert "MISSING" not in said
    assert "not yet  the store /fsx/containers" in said, "the first cluster comes before the first release"
    reported = node.commands()
    assert any(line.startswith("apt-get install") and "squashfs-tools" in line for line in reported)
    assert "systemctl restart slurmd" in reported
    assert "systemctl restart slurmctld" not in reported, "it is not active here"
    assert node.run("stat -c %u:%g:%a /opt/sqshpipe/bin/pyxis-importer")[1].split() == ["0:0:755"]
    node.run("mount --bind /opt/slurm /opt/slurm && mount -o remount,ro,bind /opt/slurm; touch /mark")
    code, said = node.run("bash /given/bootstrap.sh")
    assert code == 0, (
        "nothing is written where all is as it should be, such as on the head node's disk: " + said
    )
    assert not [line for line in node.commands() if line.startswith(("apt-get", "systemctl restart"))]
    assert node.run("find /etc /opt /var/lib/sqshpipe -newer /mark -type f")[1] == "\n"
    assert node.run("mkdir -p /fsx/containers/leases; bash /given/bootstrap.sh --check")[0] == 1
    assert node.run("chmod 1777 /fsx/containers/leases; bash /given/bootstrap.sh --check")[0] == 0


def test_a_run_that_stopped_half_way_is_completed_by_the_next(node: Node, given: Path) -> None:
    whole = (given / "pyxis-0.24.0.tar.gz").read_bytes()
    (given / "pyxis-0.24.0.tar.gz").write_bytes(whole[:-1])
    code, said = node.run("bash /given/bootstrap.sh")
    assert code == 1
    assert "pyxis-0.24.0.tar.gz is not what was pinned" in said
    (given / "pyxis-0.24.0.tar.gz").write_bytes(whole)
    node.run("touch /broken")
    assert node.run("bash /given/bootstrap.sh")[0] == 1, "slurmd does not come up"
    assert node.run("bash /given/bootstrap.sh --check")[0] == 1
    node.commands()
    node.run("rm /broken")
    assert node.run("bash /given/bootstrap.sh")[0] == 0
    assert "systemctl restart slurmd" in node.commands(), (
        "what the stopped run wrote still waits for a restart"
    )


def test_a_newer_enroot_is_installed_over_a_configured_one(node: Node, given: Path) -> None:
    assert node.run("bash /given/bootstrap.sh")[0] == 0
    script = given / "bootstrap.sh"
    newer = given / "enroot_4.1.3-1_amd64.deb"
    newer.write_text(ENROOT.replace("4.1.2", "4.1.3"))
    old, new = (hashlib.sha256(each.encode()).hexdigest() for each in (ENROOT, newer.read_text()))
    script.write_text(script.read_text().replace("4.1.2", "4.1.3").replace(old, new))
    code, said = node.run("bash /given/bootstrap.sh")
    assert code == 0, said
    assert node.run("enroot version")[1].split() == ["4.1.3"]
    assert "ENROOT_CONFIG_PATH /etc/enroot/users" in node.run("cat /etc/enroot/enroot.conf")[1]


def test_a_node_without_python_gets_it(node: Node, given: Path) -> None:
    """The importer and the squashfuse of sqshpipe are Python; a small root of Ubuntu has none."""
    tool = given / "tools" / "apt-get"
    arrives = "        python3) mv /python3 /usr/bin/python3 ;;\n    esac\n"
    tool.write_text(tool.read_text().replace("    esac\n", arrives))
    node.run("mv /usr/bin/python3 /python3")
    code, said = node.run("bash /given/bootstrap.sh")
    assert code == 0, said
    assert "ok       the importer answers" in said
