"""The bootstrap script on a node with a running slurmd: it ends with one, whatever pyxis the node has.

Slurm is the real one, started by a small systemctl. Pyxis is in no package registry: a plugin that knows the
options of one version stands in. SQSHPIPE_TEST_PYXIS_BUILDS may name a folder with real ones, each as
VERSION/spank_pyxis.so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster import bootstrap, settings
from tests.support.node_root import Node, node_root
from tests.support.servers import standin_pyxis
from tests.support.servers.slurm import _free_ports
from tests.support.waiting import until

pytestmark = pytest.mark.needs("unshare", "mount", "slurmd", "slurmctld", "sbatch", "cc", "root")

BUILDS = os.environ.get("SQSHPIPE_TEST_PYXIS_BUILDS")
IMPORTER = "importer=/opt/sqshpipe/bin/pyxis-importer"
PARALLELCLUSTER = "/usr/local/lib/slurm/spank_pyxis.so"
PLACES = {  # where a node has the plugin, and what its plugstack says of it
    "parallelcluster": (PARALLELCLUSTER, f"required {PARALLELCLUSTER}\n"),
    "debian": ("/usr/lib/x86_64-linux-gnu/slurm-wlm/spank_pyxis.so", "optional spank_pyxis.so\n"),
    "not configured": ("/usr/local/lib/slurm/spank_pyxis.so", None),
}
LINES = {  # what a version takes
    "0.16.1": "",
    "0.19.0": "",
    "0.20.0": "",
    "0.21.0": f" {IMPORTER}",
    "0.24.0": f" use_squashfuse=1 {IMPORTER}",
}
SYSTEMCTL = """\
#!/bin/bash
# the units slurmctld and slurmd, without systemd
echo "systemctl $*" >> /commands
unit=${*: -1}
active() { [ -e /run/$unit.started ] && kill -0 "$(cat /run/$unit.started)" 2> /dev/null; }
case "$1 $unit" in
    "is-active "*) active ;;
    "is-failed "*) [ -e /run/$unit.started ] && ! active ;;
    "start slurmd" | "restart slurmd" | "start slurmctld" | "restart slurmctld")
        if active; then kill "$(cat /run/$unit.started)"; while active; do sleep 0.1; done; fi
        setsid $unit -D -f /opt/slurm/etc/slurm.conf $([ $unit = slurmctld ] || echo -N n1) \\
            < /dev/null >> /var/log/$unit.out 2>&1 &
        echo $! > /run/$unit.started ;;
