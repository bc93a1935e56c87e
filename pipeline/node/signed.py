"""Where this node requires signatures: a file is mounted only as the bytes of a signed release."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pipeline.errors import ConfigError, ToolError, VerificationError
from pipeline.node import pyxis_importer
from pipeline.node.image_file import ImageFile
from pipeline.store import trust
from pipeline.store.layout import Layout
from pipeline.store.store import Store
from pipeline.system import untrusted


def install(required: trust.Required) -> None:
    """Write this node's policy, and make the folder for marks. Raises ConfigError, ToolError.

    From then on nothing resolves here without one of the signatures.
    """
    if required.marks is None:
        raise ConfigError("a node's policy needs a folder for marks")
    try:
        with untrusted.folder_to_write(required.marks, make=0o755) as opened:
            status = os.fstat(opened)
        if status.st_uid not in (*required.mark_uids, os.geteuid()) or status.st_mode & 0o022:
            raise ConfigError(
                f"others may write to {required.marks}, the folder for marks of verified signatures",
                hint="name a folder that belongs to root or to a uid of --mark-uid, with mode 0755",
            )
        with untrusted.folder_to_write(trust.NODE_POLICY.parent, make=0o755):
            pass
        untrusted.replace_file(trust.NODE_POLICY, required.as_json().encode(), mode=0o644)
    except OSError as error:
        raise ToolError(f"cannot require signatures: {error}", hint="run it as root on the node") from error


def check_bytes(file: ImageFile) -> None:
    """Read a file whole, once on this node, and compare its sha256; then the importer's mark stands for that.

    Raises VerificationError when the file has other bytes or is not a regular file.
    """
    with _compared(file, trust.of_node()):
        pass


@contextlib.contextmanager
def opened(file: ImageFile) -> Iterator[int | None]:
    """The file for a mount, opened and compared as by `check_bytes`; None where no signature is required."""
    required = trust.of_node()
    if required is None:
        yield None
        return
    with _compared(file, required) as descriptor:
        yield descriptor


@contextlib.contextmanager
def _compared(file: ImageFile, required: trust.Required | None) -> Iterator[int]:
    try:
        descriptor = untrusted.open_regular(file.path)
    except OSError as error:
        raise VerificationError(f"cannot read {file.path}: {error.strerror}") from error
    try:
        state, owners = str(required.state if required else trust.STATE), (0, os.geteuid())
        marked = pyxis_importer.is_marked(descriptor, file.sha256, state, owners)
        if not marked and not pyxis_importer.verify(descriptor, file.sha256, state):
            raise VerificationError(
                f"{file.path} does not have the sha256 that was signed, {file.sha256}",
                hint="run sqshpipe store scrub, then publish the same content again",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def check_path(file: ImageFile) -> ImageFile:
    """A file that is given by its path; where signatures are required, only the bytes of a signed release.

    Raises ConfigError for a file of no store, VerificationError when no signed release has its bytes.
    """
    required = trust.of_node()
    if required is None:
        return file
    layout = Layout(file.path.parents[2] if len(file.path.parts) > 3 else file.path.parent)
    digest = file.path.stem
    if file.path != layout.blob(digest):
        raise ConfigError(
            f"{file.path} is not a release, and {required.source} requires signed releases on this machine",
            hint="give IMAGE:VERSION of the store",
        )
    store = Store(layout.root)
    releases = [release for image in store.images() for release in store.releases(image)]
    mine = [one for one in releases if one.sha256 == digest and one.state == "published"]
    if not any(trust.is_signed(layout, release, required) for release in mine):
        raise VerificationError(
            f"no signed release has the bytes of {file.path}",
            hint=f"{required.source} names the keys that count",
        )
    checked = ImageFile(path=file.path, sha256=digest)
    check_bytes(checked)
    return checked
