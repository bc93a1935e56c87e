"""The bootstrap script where a service brings enroot and pyxis: AWS PCS and HyperPod.

It uses them, replaces them by what is pinned, or leaves them alone. Slurm is the real one, in the folders of
that service; pyxis is as in test_bootstrap_pyxis.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.cluster import bootstrap, settings
from tests.integration.cluster import test_bootstrap_pyxis as pyxis
from tests.support.node_root import Node, archive, pinned
from tests.support.servers import standin_pyxis

pytestmark = pyxis.pytestmark
given, node = pyxis.given, pyxis.node

PLUGIN = "/usr/local/lib/slurm/spank_pyxis.so"
SHARED = "/usr/local/share/pyxis/pyxis.conf"
ETC: dict[bootstrap.Kind, str] = {
    "hyperpod": "/opt/slurm/etc",
    "pcs": "/etc/aws/pcs/scheduler/slurm-22.05",
}
HOME: dict[bootstrap.Kind, str] = {"hyperpod": "/opt/slurm", "pcs": "/opt/aws/pcs/scheduler/slurm-22.05"}


def cases(*short: tuple[str, str], versions: tuple[str, ...]) -> list[pytest.ParameterSet]:
    """Each service with each version of pyxis; those that are not in `short` run with --slow."""
    return [
        pytest.param(kind, version, marks=() if (kind, version) in short else pytest.mark.slow)
        for kind in ETC
        for version in versions
    ]


# PCS: the node gets slurm.conf over the network, and it names a plugstack.conf of the service
AS_PCS = """
mkdir -p {etc}/plugstack.conf.d {home}/bin {home}/sbin /run/slurm/conf
for each in sbatch srun scontrol; do ln -s /usr/bin/$each {home}/bin/; done
echo 'include {etc}/plugstack.conf.d/*' > {etc}/plugstack.conf
mv /opt/slurm/etc/slurm.conf /run/slurm/conf/
echo PlugStackConfig={etc}/plugstack.conf >> /run/slurm/conf/slurm.conf
rm -r /opt/slurm
sed -i s,/opt/slurm/etc,/run/slurm/conf, /given/tools/systemctl
"""
BROUGHT = """
mkdir -p $(dirname {shared}) /etc/enroot
echo 'required {plugin}' > {shared}
ln -s {shared} {etc}/plugstack.conf.d/pyxis.conf
echo 'ENROOT_DATA_PATH /opt/dlami/nvme/enroot' > /etc/enroot/enroot.conf
"""
FOLDERS = "/etc/enroot /usr/local /etc/security /etc/systemd /etc/sysctl.d /usr/bin"
APT_GET = """\
#!/bin/sh
for each; do
    case $each in *enroot*.deb) install -m 755 "$each" /usr/bin/enroot ;; esac
