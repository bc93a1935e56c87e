"""What `bootstrap.sh --check` prints: a row for each thing, and what to do about each that is missing.

The node is that of test_bootstrap_for_real. One thing at a time is taken away, and put back.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from pipeline.cluster import bootstrap, settings
from tests.integration.cluster import test_bootstrap_for_real as real
from tests.support.node_root import Node, pinned

pytestmark = real.pytestmark
given, node = real.given, real.node

LINE = "/opt/slurm/etc/plugstack.conf.d/pyxis.conf"
AGAIN = "run this script without --check"
ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
PLUGIN = "/opt/sqshpipe/lib/spank_pyxis.so"
OWN = "/opt/sqshpipe/bin/pyxis-importer"


def away(file: str) -> tuple[str, str]:
    """Commands that take a file away and bring it back."""
    return f"mv {file} {file}.away", f"mv {file}.away {file}"


def instead(file: str, text: str) -> tuple[str, str]:
    """Commands that put another text into a file, and the former one back."""
    return f"cp -a {file} /run/kept; echo '{text}' > {file}", f"cp -a /run/kept {file}"


AWS_INSTALL = """\
#!/bin/sh
printf '#!/bin/sh\\necho aws-cli/2.31.0 Python\\n' > /usr/bin/aws
chmod 755 /usr/bin/aws
"""
GPU = "mount -t tmpfs none /proc/driver; mkdir /proc/driver/nvidia; touch /proc/driver/nvidia/version"
# What is taken away and how it is put back, the row that says so, and what to do.
CASES: dict[str, tuple[tuple[str, str], str, str]] = {
    "enroot.conf": (away("/etc/enroot/enroot.conf"), "/etc/enroot/enroot.conf", AGAIN),
    "memlock": (
        away("/etc/systemd/system/slurmd.service.d/memlock.conf"),
        "/etc/systemd/system/slurmd.service.d/memlock.conf",
        AGAIN,
    ),
    "importer's settings": (away(f"{OWN}.json"), f"{OWN}.json", AGAIN),
    "importer": (away(OWN), "the importer answers", AGAIN),
    "importer's owner": ((f"chown 65534 {OWN}", f"chown 0 {OWN}"), "the importer is root's", AGAIN),
    "plugin": (away(PLUGIN), "pyxis", "software.pyxis in cluster.yaml"),
    "plugin of another Slurm": (
        instead(PLUGIN, "version v0.24.0 importer="),
        f"pyxis v0.24.0 at {PLUGIN}",
        "build it again",
    ),
    "pinned version": (
        instead("/opt/sqshpipe/lib/pyxis.version", "0.23.0"),
        "pyxis 0.24.0, as pinned",
        AGAIN,
    ),
    "include": (instead("/opt/slurm/etc/plugstack.conf", ""), f"includes {LINE}", AGAIN),
    "bad option": (instead(LINE, f"optional {PLUGIN} nonsense=1"), f"Slurm takes the line in {LINE}", AGAIN),
    "no importer in the line": (
        instead(LINE, f"optional {PLUGIN} use_squashfuse=1"),
        "images are found by name",
        AGAIN,
    ),
    "no squashfuse in the line": (
        instead(LINE, f"optional {PLUGIN} importer={OWN}"),
        "pyxis starts straight from the file",
        AGAIN,
    ),
    "squashfuse": (
        ("mv /usr/local/bin/squashfuse /x1; mv /usr/bin/squashfuse /x2", "mv /x1 /usr/local/bin/squashfuse"),
        "squashfuse",
        "install squashfuse",
    ),
    "enroot": (away("/usr/bin/enroot"), "enroot", "software.enroot in cluster.yaml"),
    "enroot of another version": (
        instead("/usr/bin/enroot", real.ENROOT.replace("4.1.2", "3.4.1")),
        "enroot 4.1.2, as pinned",
        AGAIN,
    ),
    "container": (
        instead("/usr/bin/enroot", "#!/bin/sh\n[ $1 != start ] || exit 1\necho 4.1.2"),
        "an ordinary user can start a container",
        "see /dev/fuse",
    ),
    "AWS CLI": (away("/given/tools/aws"), "the AWS CLI", "software.awscli in cluster.yaml"),
    "token": (instead("/given/tools/aws", "#!/bin/sh"), f"a token of {ECR}", "ecr:GetAuthorizationToken"),
    "credentials": (away("/etc/enroot/users/.credentials"), "credentials for enroot", AGAIN),
    "driver without nvidia-container-cli": (
        (GPU, "umount /proc/driver"),
        "nvidia-container-cli sees the driver",
        "software.nvidia_container in cluster.yaml",
    ),
    "restart": (
        (
            "touch /var/lib/sqshpipe-bootstrap/restart-pending",
            "rm /var/lib/sqshpipe-bootstrap/restart-pending",
        ),
        "nothing waits for a restart of Slurm",
        AGAIN,
    ),
    "slurmd": (instead("/given/tools/systemctl", "#!/bin/sh"), "slurmd runs", "journalctl -u slurmd"),
    "file system": (away("/fsx"), "the file system of the store, /fsx", "mount it"),
    "leases": (
        ("mkdir -p -m 755 /fsx/containers/leases", "rm -r /fsx/containers"),
        "leases can be left in the store",
        "chmod 1777 /fsx/containers/leases",
    ),
}
# Of each kind one: files, Slurm, enroot, credentials, the GPU, the store.
SHORT = ("importer", "bad option", "container", "token", "driver without nvidia-container-cli", "leases")
ROW = re.compile(r"(STATE|ok|note|not yet|MISSING) +(?=\S)(.+?)(?:  +(\S.*))?")


def table(said: str) -> list[tuple[str, str, str]]:
    """The rows of the table: state, what, what to do."""
    rows = [ROW.fullmatch(line) for line in said.splitlines() if not line.startswith("bootstrap: ")]
    return [(row[1], row[2], row[3] or "") for row in rows if row]


@pytest.mark.parametrize("cases", [SHORT, pytest.param(tuple(CASES), marks=pytest.mark.slow)])
def test_each_thing_that_is_missing_has_a_row_and_a_way_out(node: Node, cases: tuple[str, ...]) -> None:
    code, said = node.run("bash /given/bootstrap.sh")
    assert code == 0, said
    code, said = node.run("bash /given/bootstrap.sh --check")
    assert code == 0, said
    rows = table(said)
    assert rows[0] == ("STATE", "WHAT", "WHAT TO DO")
    assert len(rows) == len([line for line in said.splitlines() if line.strip()]) - 1, "rows and one sentence"
    assert {state for state, *_ in rows[1:]} == {"ok", "note", "not yet"}
    assert all(hint for state, _, hint in rows if state == "note"), "each note says what would be better"
    for case in cases:
        (take, give), what, hint = CASES[case]
        assert node.run(take)[0] == 0, case
        code, said = node.run("bash /given/bootstrap.sh --check")
        missing = [(row[1], row[2]) for row in table(said) if row[0] == "MISSING"]
        assert code == 1, case
        assert any(what in name and hint in way for name, way in missing), f"{case}: {said}"
        assert all(way for _, way in missing), f"{case}: {missing}"
        assert len(missing) <= 4, f"{case} is not everything: {missing}"
        assert "something is missing on this node" in said
        assert node.run(give)[0] == 0, case
    code, said = node.run("bash /given/bootstrap.sh --check")
    assert code == 0, said


def test_nvidias_tools_and_the_aws_cli_are_installed_as_pinned(node: Node, given: Path) -> None:
    (given / "nvidia_1.17.8_amd64.deb").write_text(
        "#!/bin/sh\n[ $1 != --version ] || echo cli-version: 1.17.8\n[ $1 != broken ]\n"
    )
    with zipfile.ZipFile(given / "awscli.zip", "w") as archive:
        entry = zipfile.ZipInfo("aws/install")
        entry.external_attr = 0o755 << 16
        archive.writestr(entry, AWS_INSTALL)
    apt_get = (given / "tools" / "apt-get").read_text()
    (given / "tools" / "apt-get").write_text(
        apt_get.replace(
            "    esac\n",
            '        *nvidia*.deb) install -m 755 "$each" /usr/bin/nvidia-container-cli ;;\n    esac\n',
        )
    )
    (given / "tools" / "aws").unlink()
    made = settings.parse(
        {
            "os": "ubuntu2404",
            "registries": [f"{ECR}/containers"],
            "software": {
                "nvidia_container": [pinned(given / "nvidia_1.17.8_amd64.deb", "1.17.8").model_dump()],
                "awscli": pinned(given / "awscli.zip", "2.31.0").model_dump(),
            },
        }
    )
    (given / "bootstrap.sh").write_text(bootstrap.script(made))
    said = node.run("bash /given/bootstrap.sh")[1]
    assert "ok       no NVIDIA driver here: no need of nvidia-container-cli" in said
    assert node.run("command -v nvidia-container-cli")[0] != 0, "this node has no GPU"
    assert node.run("aws --version")[1].split()[0] == "aws-cli/2.31.0"
    node.run(GPU)
    assert "ok       nvidia-container-cli sees the driver" in node.run("bash /given/bootstrap.sh")[1]
    node.commands()
    node.run("bash /given/bootstrap.sh")
    assert not [line for line in node.commands() if "nvidia" in line or "unzip" in line], "once is enough"
