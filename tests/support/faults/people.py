"""Do something as another user: in a child process that gives root's rights away first."""

from __future__ import annotations

import os
from collections.abc import Callable

from pipeline.errors import SqshpipeError


def as_user(uid: int, action: Callable[[], object], *, group: int, umask: int = 0o077) -> str:
    """What stood in the way of `action` (the error with its hint), or nothing; `group` is the only one."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = "the action ended the process"
        try:
            os.setgroups([group])
            os.setgid(group)
            os.setuid(uid)
            os.umask(umask)
            action()
            outcome = ""
        except SqshpipeError as error:
            outcome = f"{type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001 - the test shows it
            outcome = f"unforeseen {error!r}"
        finally:
            os.write(writer, outcome.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        outcome = pipe.read().decode()
    os.waitpid(child, 0)
    return outcome
