"""The node bootstrap in a root of its own, and the cluster file under ParallelCluster's own schema."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster import bootstrap, settings
from pipeline.node import shim
from tests.conftest import missing
from tests.support.store.handmade_store import HandmadeStore
from tests.unit.cluster.test_cluster_file import ENVIRONMENT, GUIDE
from tests.unit.cluster.test_settings import FULL

PINS = f"""
software:
  enroot:
    - {{version: 4.1.2, url: "https://example.com/enroot_4.1.2-1_amd64.deb", sha256: "{"0" * 64}"}}
    - {{version: 4.1.2, url: "s3://my-bucket/enroot+caps_4.1.2-1_amd64.deb", sha256: "{"1" * 64}"}}
  squashfuse: {{version: 0.6.1, url: "https://example.com/squashfuse-0.6.1.tar.gz", sha256: "{"3" * 64}"}}
  pyxis: {{version: 0.24.0, url: "https://example.com/pyxis-0.24.0.tar.gz", sha256: "{"2" * 64}"}}
"""
SYSTEMS = {
    "ubuntu2204": 'ID=ubuntu\nVERSION_ID="22.04"\n',
    "ubuntu2404": 'ID=ubuntu\nVERSION_ID="24.04"\n',
    "alinux2023": 'ID="amzn"\nVERSION_ID="2023"\n',
}


def values(tmp_path: Path, **replaced: str) -> settings.ClusterSettings:
    text = FULL + PINS
    for key, value in replaced.items():
        text = "\n".join(line for line in text.splitlines() if not line.startswith(f"{key}:"))
        text += f"\n{key}: {value}\n"
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return settings.load(path)


def make_root(tmp_path: Path, system: str) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "os-release").write_text(system)
    (root / "opt" / "slurm" / "etc").mkdir(parents=True)
    (root / "opt" / "slurm" / "etc" / "slurm.conf").write_text("ClusterName=x\n")
    (root / "usr" / "share" / "enroot" / "hooks.d").mkdir(parents=True)
    (root / "usr" / "share" / "enroot" / "hooks.d" / "50-slurm-pytorch.sh").write_text("#!/bin/bash\n")
    return root


def run(script: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = ["bash", str(script), *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def listing(root: Path) -> dict[str, tuple[int, bytes]]:
    files = (each for each in sorted(root.rglob("*")) if each.is_file())
    return {str(each.relative_to(root)): (each.stat().st_mtime_ns, each.read_bytes()) for each in files}


@pytest.mark.parametrize("system", list(SYSTEMS))
@pytest.mark.parametrize("credentials", ["substitution", "timer", "none"])
def test_dry_run_in_a_root_of_its_own(tmp_path: Path, system: str, credentials: str) -> None:
    script = tmp_path / "bootstrap.sh"
    store = HandmadeStore(tmp_path / "store")
    released = store.release("demo", "v1.0")
    made = values(tmp_path, ecr_credentials=credentials, os=system, store=str(store.root))
    script.write_text(bootstrap.script(made))
    root = make_root(tmp_path, SYSTEMS[system])
    assert run(script, "--check", "--root", root).returncode == 1, "an empty node is not ready"
    done = run(script, "--dry-run", "--root", root)
    assert done.returncode == 0, done.stderr
    assert "this node is ready" in done.stderr
    assert "would fetch: https://example.com/pyxis-0.24.0.tar.gz (sha256 2222" in done.stdout
    assert "would fetch: https://example.com/squashfuse-0.6.1.tar.gz (sha256 3333" in done.stdout
    assert f"would run: {'dnf' if system == 'alinux2023' else 'apt-get'} install" in done.stdout
    assert "would run: systemctl restart slurmd" in done.stdout
    slurm = root / "opt" / "slurm" / "etc"
    plugin = (
        "optional /opt/sqshpipe/lib/spank_pyxis.so use_squashfuse=1 importer=/opt/sqshpipe/bin/pyxis-importer"
    )
    assert (slurm / "plugstack.conf.d" / "pyxis.conf").read_text() == plugin + "\n"
    assert "include /opt/slurm/etc/plugstack.conf.d/*\n" in (slurm / "plugstack.conf").read_text()
    assert "PropagateResourceLimitsExcept=MEMLOCK\n" in (slurm / "slurm.conf").read_text()
    assert (root / "etc" / "enroot" / "hooks.d" / "50-slurm-pytorch.sh").exists()
    assert (root / "etc" / "enroot" / "users" / ".credentials").exists() == (credentials == "substitution")
    assert not (root / "usr" / "local" / "sbin" / "squashfuse").exists(), "mounts: fuse"
    importer = root / "opt" / "sqshpipe" / "bin" / "pyxis-importer"
    assert json.loads(importer.with_name("pyxis-importer.json").read_text())["store"] == str(store.root)
    got = subprocess.run([importer, "get", "docker://demo:v1.0"], capture_output=True, text=True, env={})
    if os.uname().machine == "x86_64":
        assert got.stdout == f"{released}\n", got.stderr
    before = listing(root)
    again = run(script, "--dry-run", "--root", root)
    assert "systemctl restart" not in again.stdout, "nothing changed, nothing is restarted"
    assert listing(root) == before
    (root / "opt" / "sqshpipe" / "lib" / "spank_pyxis.so").write_bytes(b"\0importer=\0use_squashfuse=\0")
    assert run(script, "--check", "--root", root).returncode == 0
    (slurm / "plugstack.conf.d" / "pyxis.conf").write_text("required spank_pyxis.so\n")
    checked = run(script, "--check", "--root", root)
    assert checked.returncode == 1
    assert "MISSING  pyxis starts straight from the file" in checked.stderr


@pytest.mark.parametrize(
    ("known", "line"),
    [
        ("runtime_path= sbatch_support=", ""),
        ("runtime_path= importer=", " importer=/opt/sqshpipe/bin/pyxis-importer"),
        ("importer= use_squashfuse=", " use_squashfuse=1 importer=/opt/sqshpipe/bin/pyxis-importer"),
        (None, None),
    ],
)
@pytest.mark.parametrize("wanted", ["optional", "required"])
def test_without_slurm_to_ask_the_plugin_itself_shows_what_it_knows(
    tmp_path: Path, known: str | None, line: str | None, wanted: str
) -> None:
    script, root = tmp_path / "bootstrap.sh", make_root(tmp_path, SYSTEMS["ubuntu2204"])
    made = values(tmp_path, plugstack=wanted).model_copy(update={"software": settings.Software()})
    script.write_text(bootstrap.script(made))
    plugin = root / "usr" / "local" / "lib" / "slurm" / "spank_pyxis.so"
    if known is not None:
        plugin.parent.mkdir(parents=True)
        plugin.write_bytes(b"\x7fELF\0" + known.replace(" ", "\0").encode() + b"\0")
    done = run(script, "--dry-run", "--root", root)
    written = root / "opt" / "slurm" / "etc" / "plugstack.conf.d" / "pyxis.conf"
    if line is None:
        assert "there is no spank_pyxis.so" in done.stderr
        assert not written.exists()
        assert not (written.parents[1] / "plugstack.conf").exists()
    else:
        assert done.returncode == 0, done.stderr
        assert written.read_text() == f"{wanted} /usr/local/lib/slurm/spank_pyxis.so{line}\n"


def test_aws_pcs_keeps_slurm_elsewhere(tmp_path: Path) -> None:
    script, root = tmp_path / "bootstrap.sh", make_root(tmp_path, SYSTEMS["ubuntu2204"])
    shutil.rmtree(root / "opt" / "slurm")
    made = values(tmp_path).model_copy(update={"software": settings.Software()})
    script.write_text(bootstrap.script(made))
    for version, known in (("9.8", b"\0importer=\0"), ("24.11", b"\0importer=\0use_squashfuse=\0")):
        folder = root / "opt" / "aws" / "pcs" / "scheduler" / f"slurm-{version}" / "lib" / "slurm"
        folder.mkdir(parents=True)
        (folder / "spank_pyxis.so").write_bytes(known)
        (root / "etc" / "aws" / "pcs" / "scheduler" / f"slurm-{version}").mkdir(parents=True)
    done = run(script, "--dry-run", "--root", root)
    assert done.returncode == 0, done.stderr
    (written,) = root.rglob("pyxis.conf")
    assert str(written.relative_to(root)) == "etc/aws/pcs/scheduler/slurm-24.11/plugstack.conf.d/pyxis.conf"
    assert written.read_text() == (
        "optional /opt/aws/pcs/scheduler/slurm-24.11/lib/slurm/spank_pyxis.so"
        " use_squashfuse=1 importer=/opt/sqshpipe/bin/pyxis-importer\n"
    )
    assert not list(root.rglob("plugstack.conf")), "the service has its own"


PARALLELCLUSTER = "Prolog=/opt/slurm/etc/scripts/prolog.d/*\nEpilog=/opt/slurm/etc/scripts/epilog.d/*\n"


@pytest.mark.parametrize("kernel", ["5.15.0-1080-aws", "6.2.0", "6.10.3-200.fc40"])
@pytest.mark.parametrize("slurm", ["plain", "parallelcluster", "another prolog", "not here"])
def test_kernel_mounts_are_set_up_where_they_are_asked_for_and_the_kernel_can(
    tmp_path: Path, kernel: str, slurm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, root = tmp_path / "bootstrap.sh", make_root(tmp_path, SYSTEMS["ubuntu2204"])
    (tmp_path / "bin").mkdir()
    uname = tmp_path / "bin" / "uname"
    uname.write_text(f'#!/bin/sh\n[ "$1" = -r ] || exec /usr/bin/uname "$@"\necho {kernel}\n')
    uname.chmod(0o755)
    monkeypatch.setenv("PATH", f"{uname.parent}:{os.environ['PATH']}")
    etc = root / "opt" / "slurm" / "etc"
    conf = etc / "slurm.conf"
    if slurm == "not here":
        conf.unlink()
    elif slurm != "plain":
        own = PARALLELCLUSTER if slurm == "parallelcluster" else "Prolog=/etc/own\nEpilog=/etc/own\n"
        conf.write_text("ClusterName=x\n" + own)
    script.write_text(bootstrap.script(values(tmp_path, mounts="kernel")))
    done = run(script, "--dry-run", "--root", root)
    assert done.returncode == 0, done.stderr
    ours = root / "opt" / "sqshpipe"
    assert json.loads((ours / "bin" / "pyxis-importer.json").read_text())["mounts"] == "kernel"
    made = bootstrap.hooks(Path("/opt/sqshpipe/bin/pyxis-importer.json"), "/opt/sqshpipe/bin/sqshpipe")
    for name, text in made.items():
        assert (ours / "libexec" / name).read_text().strip() == text.strip()
        assert os.access(ours / "libexec" / name, os.X_OK)
    can = not kernel.startswith("5")
    link = root / "usr" / "local" / "sbin" / "squashfuse"
    assert link.is_symlink() is can
    if can:
        assert link.readlink() == Path("/opt/sqshpipe/sbin/squashfuse")
        assert (ours / "sbin" / "squashfuse").read_text() == shim.script()
    else:
        assert f"mounts: kernel needs Linux 6.2, this is {kernel}" in done.stderr
    text = conf.read_text() if conf.exists() else ""
    lines = [line for line in text.splitlines() if line.startswith(("Prolog", "Epilog"))]
    folder = etc / "scripts" / "prolog.d" / "90_sqshpipe"
    assert folder.exists() is (can and slurm == "parallelcluster")
    if slurm == "plain":
        added = [
            "Prolog=/opt/sqshpipe/libexec/prolog",
            "Epilog=/opt/sqshpipe/libexec/epilog",
            "PrologFlags=Alloc",
        ]
        assert lines == (added if can else [])
    else:
        assert "sqshpipe" not in "".join(lines)
    if can and slurm == "another prolog":
        assert (
            "slurm.conf has Prolog=/etc/own, which is left alone: call /opt/sqshpipe/libexec/prolog"
            in done.stderr
        )
    if can and slurm == "not here":
        assert "set Epilog=/opt/sqshpipe/libexec/epilog where Slurm's configuration is kept" in done.stderr
    before = listing(root)
    assert run(script, "--dry-run", "--root", root).returncode == 0
    assert listing(root) == before
    checked = run(script, "--check", "--root", root).stderr
    good = can and slurm in ("plain", "parallelcluster")
    assert ("ok       Prolog for kernel mounts" in checked) is good
    assert ("note     no kernel mounts for jobs" in checked) is not can
    if slurm == "plain" and can:
        conf.write_text("ClusterName=x\n")
        assert "MISSING  Epilog for kernel mounts" in run(script, "--check", "--root", root).stderr


def test_an_unknown_system_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "bootstrap.sh"
    script.write_text(bootstrap.script(values(tmp_path)))
    done = run(script, "--dry-run", "--root", make_root(tmp_path, "ID=centos\nVERSION_ID=7\n"))
    assert done.returncode == 1
    assert "centos-7 is not supported" in done.stderr


@pytest.mark.needs("curl")
def test_what_is_fetched_is_as_pinned_or_not_there(tmp_path: Path) -> None:
    functions = bootstrap.script(values(tmp_path)).rpartition('\nif [ "$CHECK" = 1 ] ||')[0]
    source, script = tmp_path / "source", tmp_path / "bootstrap.sh"
    source.write_bytes(b"bytes")
    right = hashlib.sha256(b"bytes").hexdigest()
    for sha256, name in ((right, "right"), ("0" * 64, "wrong"), (right[:-1], "short")):
        script.write_text(f"{functions}\nfetch file://{source} {sha256} {tmp_path / name}\n")
        done = run(script)
        assert (tmp_path / name).exists() is (name == "right")
        assert (done.returncode == 0) is (name == "right")
        assert name == "right" or "is not what was pinned" in done.stderr


@pytest.mark.parametrize(
    ("version", "row"),
    [
        (
            "0.1.105",
            "note     squashfuse 0.1.105: 8 ranks that read 2,500 files each: 4.3 s, on a kernel mount",
        ),
        (
            "0.6.2",
            "ok       squashfuse 0.6.2: 8 ranks that read 2,500 files each: 1.7 s, on a kernel mount 0.41",
        ),
        ("0.10.0", "ok       squashfuse 0.10.0: "),
        ("?", "note     squashfuse ?: "),
        (None, "MISSING  squashfuse"),
    ],
)
def test_check_says_what_the_squashfs_server_costs(tmp_path: Path, version: str | None, row: str) -> None:
    functions = bootstrap.script(values(tmp_path)).rpartition('\nif [ "$CHECK" = 1 ] ||')[0]
    if version:
        (tmp_path / "squashfuse").write_text(f"#!/bin/sh\necho squashfuse {version} >&2\nexit 254\n")
        (tmp_path / "squashfuse").chmod(0o755)
    for tool in ("grep", "head", "sort"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    script = tmp_path / "bootstrap.sh"
    script.write_text(f"{functions}\nPATH={tmp_path}\ncheck_server\n")
    assert row in run(script).stderr


@pytest.mark.parametrize("there", ["nothing", "an older link", "a tool of its own"])
def test_a_tool_on_shared_storage_is_linked(tmp_path: Path, there: str) -> None:
    functions = bootstrap.script(values(tmp_path)).rpartition('\nif [ "$CHECK" = 1 ] ||')[0]
    for folder in ("tool/bin", "prefix/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shared, own, script = tmp_path / "tool/bin/sqshpipe", tmp_path / "prefix/bin/sqshpipe", tmp_path / "do.sh"
    if there == "an older link":
        own.symlink_to("/nowhere")
    elif there == "a tool of its own":
        own.write_text("own")
    script.write_text(f"{functions}\nPREFIX={own.parents[1]} TOOL={shared.parents[1]}\nlink_tool\n")
    assert run(script).returncode == 0, "no tool there is no fault"
    assert not own.exists() or there == "a tool of its own"
    shared.write_text("shared")
    assert run(script).returncode == 0
    trusted = os.geteuid() == 0 and there != "a tool of its own"
    assert own.is_symlink() is (trusted or there == "an older link")
    assert not trusted or own.read_text() == "shared"


@pytest.mark.needs("root")
@pytest.mark.parametrize("open_to", ["the file", "the folder", "above", "what it imports", "by mode"])
def test_a_tool_that_others_can_change_is_not_linked(tmp_path: Path, open_to: str) -> None:
    """Root runs it in the Prolog: owning the file alone says little."""
    functions = bootstrap.script(values(tmp_path)).rpartition('\nif [ "$CHECK" = 1 ] ||')[0]
    shared, own = tmp_path / "shared/tool/bin/sqshpipe", tmp_path / "prefix/bin/sqshpipe"
    module = tmp_path / "shared/tool/lib/sqshpipe-1/pipeline/__init__.py"
    for each in (shared, own, module):
        each.parent.mkdir(parents=True)
    shared.touch()
    module.touch()
    places = {"the file": shared, "the folder": shared.parent, "above": tmp_path / "shared"}
    place = places.get(open_to, module)
    if open_to == "by mode":
        module.chmod(0o664)
    else:
        os.chown(place, 60011, 60011)
    script = tmp_path / "do.sh"
    script.write_text(f"{functions}\nPREFIX={own.parents[1]} TOOL={shared.parents[1]}\nlink_tool\n")
    own.symlink_to(shared)  # as it was when nobody else could change it
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert not own.is_symlink()
    assert f"{place} is not of root alone" in done.stderr


@pytest.mark.needs("shellcheck")
@pytest.mark.parametrize("credentials", ["substitution", "timer", "none"])
@pytest.mark.parametrize("software", ["pinned", "none", "left alone"])
def test_what_is_rendered_passes_shellcheck(tmp_path: Path, credentials: str, software: str) -> None:
    made = values(tmp_path, ecr_credentials=credentials)
    if software != "pinned":
        existing = "use" if software == "none" else "leave"
        made = made.model_copy(update={"software": settings.Software(), "existing": existing})
    if software == "pinned":
        made = made.model_copy(update={"mounts": "kernel"})
    hooks = bootstrap.hooks(Path("/opt/x.json"), "/usr/bin/sqshpipe")
    scripts = {"bootstrap": bootstrap.script(made), **hooks}
    for name, text in scripts.items():
        done = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{name}: {done.stdout}"


CHECK = """
import sys, yaml
from pcluster.schemas.cluster_schema import ClusterSchema
from pcluster.validators import slurm_settings_validator as slurm
cluster = ClusterSchema(cluster_name="checked").load(yaml.safe_load(sys.stdin))
check = slurm.CustomSlurmSettingsValidator()
check._validate(
    custom_settings=cluster.scheduling.settings.custom_slurm_settings,
    deny_list=slurm.SLURM_SETTINGS_DENY_LIST["SlurmConf"]["Global"],
    settings_level=slurm.CustomSlurmSettingLevel.SLURM_CONF,
)
assert not check._failures, check._failures
"""


@pytest.fixture(scope="module")
def parallelcluster() -> Path:
    """aws-parallelcluster in an environment of its own, kept between runs: it pins what we do not want."""
    folder = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sqshpipe-tests" / "parallelcluster"
    )
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(python), "-m", "pip", "install", "-q", "aws-parallelcluster==3.16.1", "setuptools<81"]
        for argv in ([sys.executable, "-m", "venv", str(folder)], pip):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=540)
            if done.returncode != 0:
                shutil.rmtree(folder, ignore_errors=True)
                missing(f"aws-parallelcluster does not install here: {done.stderr.strip()[-300:]}")
        (folder / "ready").touch()
    return python


@pytest.mark.parametrize(
    "variant", ["full", "reservation", "existing lustre", "no storage", "no efa", "guide", "starter"]
)
def test_parallelclusters_own_schema_takes_the_file(
    tmp_path: Path, parallelcluster: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    text = {
        "full": FULL,
        "reservation": FULL.replace("max: 8", "max: 8, capacity_reservation: cr-0123456789abcdef0"),
        "existing lustre": FULL.replace("{gib: 4800, throughput: 250}", "{id: fs-0123456789abcdef0}"),
        "no storage": FULL.replace("lustre:", "#").replace("openzfs:", "#"),
        "guide": GUIDE,
        "starter": bootstrap.starter("parallelcluster"),
        "no efa": FULL.replace("max: 8", "max: 8, efa: false, placement_group: false"),
    }[variant]
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    rendered = bootstrap.cluster_file(settings.load(path))

    def check(what: str) -> subprocess.CompletedProcess[str]:
        keys = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        keys["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"  # nobody: it asks for the reservation
        return subprocess.run(
            [parallelcluster, "-W", "ignore", "-c", CHECK],
            input=what,
            env={**os.environ, **keys, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = check(rendered)
    assert done.returncode == 0, done.stderr[-2000:]
    assert check(rendered.replace("ScaledownIdletime", "ScaledownIdleTime")).returncode != 0, "it does check"
    assert check(rendered.replace("SlurmdTimeout: 1000", "Prolog: /x")).returncode != 0