esac
"""
STAND_INS = {
    "systemctl": SYSTEMCTL,
    "apt-get": "#!/bin/sh\n",
    "dpkg": "#!/bin/sh\n",
    "enroot": "#!/bin/sh\n[ $1 != start ] || { echo started; exit; }\n[ $1 != version ] || echo 3.4.1\n",
}
CHOOSY_SLURMD = """\
#!/bin/sh
if grep -qs squashfuse /opt/slurm/etc/plugstack.conf.d/*; then sleep 1; exit 1; fi
exec /usr/sbin/slurmd "$@"
"""
SLURM_CONF = """\
ClusterName=boot
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldPort={controller}
StateSaveLocation=/run/slurm-state
SlurmdSpoolDir=/run/slurm-spool
SlurmdPidFile=/run/slurmd.pid
SlurmctldPidFile=/run/slurmctld.pid
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node} CPUs=2 RealMemory=512
PartitionName=main Nodes=ALL Default=YES
"""


@pytest.fixture
def given(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    (folder / "tools").mkdir(parents=True)
    for name, text in STAND_INS.items():
        (folder / "tools" / name).write_text(text)
        (folder / "tools" / name).chmod(0o755)
    controller, node = _free_ports(2)
    (folder / "slurm.conf").write_text(SLURM_CONF.format(controller=controller, node=node))
    (folder / "bootstrap.sh").write_text(bootstrap.script(settings.parse({"os": "ubuntu2204"})))
    return folder


@pytest.fixture
def node(given: Path, tmp_path: Path) -> Iterator[Node]:
    """A node whose Slurm runs, with a plugstack as ParallelCluster has it, and no pyxis yet."""
    with node_root(given, tmp_path / "place") as made:
        made.run(
            "mkdir -p /run/slurm-state /opt/slurm/etc/plugstack.conf.d; "
            "cp /given/slurm.conf /opt/slurm/etc/; "
            "mv /given/tools/enroot /usr/bin/; "  # Slurm's epilog has no other PATH
            "echo 'include /opt/slurm/etc/plugstack.conf.d/*' > /opt/slurm/etc/plugstack.conf"
        )
        yield made


def put_pyxis(node: Node, given: Path, version: str, place: str, line: str | None) -> None:
    real = Path(BUILDS or "/nonexistent") / version / "spank_pyxis.so"
    if real.exists():
        shutil.copy(real, given / "spank_pyxis.so")
    elif BUILDS:
        pytest.skip(f"no real pyxis {version} in {BUILDS}")
    else:
        standin_pyxis.build(given / "spank_pyxis.so", version)
    assert node.run(f"install -D /given/spank_pyxis.so {place}")[0] == 0
    if line is not None:
        node.run(f"printf '{line}' > /opt/slurm/etc/plugstack.conf.d/pyxis.conf")


def start_slurm(node: Node) -> None:
    node.run("systemctl start slurmctld; systemctl start slurmd")
    assert works(node), node.run("tail /var/log/slurm*.out")[1]
    node.commands()


def works(node: Node, etc: str = "/opt/slurm/etc") -> bool:
    """Does a step run, and does slurmd still run some time later?"""
    command = (
        f"export SLURM_CONF={etc}/slurm.conf; "
        # the controller may have been started a moment ago
        "for n in {1..50}; do sinfo -h | grep -q idle && break; sleep 0.2; done; "
        "timeout 30 srun --immediate=25 echo step ran"
    )
    return "step ran" in node.run(command)[1] and node.run("sleep 1; systemctl is-active slurmd")[0] == 0


def slurms_files(node: Node) -> str:
    return node.run("cd /opt/slurm/etc; find . -type f | sort | xargs tail -v -n +1")[1]


@pytest.mark.parametrize(
    ("version", "place"),
    [
        *((version, "parallelcluster") for version in LINES if version != "0.19.0"),
        pytest.param("0.19.0", "parallelcluster", marks=pytest.mark.slow),  # takes the same line as 0.20.0
        ("0.20.0", "debian"),
        ("0.24.0", "not configured"),
    ],
)
def test_slurmd_runs_with_what_this_pyxis_knows(node: Node, given: Path, version: str, place: str) -> None:
    path, before = PLACES[place]
    put_pyxis(node, given, version, path, before)
    start_slurm(node)
    code, said = node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")
    assert code == 0, said
    assert "systemctl restart slurmd" in node.commands()
    assert works(node), said + node.run("tail -n 20 /var/log/slurmd.out")[1]
    assert node.run("cat /opt/slurm/etc/plugstack.conf.d/pyxis.conf")[1].rstrip() == (
        f"optional {path}{LINES[version]}"
    )
    assert f"pyxis v{version} at {path}" in said or version == "0.16.1"
    assert ("each step unpacks its image" in said) == (version != "0.24.0")
    assert node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh --check")[0] == 0
    assert node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")[0] == 0
    assert "systemctl restart slurmd" not in node.commands(), "a second run changes nothing"


def test_the_line_keeps_its_options_and_the_file_its_other_lines(node: Node, given: Path) -> None:
    line = f"# ours\\nrequired {PARALLELCLUSTER} runtime_path=/run/pyxis2 {IMPORTER}x use_squashfuse=1\\n"
    put_pyxis(node, given, "0.24.0", PARALLELCLUSTER, line)
    start_slurm(node)
    code, said = node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")
    assert code == 0, said
    assert node.run("cat /opt/slurm/etc/plugstack.conf.d/pyxis.conf")[1].rstrip().splitlines() == [
        "# ours",
        f"optional {PARALLELCLUSTER} runtime_path=/run/pyxis2 use_squashfuse=1 {IMPORTER}",
    ]
    assert (
        "required"
        in node.run("cat /var/lib/sqshpipe-bootstrap/before/opt/slurm/etc/plugstack.conf.d/pyxis.conf")[1]
    )
    assert works(node)


def test_a_line_in_another_file_is_changed_where_it_stands(node: Node, given: Path) -> None:
    put_pyxis(node, given, "0.20.0", PARALLELCLUSTER, None)
    node.run(f"echo 'required {PARALLELCLUSTER}' >> /opt/slurm/etc/plugstack.conf")
    start_slurm(node)
    code, said = node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")
    assert code == 0, said
    assert node.run("cat /opt/slurm/etc/plugstack.conf")[1].split("\n")[1] == f"optional {PARALLELCLUSTER}"
    assert node.run("test -e /opt/slurm/etc/plugstack.conf.d/pyxis.conf")[0] == 1, "pyxis is not loaded twice"
    assert works(node)


@pytest.mark.parametrize("fault", ["no plugin", "of another Slurm", "not a plugin"])
def test_without_a_pyxis_that_loads_slurms_files_stay(node: Node, given: Path, fault: str) -> None:
    if fault == "of another Slurm":
        if standin_pyxis.slurm_number() < "0x160500":
            pytest.skip("Slurm before 22.05 compares no versions of plugins")
        standin_pyxis.build(given / "spank_pyxis.so", "0.24.0", slurm="0x130000")
    elif fault == "not a plugin":
        (given / "spank_pyxis.so").write_text("importer= use_squashfuse=")
    node.run(f"install -D /given/spank_pyxis.so {PARALLELCLUSTER}")
    start_slurm(node)
    plugstack = slurms_files(node).partition("slurm.conf <==")[0]
    code, said = node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")
    assert code == 1
    assert (
        "there is no spank_pyxis.so" if fault == "no plugin" else f"Slurm does not load {PARALLELCLUSTER}"
    ) in said
    assert slurms_files(node).partition("slurm.conf <==")[0] == plugstack
    assert works(node)


def test_a_slurmd_that_does_not_come_back_gets_its_former_files(node: Node, given: Path) -> None:
    """slurmd refuses what sbatch accepted, and a moment after its start."""
    put_pyxis(node, given, "0.24.0", PARALLELCLUSTER, f"required {PARALLELCLUSTER}\n")
    start_slurm(node)
    before = slurms_files(node)
    (given / "tools" / "slurmd").write_text(CHOOSY_SLURMD)
    (given / "tools" / "slurmd").chmod(0o755)
    code, said = node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")
    assert code == 1
    assert "slurmd runs again with its former files" in said
    assert slurms_files(node) == before
    assert works(node)
    assert said.strip() in node.run("cat /var/log/sqshpipe-bootstrap.log")[1], "what happened is in the log"


@pytest.mark.parametrize("place", ["slurm.conf", "folders"])
def test_kernel_mounts_set_up_here_are_asked_for_by_the_next_job(node: Node, given: Path, place: str) -> None:
    """Slurm runs the Prolog and the Epilog that the script has put in place; sqshpipe itself stands in."""
    made = settings.parse({"os": "ubuntu2204", "mounts": "kernel"})
    (given / "bootstrap.sh").write_text(bootstrap.script(made))
    put_pyxis(node, given, "0.24.0", PARALLELCLUSTER, None)
    if place == "folders":  # a folder without files is an error for slurmd
        node.run(
            "cd /opt/slurm/etc; for each in prolog epilog; do mkdir -p scripts/$each.d; "
            "printf '#!/bin/sh\\n' > scripts/$each.d/90_noop; chmod 755 scripts/$each.d/*; done; "
            "printf 'Prolog=%s/prolog.d/*\\nEpilog=%s/epilog.d/*\\n' $PWD/scripts $PWD/scripts >> slurm.conf"
        )
    start_slurm(node)
    code, said = node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")
    assert code == 0, said
    assert "ok       Epilog for kernel mounts" in said
    node.run(
        "printf '#!/bin/sh\\necho \"$@\" >> /asked\\n' > /opt/sqshpipe/bin/sqshpipe; "
        "chmod 755 /opt/sqshpipe/bin/sqshpipe"
    )
    digest = "5" * 64
    step = f"timeout 30 srun --immediate=25 --comment=sqshpipe:{digest} sh -c 'cat /asked; echo step ran'"
    said = node.run(f"SLURM_CONF=/opt/slurm/etc/slurm.conf {step}")[1]
    asked, _, rest = said.partition("\n")
    assert asked.startswith(
        "--quiet node mount-for-job --settings /opt/sqshpipe/bin/pyxis-importer.json --job "
    )
    assert asked.endswith(f" --user 0:0 {digest}")
    assert "step ran" in rest
    job = asked.split("--job ")[1].split()[0]
    assert until(lambda: f"node unmount --job {job}" in node.run("cat /asked")[1], 20)
    assert node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh --check")[0] == 0
