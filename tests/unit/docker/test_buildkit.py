"""Which command line builds with BuildKit, and what it is asked for. The builds are in tests/integration."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pipeline.docker import buildkit
from pipeline.docker.engine import BuildRequest, Engine
from pipeline.errors import ConfigError, ToolError
from pipeline.oci.digest import Digest
from pipeline.progress import NO_TASK, Task

CONFIG = Digest.of(b"config")
Install = Callable[..., Path]


def engine(*, has_buildkit: bool = True, containerd_store: bool = True) -> Engine:
    return cast(
        "Engine",
        SimpleNamespace(
            host="unix:///fake.sock",
            variables={"DOCKER_HOST": "unix:///fake.sock"},
            has_buildkit=has_buildkit,
            containerd_store=containerd_store,
            version="28.0.0",
            root="/r",
            answers=lambda: True,
        ),
    )


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a fake ``docker`` into a folder of its own at the end of PATH."""
    folders: list[str] = []

    def installed(
        version: str,
        *,
        buildx: str = "",
        build: str = "exit 0",
        history: str = "exit 0",
        engine_answers: bool = True,
    ) -> Path:
        folder = tmp_path / f"bin{len(folders)}"
        folder.mkdir()
        program = folder / "docker"
        answer = f"echo '{version} 28.0.0'" if engine_answers else "exit 1"
        program.write_text(
            "#!/bin/sh\n"
            f'echo "$0 $DOCKER_HOST $DOCKER_BUILDKIT $@" >> {tmp_path}/calls\n'
            'case "$1 $2 $3 $4" in\n'
            f"'buildx version '*) [ -n '{buildx}' ] && echo '{buildx}' ;;\n"
            f"*' version --format') {answer} ;;\n"
            f"'buildx build'*|'build '*) {build} ;;\n"
            f"'buildx --builder=default history inspect') {history} ;;\n"
            "esac\n",
            encoding="utf-8",
        )
        program.chmod(0o755)
        folders.append(str(folder))
        monkeypatch.setenv("PATH", ":".join([*folders, "/usr/bin", "/bin"]))
        return program

    # the real ones of this machine must not be found behind the fake ones
    real = buildkit._docker_programs
    monkeypatch.setattr(
        buildkit, "_docker_programs", lambda: [found for found in real() if found.startswith(str(tmp_path))]
    )
    return installed


BUILDX = "github.com/docker/buildx v0.12.1 30feaa1"
DEBIAN_BUILDX = "github.com/docker/buildx 0.13.1+ds1 0.13.1+ds1-3"


