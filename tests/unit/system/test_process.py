from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import ToolError
from pipeline.system import process
from pipeline.system.process import Completed, run, which

PYTHON = sys.executable


def python(code: str) -> list[str]:
    return [PYTHON, "-c", code]


def gone(pid: int, *, within: float = 5.0) -> bool:
    """True once a process has ended (a zombie that waits for its parent has)."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def parent_and_child(folder: Path) -> list[str]:
    """A program that starts another one, writes both pids, says so and waits."""
    return python(
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([{PYTHON!r}, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(folder / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )


def pids(folder: Path) -> list[int]:
    return [int(word) for word in (folder / "pids").read_text().split()]


def test_gives_back_both_outputs_and_the_exit_code() -> None:
    done = run(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_argv_is_passed_as_it_is_without_a_shell(tmp_path: Path) -> None:
    done = run([*python("import sys; print(sys.argv[1:])"), "$HOME; `id` *", tmp_path])
    assert done.stdout == f"{['$HOME; `id` *', str(tmp_path)]}\n"


def test_stdin_is_empty_unless_given() -> None:
    assert run(python("import sys; print(len(sys.stdin.read()))")).stdout == "0\n"


def test_stdin_larger_than_a_pipe_while_output_comes_back() -> None:
    payload = os.urandom(1 << 20).hex().encode()
    done = run(
        python("import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"), stdin=payload
    )
    assert done.stdout.encode() == payload


def test_a_program_that_does_not_read_its_stdin_is_no_error() -> None:
    assert (
        run(python("import sys; sys.stdin.close(); print('done')"), stdin=b"x" * (1 << 20)).stdout == "done\n"
    )


def test_env_replaces_and_extra_env_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQSHPIPE_TEST", "outer")
    show = python("import os; print(os.environ.get('SQSHPIPE_TEST'), os.environ.get('MORE'))")
    assert run(show, extra_env={"MORE": "1"}).stdout == "outer 1\n"
    assert run(show, env={"PATH": os.defpath}, extra_env={"MORE": "1"}).stdout == "None 1\n"


def test_runs_in_the_folder_asked_for(tmp_path: Path) -> None:
    assert run(python("import os; print(os.getcwd())"), cwd=tmp_path).stdout == f"{tmp_path.resolve()}\n"


def test_a_missing_folder_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no such folder"):
        run(python("pass"), cwd=tmp_path / "missing")


def test_lines_arrive_while_the_program_runs() -> None:
    came: list[tuple[str, float]] = []
    code = "import sys, time; print('one', flush=True); time.sleep(1); print('two', file=sys.stderr)"
    run(python(code), on_line=lambda line: came.append((line, time.monotonic())))
    assert [line for line, _ in came] == ["one", "two"]
    assert came[1][1] - came[0][1] > 0.5


def test_carriage_returns_end_a_line_and_blank_lines_are_left_out() -> None:
    lines: list[str] = []
    done = run(python("import sys; sys.stdout.write('10%\\r20%\\r\\n\\nlast')"), on_line=lines.append)
    assert lines == ["10%", "20%", "last"]
    assert done.stdout == "10%\r20%\r\n\nlast"


def test_on_line_is_called_in_the_callers_thread() -> None:
    threads: set[int] = set()
    run(python("print(1)"), on_line=lambda _line: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}


def test_bytes_that_are_not_utf8_are_shown_escaped() -> None:
    assert run(python("import sys; sys.stdout.buffer.write(b'a\\xff\\n')")).stdout == "a\\xff\n"


def test_failure_holds_a_line_to_paste_the_last_lines_and_the_hint() -> None:
    code = "import sys\nfor i in range(100): print('line', i)\nsys.exit(7)"
    with pytest.raises(ToolError) as caught:
        run([*python(code), "with space"], hint="do this")
    message = caught.value.message
    assert message.startswith(f"{Path(PYTHON).name} failed with exit code 7:\n  $ ")
    assert "'with space'" in message
    assert message.endswith("  | line 99")
    assert "line 88" in message
    assert "line 87\n" not in message
    assert caught.value.hint == "do this"


def test_failure_shows_no_terminal_escapes() -> None:
    with pytest.raises(ToolError) as caught:
        run(python("print('\\x1b[31mred\\x1b[0m \\x07bell \\x1b]0;title'); raise SystemExit(1)"))
    assert "  | red \\x07bell \\x1b]0;title" in caught.value.details
    assert "\x1b" not in caught.value.message
    assert "\x07" not in caught.value.message


def test_environment_and_stdin_stay_out_of_the_failure() -> None:
    with pytest.raises(ToolError) as caught:
        run(python("raise SystemExit(1)"), extra_env={"TOKEN": "hunter2"}, stdin=b"hunter3")
    assert "hunter" not in str(caught.value)


def test_a_signal_is_named() -> None:
    with pytest.raises(ToolError, match="ended by SIGSEGV"):
        run(python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    with pytest.raises(ToolError, match="ended by SIGKILL") as caught:
        run(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert "memory" in caught.value.hint


def test_a_missing_program_is_one_sentence() -> None:
    with pytest.raises(ToolError, match="no-such-tool is not installed") as caught:
        run(["no-such-tool", "--version"], hint="apt install no-such-tool")
    assert caught.value.hint == "apt install no-such-tool"


def test_a_program_that_may_not_run_is_one_sentence(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(b"\x00\x01 not a program")
    tool.chmod(0o755)
    with pytest.raises(ToolError, match=r"cannot run .*tool"):
        run([tool])


def test_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ToolError, match="did not finish within 1 s"):
        run(parent_and_child(tmp_path), timeout=1)
    assert time.monotonic() - started < 10
    assert all(gone(pid) for pid in pids(tmp_path))


def test_timeout_counts_for_a_program_that_closed_its_output() -> None:
    with pytest.raises(ToolError, match="did not finish within"):
        run(python("import os, time; os.close(1); os.close(2); time.sleep(60)"), timeout=0.5)


class StopReadingError(Exception):
    pass


def test_an_exception_in_on_line_ends_the_group(tmp_path: Path) -> None:
    def stop(_line: str) -> None:
        raise StopReadingError

    with pytest.raises(StopReadingError):
        run(parent_and_child(tmp_path), on_line=stop)
    assert all(gone(pid) for pid in pids(tmp_path))


def test_ctrl_c_ends_the_group(tmp_path: Path) -> None:
    def interrupt(_line: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(parent_and_child(tmp_path), on_line=interrupt)
    assert all(gone(pid) for pid in pids(tmp_path))


def test_what_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERM_GRACE", 0.3)
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(str(os.getpid()));"
        "print('ready', flush=True); time.sleep(60)"
    )

    def stop(_line: str) -> None:
        raise StopReadingError

    with pytest.raises(StopReadingError):
        run(python(code), on_line=stop)
    assert all(gone(pid) for pid in pids(tmp_path))


def test_sigterm_comes_first_so_that_a_program_can_tidy_up(tmp_path: Path) -> None:
    tidied = tmp_path / "tidied"
    code = (
        "import signal, sys, time\n"
        f"def tidy(*_): open({str(tidied)!r}, 'w').close(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, tidy); print('ready', flush=True); time.sleep(60)"
    )

    def stop(_line: str) -> None:
        raise StopReadingError

    with pytest.raises(StopReadingError):
        run(python(code), on_line=stop)
    assert tidied.exists()


def test_a_daemon_left_behind_does_not_hold_us(tmp_path: Path) -> None:
    code = (
        "import subprocess\n"
        f"child = subprocess.Popen([{PYTHON!r}, '-c', 'import time; time.sleep(20)'])\n"
        "print(child.pid)"
    )
    started = time.monotonic()
    done = run(python(code))
    assert time.monotonic() - started < 10
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(done.stdout), signal.SIGKILL)
    assert done.stdout.strip().isdigit()


def test_no_file_descriptor_is_left_open() -> None:
    run(python("pass"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        run(python("print(1)"), stdin=b"x")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_which_looks_in_path_and_sbin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "made-up-tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert which("made-up-tool", hint="") == tool
    monkeypatch.setattr(process, "_MORE_PATH", (str(tmp_path),))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert which("made-up-tool", hint="") == tool
    with pytest.raises(ToolError, match="other-tool is not installed") as caught:
        which("other-tool", hint="install it")
    assert caught.value.hint == "install it"


def test_completed_is_a_value() -> None:
    same = Completed(argv=("a",), returncode=0, stdout="", stderr="")
    assert same == Completed(argv=("a",), returncode=0, stdout="", stderr="")


@pytest.mark.parametrize("stream", [1, 2])
def test_a_program_that_prints_for_ever_is_ended(stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST_OUTPUT", 1 << 20)
    with pytest.raises(ToolError, match="sh was ended: it printed more than 1 MiB"):
        process.run(["sh", "-c", f"yes {'x' * 10_000} >&{stream}"], check=False, timeout=60)


def test_of_lines_that_are_taken_only_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST_OUTPUT", 1 << 20)
    count = 0

    def take(_line: str) -> None:
        nonlocal count
        count += 1

    done = process.run(["seq", "1000000"], on_line=take)
    assert count == 1_000_000
    assert len(done.stdout) <= 1 << 20
    assert done.stdout.endswith("\n999999\n1000000\n")


def test_a_line_without_end_is_cut_in_the_error() -> None:
    with pytest.raises(ToolError) as failed:
        process.run(["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 3"])
    assert len(failed.value.message) < 5000
