"""What the test session shares: a private Docker Engine, a private registry, and what a test may demand.

A laptop may lack tools, so there a test that needs one is skipped and says why. In CI (the environment
variable CI is set) the same test fails: what is not run there is not checked anywhere.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import pytest
import structlog

from demo.engine import PrivateEngine
from pipeline.errors import ToolError
from pipeline.oci.reference import Reference
from pipeline.system.log import log

if TYPE_CHECKING:
    from demo.registry import PrivateRegistry

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the long campaigns (marker slow)")
    parser.addoption("--fuzz-seconds", default="4", help="how long each fuzzer runs")


def pytest_collection_finish() -> None:
    """What pytest and our modules have made stays until the end: the garbage collector need not look at it
    again and again. Without this that takes an eighth of the time of the unit and regression tests.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slow") and not item.config.getoption("--slow"):
        pytest.skip("a long campaign: give --slow to run it")
    for marker in item.iter_markers("needs"):
        for tool in marker.args:
            if not _there(tool):
                missing(f"{tool} is not here")


def _there(tool: str) -> bool:
    if tool == "root":
        return os.geteuid() == 0
    if tool.startswith("/"):
        return os.path.exists(tool)  # noqa: PTH110 - a device or a folder, as a marker's plain string
    return shutil.which(tool, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])) is not None


def missing(reason: str) -> NoReturn:
    """Skip the running test, or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and in CI nothing may be left out", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def engine() -> Iterator[PrivateEngine]:
    """A Docker Engine of this session's own; ``engine.host`` is what DOCKER_HOST has to be."""
    private = PrivateEngine()
    try:
        private.start()
    except ToolError as error:
        missing(str(error))
    yield private
    private.stop()


@pytest.fixture(scope="session")
def registry() -> Iterator[PrivateRegistry]:
    """A registry on loopback that asks for a password."""
    from demo.registry import PrivateRegistry

    if not _there("docker-registry"):
        missing("docker-registry is not here")
    with PrivateRegistry() as private:
        yield private


@pytest.fixture(scope="session")
def base(engine: PrivateEngine, registry: PrivateRegistry) -> Reference:
    """A base image with /bin/sh and Python, in the private registry alone: ``HOST/base/python:24.01-py3``."""
    from demo.base import push_base
    from pipeline.docker.engine import Engine
    from pipeline.registry.credentials import Credentials

    reference = Reference.parse(f"{registry.address}/base/python:24.01-py3")
    with Engine.connect(engine.host) as connected:
        push_base(connected, reference, Credentials(username=registry.username, password=registry.password))
    return reference


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A verb that ran in this process has set structlog up, perhaps for -q: the next test begins without."""
    yield
    log.set_up()
    if structlog.is_configured():
        structlog.reset_defaults()