def test_a_folder_of_path_that_cannot_be_looked_into_is_passed_over(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = install("new", buildx=BUILDX)
    monkeypatch.setenv("PATH", f"/{'long' * 1500}:{program.parent}:/usr/bin:/bin")
    assert buildkit._docker_programs() == [str(program)]


@pytest.mark.parametrize("said", [BUILDX, DEBIAN_BUILDX])
def test_buildx_is_taken_wherever_it_is_in_path(install: Install, said: str) -> None:
    install("20.10.24")
    program = install("28.2.2", buildx=said)
    found = buildkit.find_frontend(engine())
    assert found is not None
    assert found.has_buildx
    assert found.argv == (str(program), "buildx", "build", "--builder=default")


def test_an_old_command_line_builds_by_itself_and_a_newer_one_refuses(install: Install) -> None:
    install("28.2.2")
    program = install("20.10.24+dfsg1")
    found = buildkit.find_frontend(engine())
    assert found is not None
    assert not found.has_buildx
    assert found.argv == (str(program), "build")


def test_a_command_line_that_the_engine_refuses_is_not_taken(install: Install) -> None:
    install("20.10.24", engine_answers=False)
    assert buildkit.find_frontend(engine()) is None


@pytest.mark.parametrize("said", ["github.com/docker/buildx v0.9.1 ed00243", "buildah 1.33.7"])
def test_what_is_too_old_or_only_named_so_is_not_taken(install: Install, said: str) -> None:
    install("28.2.2", buildx=said)
    assert buildkit.find_frontend(engine()) is None


def test_an_engine_without_buildkit_is_not_asked(install: Install, tmp_path: Path) -> None:
    install("28.2.2", buildx=BUILDX)
    assert buildkit.find_frontend(engine(has_buildkit=False)) is None
    assert not (tmp_path / "calls").exists()


def order(tmp_path: Path) -> BuildRequest:
    return BuildRequest(
        tag="sqshpipe/demo:0",
        context=tmp_path,
        path=tmp_path / "Dockerfile",
        dockerfile="FROM x\n",
        build_args={"B": "2", "A": "1 and more"},
        labels={"l": "v"},
        secrets={"hub": "env=HUB_TOKEN", "file": "src=/a,b/c"},
        target="last",
        platform="linux/arm64",
        network="host",
        no_cache=True,
    )


def built(
    frontend: buildkit.Frontend, wanted: BuildRequest, tmp_path: Path, task: Task = NO_TASK
) -> Digest | None:
    folder = tmp_path / "work"
    folder.mkdir()
    return buildkit.build(frontend, wanted, engine(), docker_config=tmp_path, folder=folder, task=task)


def test_what_buildx_is_asked_for_and_what_it_reports(install: Install, tmp_path: Path) -> None:
    build = (
        'for word; do case "$word" in '
        "--metadata-file=*) echo "
        f'"{{\\"containerimage.config.digest\\": \\"{CONFIG}\\"}}" > "${{word#*=}}" ;; '
        f'--file=*) cat "${{word#*=}}" "${{word#*=}}.dockerignore" > {tmp_path}/seen ;; '
        "esac; done"
    )
    install("28.2.2", buildx=BUILDX, build=build)
    found = buildkit.find_frontend(engine())
    assert found is not None
    assert built(found, order(tmp_path), tmp_path) == CONFIG
    assert (tmp_path / "seen").read_text(encoding="utf-8") == "FROM x\n# nothing\n"
    call = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()[-1]
    for word in (
        "unix:///fake.sock 1 buildx build --builder=default --progress=plain --file=",
        "--tag=sqshpipe/demo:0 --load --provenance=false --sbom=false --metadata-file=",
        "--network=host --platform=linux/arm64 --target=last --no-cache",
        "--build-arg=A=1 and more --build-arg=B=2",
        '--label=l=v --secret=id=file,"src=/a,b/c" --secret=id=hub,env=HUB_TOKEN ',
    ):
        assert word in call
    assert call.endswith(f" {tmp_path}")


GZIP, ZSTD = (f"application/vnd.oci.image.layer.v1.tar+{kind}" for kind in ("gzip", "zstd"))
OF_THE_BASE, BUILT = Digest.of(b"layer of the base"), Digest.of(b"built layer")
SHOWS_HISTORY = "echo 'Usage: docker buildx history inspect attachment [OPTIONS]'"


def compressing(tmp_path: Path, cached: str, anew: str) -> dict[str, str]:
    """A fake buildx whose built layer has the media type `cached`, or `anew` with ``--no-cache``."""
    for name, kind in (("cached", cached), ("anew", anew)):
        layers = [(GZIP, OF_THE_BASE), (kind, BUILT)]
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": f"{CONFIG}",
                "size": 2,
            },
            "layers": [{"mediaType": of, "digest": str(digest), "size": 3} for of, digest in layers],
        }
        (tmp_path / name).write_text(json.dumps(manifest), encoding="utf-8")
    said = {
        "buildx.build.ref": "default/default/reference",
        "containerimage.digest": str(Digest.of(b"manifest")),
        "containerimage.config.digest": str(CONFIG),
    }
    (tmp_path / "metadata").write_text(json.dumps(said), encoding="utf-8")
    build = (
        f"name={tmp_path}/cached; "
        'for word; do case "$word" in '
        f"--no-cache) name={tmp_path}/anew ;; "
        f'--metadata-file=*) cp {tmp_path}/metadata "${{word#*=}}" ;; '
        f"esac; done; cp $name {tmp_path}/built"
    )
    history = f'[ "$7" = {Digest.of(b"manifest")} ] && cat {tmp_path}/built'
    return {"build": build, "history": history}


