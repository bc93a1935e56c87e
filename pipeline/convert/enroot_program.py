"""Drives ``enroot import`` (github.com/NVIDIA/enroot): its arguments, places, credentials and errors.

Digests in a reference came with 4.0.0; older ones want ``HOST#repository:tag``. Which layers a version can
read itself does not matter here: it finds them in its cache (`pipeline.convert.enroot`).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.convert import mksquashfs_program
from pipeline.errors import FormatError, ToolError, UnsupportedByConverter
from pipeline.oci import environment
from pipeline.oci.config import ImageConfig
from pipeline.oci.manifest import ACCEPT
from pipeline.system import process, untrusted

Version = tuple[int, int, int]

INSTALL_HINT = "install enroot 4 or later (github.com/NVIDIA/enroot), or use --converter native"
OTHER_CONVERTER = "use --converter native or mksquashfs"
OLDEST: Version = (3, 4, 0)
DIGESTS: Version = (4, 0, 0)

_LINES = re.compile(r"[\r\n]")
_RUN = re.compile(r"[\r\n\"$`\\]|(^|/)\.\.(/|$)")
_FSTAB = re.compile(r"[\s$\\#]|(^|/)\.\.(/|$)")
_VERSION = re.compile(r"^v?(\d+)\.(\d+)\.(\d+)", re.MULTILINE)
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "ppc64le": "ppc64le"}  # enroot takes uname's words
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
# Where a registry sends curl for a token, when that is another host: curl takes the netrc line of that host.
_TOKEN_HOSTS = {
    "registry-1.docker.io": "auth.docker.io",
    "nvcr.io": "authn.nvidia.com",
    "registry.gitlab.com": "gitlab.com",
}

_FULL = "a disk is full: set SQSHPIPE_SCRATCH and SQSHPIPE_CACHE to larger ones"
_NO_OVERLAY = "scratch cannot be in an overlay (#10, #69): set SQSHPIPE_SCRATCH to a local disk"

# What enroot says when it fails, and what that means (numbers are of its issue tracker).
KNOWN_FAILURES: Mapping[str, str] = {
    "No space left on device|Disk quota exceeded": _FULL,
    "error code: 406": f"the registry refuses the media types that enroot asks for (#263); {OTHER_CONVERTER}",
    "error code: 404": f"not in the registry, or hidden from enroot in an index (#277); {OTHER_CONVERTER}",
    "error code: 40[13]": "the registry refuses the credentials; sqshpipe doctor shows which are used",
    "Could not process JSON": f"the answer is not a manifest, often a refused login (#59); {OTHER_CONVERTER}",
    "Cannot hard link to": f"enroot cannot take a hard link to a file of a lower layer; {OTHER_CONVERTER}",
    "whiteout: .*File exists": f"enroot cannot take a whiteout beside a file of its name; {OTHER_CONVERTER}",
    "Cannot open: File exists": f"enroot cannot take a file in place of a folder; {OTHER_CONVERTER}",
    "Cannot open: Not a directory": f"enroot cannot take a name below a symlink; {OTHER_CONVERTER}",
    "[Ff]ile ?name too long": f"enroot cannot take paths that are so long; {OTHER_CONVERTER}",
    # its layers were read to their end before it was run
    "tar: (Malformed|Unexpected EOF)": f"its tar cannot read a layer that is sound; {OTHER_CONVERTER}",
    "Cannot stat dir/file": f"enroot cannot take a whiteout that hides nothing; {OTHER_CONVERTER}",
    "unsupported aufs whiteout": f"enroot cannot take what AUFS left in a layer; {OTHER_CONVERTER}",
    "create mount namespace": f"enroot lacks privileges in this container (#260); {OTHER_CONVERTER}",
    "mount overlay|create .*whiteout": f"{_NO_OVERLAY}, or {OTHER_CONVERTER}",
    "Command not found: [^ ]": f"enroot lacks one of its own tools: install it, or {OTHER_CONVERTER}",
    r"Using credentials from file[^\n]*\s*\Z": "the registry refused the login; try it with docker login",
    "Checksum mismatch": "a layer arrived damaged: try again",
}


class CannotImport(UnsupportedByConverter, ToolError):
    """enroot cannot do it: its version, its privileges, an image of a shape that it fails on."""


class WouldMisread(UnsupportedByConverter, FormatError):
    """A sound image that enroot would run, split or write elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Folders of ours that enroot uses instead of the user's."""

    cache: Path
    config: Path
    temp: Path
    runtime: Path
    data: Path

    @classmethod
    def below(cls, scratch: Path, *, cache: Path) -> Places:
        """Make them: all in scratch, removed with it, but for the cache of layers."""
        folders = {name: scratch / name for name in ("config", "temp", "runtime", "data")}
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            for folder in (*folders.values(), cache):
                with untrusted.folder_to_write(folder, make=0o700):
                    pass  # it is there, and no other user's symlink leads to it
        except OSError as error:
            raise ToolError(
                f"cannot make enroot's folders in {scratch} and {cache}: {error.strerror}",
                hint="set SQSHPIPE_CACHE and SQSHPIPE_SCRATCH to folders that you can write",
            ) from error
        return cls(cache=cache, **folders)

    @property
    def credentials(self) -> Path:
        return self.config / ".credentials"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enroot:
    """An installed enroot."""

    path: Path
    version: Version

    @classmethod
    def find(cls) -> Enroot:
        """The one in PATH. Raises ToolError when it is missing, or it is too old."""
        path = process.which("enroot", hint=INSTALL_HINT)
        with tempfile.TemporaryDirectory(prefix="sqshpipe-enroot-") as folder:
            # whatever it is asked, it makes its folders, by default in $HOME
            own = {f"ENROOT_{name}_PATH": folder for name in ("CACHE", "CONFIG", "DATA", "RUNTIME", "TEMP")}
            said = process.run([path, "version"], check=False, timeout=30, env={**os.environ, **own})
        version = parse_version(said.stdout)
        if version < OLDEST:
            raise CannotImport(f"enroot {'.'.join(map(str, version))} is too old", hint=INSTALL_HINT)
        return cls(path=path, version=version)

    @property
    def version_text(self) -> str:
        return ".".join(str(part) for part in self.version)

    @property
    def takes_digests(self) -> bool:
        return self.version >= DIGESTS

    def import_image(
        self,
        uri: str,
        output: Path,
        *,
        places: Places,
        architecture: str,
        plain_http: bool,
        compressor: str = "zstd",
        zstd_level: int,
        block_size: int,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """Write ``output``, which must not exist. Raises ToolError with what enroot's failure means,
        CannotImport where that is known to be enroot's alone.
        """
        argv: list[str | Path] = [self.path, "import"]
        if machine := _ARCHITECTURES.get(architecture):
            argv += [
                "--arch",
                machine,
            ]  # its default is the host's, and it only warns when the image has another
        argv += ["--output", output]  # its default is a name made of the reference, in the current folder
        argv += ["--", uri]
        environment = import_environment(
            os.environ,
            places=places,
            plain_http=plain_http,
            compressor=compressor,
            zstd_level=zstd_level,
            block_size=block_size,
            processors=len(os.sched_getaffinity(0)),
            memory=mksquashfs_program.memory_budget(),
        )
        write_curl_config(places, os.environ)
        try:
            # The umask becomes the mode of /etc and of the working directory inside the image.
            process.run(argv, cwd=places.temp, env=environment, on_line=on_line, umask=0o022)
        except ToolError as error:
            hint = meaning(error.message)
            kind = CannotImport if hint.endswith(OTHER_CONVERTER) else ToolError
            raise kind(error.headline, hint=hint or error.hint, details=error.details) from error


def refuse_config(config: ImageConfig) -> None:
    """Raise WouldMisread for what enroot would run, or write outside of the image (seen with 4.1.2).

    It makes the working directory below a folder of the host without a look at `..`, writes it into /etc/rc
    between double quotes, takes words, labels and volumes apart at line ends, removes quotes around values of
    the environment, replaces `${NAME}` in them, and runs an entrypoint of one empty word.
    """
    for what, texts, odd in (
        ("working directory", (config.working_dir,), _RUN),
        ("volume", config.volumes, _FSTAB),
        ("label", tuple(config.labels), _LINES),
        ("command", (*config.entrypoint, *config.cmd), _LINES),
        ("environment", config.env, _LINES),
    ):
        for text in texts:
            if odd.search(text):
                raise _misread(what, text)
    for item in config.env:
        if not environment.is_plain(item):
            raise _misread("environment", item)
    if config.entrypoint == ("",):
        raise _misread("entrypoint", "")


def _misread(what: str, text: str) -> WouldMisread:
    return WouldMisread(
        f"the {what} {text[:100]!r} of the image holds what enroot would run or misread",
        hint=OTHER_CONVERTER,
    )


def parse_version(text: str) -> Version:
    """``4.1.2`` -> ``(4, 1, 2)``."""
    found = _VERSION.search(text)
    if found is None:
        raise ToolError("enroot does not report its version", hint=INSTALL_HINT)
    return int(found[1]), int(found[2]), int(found[3])


def import_uri(host: str, repository: str, reference: str) -> str:
    """``docker://HOST#repository@sha256:…`` or ``docker://HOST#repository:tag``, which every version reads.

    Without the ``#``, 3.4 looks for the repository on Docker Hub.
    """
    separator = "@" if ":" in reference else ":"
    return f"docker://{registry_host(host)}#{repository}{separator}{reference}"


def registry_host(host: str) -> str:
    """The host that enroot must talk to: Docker Hub's registry is not at docker.io."""
    return "registry-1.docker.io" if host in _DOCKER_HUB else host


def import_environment(
    outer: Mapping[str, str],
    *,
    places: Places,
    plain_http: bool,
    compressor: str = "zstd",
    zstd_level: int,
    block_size: int,
    processors: int,
    memory: int,
) -> dict[str, str]:
    """The whole environment of an import: the outer one without the user's enroot settings, and ours."""
    kept = {
        key: value
        for key, value in outer.items()
        # SOURCE_DATE_EPOCH would set the times of all files, which makes every .pyc stale
        if not key.startswith("ENROOT_") and key != "SOURCE_DATE_EPOCH"
    }
    squash = mksquashfs_program.compression_options(compressor, zstd_level=zstd_level, block_size=block_size)
    squash += ["-noappend"]  # never add to a file that is there
    squash += ["-exit-on-error"]  # overriding the options drops it, and unreadable files would become empty
    squash += ["-mkfs-time", "0"]  # the same bytes whenever it runs
    squash += ["-no-xattrs"]  # the layers' are lost before; those of the host are not the image's
    squash += ["-mem", f"{memory >> 20}M"]
    ours = {
        "ENROOT_CACHE_PATH": str(places.cache),
        "ENROOT_CONFIG_PATH": str(places.config),
        "ENROOT_TEMP_PATH": str(places.temp),
        "ENROOT_RUNTIME_PATH": str(places.runtime),
        "ENROOT_DATA_PATH": str(places.data),
        "ENROOT_SQUASH_OPTIONS": " ".join(squash),
        "ENROOT_MAX_PROCESSORS": str(processors),
        "ENROOT_TRANSFER_RETRIES": "3",
        "ENROOT_ALLOW_HTTP": "yes" if plain_http else "no",
        "CURL_HOME": str(places.config),
        "PARALLEL_HOME": str(places.runtime),  # GNU parallel, which enroot runs, makes a folder in $HOME
        "LC_ALL": "C",
    }
    return {**kept, **ours}


def write_curl_config(places: Places, outer: Mapping[str, str]) -> None:
    """Let enroot's curl say which manifests it takes, also where enroot forgets to.

    Its first request names none, and a registry that holds an OCI manifest then answers 404 or 406 (#263,
    #277), which ends the import. What the user has in a .curlrc (proxies, authorities) stays.
    """
    home = outer.get("CURL_HOME") or outer.get("HOME") or ""
    own = Path(home) / ".curlrc"
    text = own.read_text(encoding="utf-8", errors="surrogateescape") if home and own.is_file() else ""
    accept = ", ".join(ACCEPT)
    _write_secret(places.config / ".curlrc", f'{text}\nheader = "Accept: {accept}"\n')


def write_credentials(places: Places, host: str, username: str, password: str) -> None:
    """Write the netrc file that enroot reads, for our eyes alone. Raises CannotImport for odd characters."""
    host = registry_host(host).rsplit(":", 1)[0]
    hosts = [host, *([_TOKEN_HOSTS[host]] if host in _TOKEN_HOSTS else [])]
    text = "".join(netrc_line(each, username, password) for each in hosts)
    _write_secret(places.credentials, text)


def _write_secret(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(text)


def netrc_line(host: str, username: str, password: str) -> str:
    """One netrc line that survives enroot, which lets a shell expand a password that begins with ``$``.

    Raises CannotImport where it is missing.
    """
    for word, value in (("user name", username), ("password", password)):
        if not value or re.search(r"[\s\x00-\x1f]", value) or value[0] in '"#':
            raise CannotImport(f"the {word} for {host} cannot be written for enroot", hint=OTHER_CONVERTER)
    if password.startswith("$"):
        if re.search(r"['\\{}]", password):
            raise CannotImport(f"the password for {host} cannot be written for enroot", hint=OTHER_CONVERTER)
        # A parameter that is never set expands to its quoted default: the password as it is.
        password = "${_SQSHPIPE_UNSET:-'" + password + "'}"
    return f"machine {host} login {username} password {password}\n"


def meaning(output: str) -> str:
    """What to do about a failure that is known, else nothing."""
    for pattern, hint in KNOWN_FAILURES.items():
        if re.search(pattern, output):
            return hint
    return ""