done
"""


def serve(node: Node, given: Path, kind: bootstrap.Kind, version: str) -> None:
    """Make the node one of that service, with a running Slurm and its pyxis."""
    pyxis.put_pyxis(node, given, version, PLUGIN, None)
    if kind == "pcs":
        assert node.run(AS_PCS.format(etc=ETC[kind], home=HOME[kind]))[0] == 0
    code, said = node.run(BROUGHT.format(etc=ETC[kind], shared=SHARED, plugin=PLUGIN))
    assert code == 0, said
    node.run("systemctl start slurmctld; systemctl start slurmd")
    assert works(node, kind), node.run("tail /var/log/slurm*.out")[1]
    node.commands()


def works(node: Node, kind: bootstrap.Kind) -> bool:
    return pyxis.works(node, "/run/slurm/conf" if kind == "pcs" else ETC[kind])


def write_script(given: Path, kind: bootstrap.Kind, **values: object) -> None:
    """bootstrap.sh from what `cluster init --for KIND` writes, with other values for some keys."""
    written = yaml.safe_load(bootstrap.starter(kind).replace("${AWS_REGION:-us-east-1}", "us-east-1"))
    (given / "bootstrap.sh").write_text(bootstrap.script(settings.parse({**written, **values})))


@pytest.mark.parametrize(
    ("kind", "version"),
    cases(("pcs", "0.20.0"), ("hyperpod", "0.24.0"), versions=("0.16.1", "0.19.0", "0.20.0", "0.24.0")),
)
def test_what_a_service_brings_is_used(node: Node, given: Path, kind: bootstrap.Kind, version: str) -> None:
    serve(node, given, kind, version)
    write_script(given, kind)
    code, said = node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")
    assert code == 0, said
    assert works(node, kind), said + node.run("tail -n 20 /var/log/slurmd.out")[1]
    assert node.run(f"cat {ETC[kind]}/plugstack.conf.d/pyxis.conf")[1].rstrip() == (
        f"optional {PLUGIN}{pyxis.LINES[version]}"
    )
    assert node.run(f"cat {SHARED}")[1].rstrip() == f"required {PLUGIN}", "the package's own file stays"
    before = node.run("cat /var/lib/sqshpipe-bootstrap/before/etc/enroot/enroot.conf")[1]
    assert before.rstrip() == "ENROOT_DATA_PATH /opt/dlami/nvme/enroot"
    assert node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")[0] == 0
    assert node.commands().count("systemctl restart slurmd") == 1, "a second run changes nothing"


@pytest.mark.parametrize(
    ("kind", "version"), cases(("pcs", "0.24.0"), ("hyperpod", "0.20.0"), versions=("0.20.0", "0.24.0"))
)
def test_what_a_service_brings_is_left_alone(
    node: Node, given: Path, kind: bootstrap.Kind, version: str
) -> None:
    serve(node, given, kind, version)
    write_script(given, kind, existing="leave")
    node.run("sleep 1; touch /mark; sleep 1")
    code, said = node.run("bash /given/bootstrap.sh")
    assert code == 0, said
    assert node.run(f"find {ETC[kind]} {FOLDERS} -newer /mark ! -type d")[1].strip() == ""
    assert not any(line.startswith("systemctl restart") for line in node.commands())
    assert works(node, kind)
    assert node.run("/opt/sqshpipe/bin/pyxis-importer release")[0] == 0
    for row in ("note     left alone: /etc/systemd/system/slurmd.service.d/memlock.conf", "ok       pyxis"):
        assert row in said
    assert ("left alone: images are found by name" in said) == (version == "0.24.0")
    assert node.run("bash /given/bootstrap.sh --check")[0] == 0


@pytest.mark.parametrize(("kind", "version"), cases(("pcs", "0.20.0"), versions=("0.20.0",)))
def test_what_is_pinned_replaces_what_a_service_brings(
    node: Node, given: Path, kind: bootstrap.Kind, version: str
) -> None:
    serve(node, given, kind, version)
    makefile = standin_pyxis.MAKEFILE.replace("/opt/slurm", HOME[kind])
    source = archive(
        given, "pyxis-0.24.0", **{"Makefile": makefile, "pyxis.c": standin_pyxis.source("0.24.0")}
    )
    enroot = given / "enroot_4.1.2-1_amd64.deb"
    enroot.write_text(pyxis.STAND_INS["enroot"].replace("3.4.1", "4.1.2"))
    (given / "tools" / "apt-get").write_text(APT_GET)
    pins = settings.Software(pyxis=source, enroot=(pinned(enroot, "4.1.2"),))
    write_script(given, kind, software=pins.model_dump())
    theirs = node.run(f"sha256sum {PLUGIN}")[1]
    code, said = node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")
    assert code == 0, said
    assert works(node, kind)
    assert "ok       pyxis v0.24.0 at /opt/sqshpipe/lib/spank_pyxis.so" in said
    assert node.run("enroot version")[1].split() == ["4.1.2"]
    assert node.run(f"cat {ETC[kind]}/plugstack.conf.d/pyxis.conf")[1].rstrip() == (
        f"optional /opt/sqshpipe/lib/spank_pyxis.so{pyxis.LINES['0.24.0']}"
    )
    assert node.run(f"sha256sum {PLUGIN}")[1] == theirs


@pytest.mark.parametrize(("kind", "version"), cases(("hyperpod", "0.24.0"), versions=("0.24.0",)))
def test_a_slurmd_that_does_not_come_back_gets_the_services_files(
    node: Node, given: Path, kind: bootstrap.Kind, version: str
) -> None:
    serve(node, given, kind, version)
    etc = ETC[kind]
    show = f"cd {etc}; find . -type f -o -type l | sort | xargs tail -v -n +1; cat /etc/enroot/enroot.conf"
    before = node.run(show)[1]
    (given / "tools" / "slurmd").write_text(pyxis.CHOOSY_SLURMD.replace("/opt/slurm/etc", etc))
    (given / "tools" / "slurmd").chmod(0o755)
    write_script(given, kind)
    code, said = node.run("SETTLE_SECONDS=2 bash /given/bootstrap.sh")
    assert code == 1
    assert "slurmd runs again with its former files" in said
    assert node.run(show)[1] == before
    assert works(node, kind)