def with_zstd(tmp_path: Path, *, no_cache: bool = False) -> BuildRequest:
    return dataclasses.replace(order(tmp_path), no_cache=no_cache, zstd_over=frozenset({OF_THE_BASE}))


def builds(tmp_path: Path) -> list[str]:
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    return [call for call in calls if " buildx build " in call]


def test_zstd_is_asked_for_and_the_base_keeps_its_layers(install: Install, tmp_path: Path) -> None:
    install("28.2.2", buildx=BUILDX, **compressing(tmp_path, ZSTD, ZSTD))
    found = buildkit.find_frontend(engine())
    assert found is not None
    assert built(found, with_zstd(tmp_path), tmp_path) == CONFIG
    (call,) = builds(tmp_path)
    assert " --output=type=image,compression=zstd,oci-mediatypes=true " in call
    assert "force-compression" not in call
    assert "--load" not in call


def test_steps_that_are_cached_with_gzip_are_run_again_once(install: Install, tmp_path: Path) -> None:
    install("28.2.2", buildx=BUILDX, **compressing(tmp_path, GZIP, ZSTD))
    found = buildkit.find_frontend(engine())
    assert found is not None
    assert built(found, with_zstd(tmp_path), tmp_path) == CONFIG
    assert [" --no-cache " in call for call in builds(tmp_path)] == [False, True]


@pytest.mark.parametrize("no_cache", [False, True])
def test_layers_that_stay_gzip_are_an_error_before_the_push(
    install: Install, tmp_path: Path, no_cache: bool
) -> None:
    install("28.2.2", buildx=BUILDX, **compressing(tmp_path, GZIP, GZIP))
    found = buildkit.find_frontend(engine())
    assert found is not None
    with pytest.raises(ToolError, match="gave 1 layers that are not zstd and not of its base") as caught:
        built(found, with_zstd(tmp_path, no_cache=no_cache), tmp_path)
    assert caught.value.exit_code == 3
    assert [" --no-cache " in call for call in builds(tmp_path)] == ([True] if no_cache else [False, True])


def test_zstd_needs_the_containerd_image_store(install: Install, tmp_path: Path) -> None:
    install("28.2.2", buildx=BUILDX, history=SHOWS_HISTORY)
    plain = engine(containerd_store=False)
    with pytest.raises(ToolError, match=r"this Docker Engine \(28.0.0\) always pushes gzip") as caught:
        buildkit.require_zstd(buildkit.find_frontend(plain), plain, "demo")
    assert '"features": {"containerd-snapshotter": true}' in caught.value.hint
    buildkit.require_zstd(buildkit.find_frontend(engine()), engine(), "demo")


@pytest.mark.parametrize("options", [{}, {"buildx": BUILDX}], ids=["no buildx", "an older buildx"])
def test_zstd_needs_a_buildx_that_shows_how_layers_are_compressed(
    install: Install, options: dict[str, str]
) -> None:
    install("20.10.24", **options)
    with pytest.raises(ToolError, match="no buildx here can show how layers are compressed"):
        buildkit.require_zstd(buildkit.find_frontend(engine()), engine(), "demo")


