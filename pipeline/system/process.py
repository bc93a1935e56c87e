"""The one place that runs subprocesses.

A list argv and never a shell, stdin from /dev/null unless bytes are given, a process group of its own that
ends with us (SIGTERM, then SIGKILL) whatever goes wrong here. The error of a failure has the command line, in
a form that can be pasted, and the last lines of output. Secrets travel in the environment or on stdin, never
in argv: argv is printed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import ToolError
from pipeline.system.log import log
from pipeline.text import said, shown

TERM_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
ORPHAN_GRACE = 1.0  # seconds for the rest of the group, and for output, once the leader has ended
LAST_LINES = 12
MOST_OUTPUT = 256 << 20  # bytes of stdout, and of stderr, that are kept: a test may print without end
_LONGEST_LINE = 2000  # characters of a line in an error
_READ_SIZE = 1 << 16
_TICK = 0.2
_LINE_END = re.compile(rb"[\r\n]+")
_MORE_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A program that ended: what was asked, and all that it said (bytes that are not UTF-8 as ``\\xNN``)."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    extra_env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    on_line: Callable[[str], None] | None = None,
    check: bool = True,
    hint: str = "",
    timeout: float | None = None,
    umask: int = -1,
    stop: threading.Event | None = None,
) -> Completed:
    """Run a program to its end.

    ``env`` replaces the environment, ``extra_env`` adds to it. ``on_line`` gets every non-empty line of
    stdout and stderr as it comes, in the caller's thread; carriage returns end a line too. ``timeout`` is in
    seconds. On any exception in here, KeyboardInterrupt and one raised by ``on_line`` included, the whole
    process group of the program is ended before the exception leaves this function. ``umask`` is the
    program's, -1 ours. ``stop`` is for threads, which no signal reaches: once set, the program is ended as
    well.

    Raises ToolError when the program is missing, when it runs past ``timeout`` or is stopped, when it prints
    more than MOST_OUTPUT bytes that nobody takes line by line, and, with ``check``, when it does not exit
    with 0; ``hint`` becomes the error's hint.
    """
    words = tuple(str(word) for word in argv)
    environment = {**(os.environ if env is None else env), **(extra_env or {})}
    program = _find(words[0], environment.get("PATH")) or words[0]
    log.debug("running", command=shlex.join(words))
    process = _start(words, program, cwd, environment, wants_input=stdin is not None, umask=umask, hint=hint)
    try:
        deadline = None if timeout is None else time.monotonic() + timeout
        talk = _Conversation(process, stdin, on_line, deadline, stop)
        finished = talk.listen()
    except BaseException:
        _end_group(process)
        raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    if not finished:
        _end_group(process)
        raise ToolError(
            f"{_name(words)} did not finish within {timeout:g} s:",
            hint=hint,
            details=_details(words, talk.last),
        )
    completed = Completed(
        argv=words,
        returncode=process.wait(),
        stdout=talk.text(process.stdout),
        stderr=talk.text(process.stderr),
    )
    if check and completed.returncode != 0:
        raise _failure(completed, talk.last, hint)
    return completed


def which(tool: str, *, hint: str) -> Path:
    """Where a program is, looked for in PATH and in the sbin folders that a user's PATH may lack.

    Raises ToolError with ``hint`` when it is nowhere.
    """
    found = _find(tool, os.environ.get("PATH"))
    if found is None:
        raise ToolError(f"{tool} is not installed (not in PATH)", hint=hint)
    return Path(found)


def _find(tool: str, path: str | None) -> str | None:
    folders = [folder for folder in (path or os.defpath).split(os.pathsep) if folder]
    return shutil.which(tool, path=os.pathsep.join([*folders, *_MORE_PATH]))


def _start(
    words: tuple[str, ...],
    program: str,
    cwd: Path | None,
    env: Mapping[str, str],
    *,
    wants_input: bool,
    umask: int,
    hint: str,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            executable=program,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE if wants_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            umask=umask,
            start_new_session=True,  # a group to end as a whole, and a Ctrl-C that reaches us first
        )
    except OSError as error:
        if cwd is not None and not cwd.is_dir():
            raise ToolError(f"cannot run {_name(words)} in {cwd}: no such folder", hint=hint) from error
        if error.errno == errno.ENOENT:
            raise ToolError(f"{words[0]} is not installed (not in PATH)", hint=hint) from error
        raise ToolError(f"cannot run {words[0]}: {error.strerror}", hint=hint) from error


class _Conversation:
    """Writes the program's stdin and reads its output from one thread, so that ``on_line`` may raise."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stdin: bytes | None,
        on_line: Callable[[str], None] | None,
        deadline: float | None,
        stop: threading.Event | None,
    ) -> None:
        self._process = process
        self._unsent = memoryview(stdin or b"")
        self._on_line = on_line
        self._deadline = deadline
        self._stop = stop
        self._output: dict[IO[bytes], bytearray] = {}
        self._partial: dict[IO[bytes], bytes] = {}
        self.last: deque[str] = deque(maxlen=LAST_LINES)

    def listen(self) -> bool:
        """Until the program has ended and its output is read; False when the deadline comes first."""
        with selectors.DefaultSelector() as selector:
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    self._output[pipe], self._partial[pipe] = bytearray(), b""
                    selector.register(pipe, selectors.EVENT_READ)
            if self._process.stdin is not None:
                os.set_blocking(self._process.stdin.fileno(), False)
                selector.register(self._process.stdin, selectors.EVENT_WRITE)
            silent_since: float | None = None
            while selector.get_map():
                now = time.monotonic()
                self._raise_if_stopped()
                if self._deadline is not None and now >= self._deadline:
                    return False
                ready = selector.select(_TICK)
                for key, _ in ready:
                    self._serve(key.fileobj, selector)  # type: ignore[arg-type]
                # A daemon that it left may keep the pipes open: we wait for the program only.
                if ready or self._process.poll() is None:
                    silent_since = None
                elif silent_since is None:
                    silent_since = now
                elif now - silent_since >= ORPHAN_GRACE:
                    break
        for pipe, rest in self._partial.items():
            if rest:
                self._line(pipe, rest)
        return self._wait()

    def text(self, pipe: IO[bytes] | None) -> str:
        return "" if pipe is None else self._output[pipe].decode("utf-8", "backslashreplace")

    def _serve(self, pipe: IO[bytes], selector: selectors.BaseSelector) -> None:
        if pipe is self._process.stdin:
            try:
                self._unsent = self._unsent[os.write(pipe.fileno(), self._unsent[:_READ_SIZE]) :]
            except BlockingIOError:
                return
            except BrokenPipeError:  # it does not want to read: its exit status says whether that is well
                self._unsent = memoryview(b"")
            if not self._unsent:
                selector.unregister(pipe)
                pipe.close()
            return
        piece = os.read(pipe.fileno(), _READ_SIZE)
        if not piece:
            selector.unregister(pipe)
            return
        self._keep(pipe, piece)
        *lines, self._partial[pipe] = _LINE_END.split(self._partial[pipe] + piece)
        if len(self._partial[pipe]) > _READ_SIZE:  # data without line ends: passed on in pieces
            lines.append(self._partial[pipe])
            self._partial[pipe] = b""
        for line in lines:
            if line:
                self._line(pipe, line)

    def _keep(self, pipe: IO[bytes], piece: bytes) -> None:
        kept = self._output[pipe]
        kept += piece
        if len(kept) <= MOST_OUTPUT:
            return
        if self._on_line is None:
            name = Path(str(self._process.args[0])).name  # type: ignore[index]
            raise ToolError(f"{name} was ended: it printed more than {MOST_OUTPUT >> 20} MiB")
        del kept[: MOST_OUTPUT // 2]  # a caller that takes the lines needs only the last ones

    def _line(self, pipe: IO[bytes], raw: bytes) -> None:
        line = raw.decode("utf-8", "backslashreplace")
        self.last.append(line)
        if self._on_line is not None:
            self._on_line(line)
        elif pipe is self._process.stderr:  # stdout may be a value, and a value may be secret
            log.debug(said(line), tool=Path(str(self._process.args[0])).name)  # type: ignore[index]

    def _wait(self) -> bool:
        """The end of a program that has closed its output."""
        while self._process.poll() is None:
            self._raise_if_stopped()
            left = _TICK if self._deadline is None else min(_TICK, self._deadline - time.monotonic())
            if left <= 0:
                return False
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(left)
        return True

    def _raise_if_stopped(self) -> None:
        if self._stop is not None and self._stop.is_set():
            raise ToolError(f"{Path(str(self._process.args[0])).name} was stopped")  # type: ignore[index]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the program's group, SIGKILL to what is left of it; a second Ctrl-C skips the patience."""
    try:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERM_GRACE)
        until = time.monotonic() + ORPHAN_GRACE
        while _signal_group(process.pid, 0) and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: int) -> bool:
    """True when somebody of the group is still there."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # a member that changed its user: not ours to end
        return True
    return True


def _failure(completed: Completed, last: Sequence[str], hint: str) -> ToolError:
    name, code = _name(completed.argv), completed.returncode
    details = _details(completed.argv, last)
    if code >= 0:
        return ToolError(f"{name} failed with exit code {code}:", hint=hint, details=details)
    try:
        signal_name = signal.Signals(-code).name
    except ValueError:
        signal_name = f"signal {-code}"
    if code == -signal.SIGKILL and not hint:
        hint = "SIGKILL that nobody sent is the kernel out of memory: see dmesg, or give the job more memory"
    return ToolError(f"{name} was ended by {signal_name}:", hint=hint, details=details)


def _name(words: Sequence[str]) -> str:
    return Path(words[0]).name


def _details(words: Sequence[str], last: Sequence[str]) -> list[str]:
    """The line to paste, then what the program printed last, without its terminal colours."""
    return [f"  $ {shlex.join(words)}", *(f"  | {shown(said(line), longest=_LONGEST_LINE)}" for line in last)]