def test_an_engine_that_hangs_while_it_builds_is_not_waited_for(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("28.2.2", buildx=BUILDX, build="echo '#5 1.0 compiling'; exec sleep 300")
    monkeypatch.setattr(buildkit, "_LOOK", 0.05)
    found = buildkit.find_frontend(engine())
    assert found is not None
    looks = iter([True, False, True, False, False])
    hanging = cast(
        "Engine",
        SimpleNamespace(
            host="unix:///fake.sock",
            variables={"DOCKER_HOST": "unix:///fake.sock"},
            answers=lambda: next(looks),
        ),
    )
    with pytest.raises(ToolError, match="the Docker Engine does not answer"):
        buildkit.build(found, order(tmp_path), hanging, docker_config=tmp_path, folder=tmp_path)
    assert list(looks) == []


def test_an_old_command_line_is_not_asked_for_what_it_does_not_know(install: Install, tmp_path: Path) -> None:
    install("20.10.24")
    found = buildkit.find_frontend(engine())
    assert found is not None
    assert built(found, order(tmp_path), tmp_path) is None
    call = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()[-1]
    assert "--load" not in call
    assert "--provenance" not in call


def test_of_steps_side_by_side_the_failed_one_is_reported(install: Install, tmp_path: Path) -> None:
    said = [
        "#5 [a 1/2] RUN make",
        "#6 [b 1/2] RUN pip install it",
        "#5 0.1 making",
        "#6 0.2 Collecting it",
        "#6 0.3 ERROR: No matching distribution found for it",
        "#5 0.4 made",
        "#6 ERROR: process did not complete: exit code: 1",
        "#5 CANCELED",
        "------",
        "ERROR: failed to solve: process did not complete: exit code: 1",
    ]
    (tmp_path / "said").write_text("\n".join(said), encoding="utf-8")
    install("28.2.2", buildx=BUILDX, build=f"cat {tmp_path}/said >&2; exit 1")
    found = buildkit.find_frontend(engine())
    assert found is not None
    with pytest.raises(ToolError) as caught:
        built(found, order(tmp_path), tmp_path)
    assert caught.value.message.splitlines() == [
        f"building {tmp_path}/Dockerfile failed: failed to solve: process did not complete: exit code: 1",
        "  | [b 1/2] RUN pip install it",
        "  | Collecting it",
        "  | ERROR: No matching distribution found for it",
    ]


def test_only_what_the_users_own_steps_say_is_passed_on(install: Install, tmp_path: Path) -> None:
    reported = [
        "#1 [internal] load build definition from Dockerfile",
        "#1 transferring dockerfile: 96B 0.0s done",
        "#1 DONE 0.0s",
        "#5 [1/3] FROM r.io/base@sha256:0",
        "#5 sha256:c88c5afa3383db28e419ec6d1ccb2d44 9.34MB / 9.34MB 0.1s done",
        "#5 extracting sha256:c88c5afa 0.8s done",
        "#6 [2/3] RUN make",
        "#6 CACHED",
        "#7 [3/3] RUN pip install it",
        "#7 0.083 exporting is what it does",
        "#7 DONE 0.1s",
        "#8 exporting to image",
        "#8 writing image sha256:2635beba done",
    ]
    (tmp_path / "said").write_text("\n".join(reported), encoding="utf-8")
    install("28.2.2", buildx=BUILDX, build=f"cat {tmp_path}/said >&2")
    found = buildkit.find_frontend(engine())
    assert found is not None
    heard: list[str] = []
    task = SimpleNamespace(line=heard.append)
    built(found, order(tmp_path), tmp_path, cast("Task", task))
    assert heard == [reported[3], reported[6], reported[7], reported[8], reported[9]]


def test_a_secret_is_named_by_its_source_and_has_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "value")
    assert buildkit.secret_source("hub", "HUB_TOKEN", None) == "env=HUB_TOKEN"
    file = tmp_path / 'odd,"name'
    file.write_text("value", encoding="utf-8")
    option = buildkit.secret_option("hub", buildkit.secret_source("hub", None, file))
    assert next(csv.reader([option])) == ["id=hub", f"src={file}"]
    monkeypatch.setenv("HUB_TOKEN", "")
    with pytest.raises(ConfigError, match="HUB_TOKEN is not set"):
        buildkit.secret_source("hub", "HUB_TOKEN", None)
    with pytest.raises(ConfigError, match="is not a readable file"):
        buildkit.secret_source("hub", None, tmp_path / "none")
