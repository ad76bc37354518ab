"""Files and folders that are written whole or not at all, renamed before replacement, and locked while written."""

import os
import platform
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from common.cli import UserError

try:
    import fcntl
except ImportError:  # Windows has no fcntl: nothing is locked there
    fcntl = None


def _partial(path, process):
    if not path.name:
        raise UserError(f"{path} is a folder: name a file in it")
    return path.with_name(f".{path.name}.{process}.partial")


@contextmanager
def written_whole(path):
    """Yields a temporary path beside `path` at which the block writes a file or makes a folder.

    If the block ends without an error, the result replaces what is at `path`; otherwise it is removed. A file is
    flushed to the disk before it replaces another. Missing parent folders are made. Temporary files of killed processes
    are removed. UserError if the system refuses.
    """
    partial = _partial(path, os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield partial
        if partial.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename not in (None, str(partial), str(path), str(path.parent)):
            raise  # the error is about another file that the block uses
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from None
    finally:
        _remove(partial)


def write_text(path, text):
    """Write a text file whole, in UTF-8."""
    with written_whole(path) as partial:
        partial.write_text(text, "utf-8")


def write_bytes(path, data):
    """Write a binary file whole."""
    with written_whole(path) as partial:
        partial.write_bytes(data)


def check_writable(path):
    """UserError if `path` cannot be written; for a check before hours of work."""
    partial = _partial(path, os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None
    finally:
        _remove(partial)


def _remove(partial):
    with suppress(OSError):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _remove_leftovers(path):
    """Remove the temporary files of `path` that ended processes have left."""
    pattern = re.compile(re.escape(path.name).join((r"\.", r"\.(\d+)\.partial")))
    for other in path.parent.iterdir():
        found = pattern.fullmatch(other.name)
        if found and not _alive(int(found[1])):
            _remove(other)


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process is another user's
        return True
    return True


def keep_old(path):
    """Rename a file or folder to <path>.old, an earlier one to .old2, and so on: the newest is <path>.old."""
    if not path.exists():
        return
    number = 1
    while _old(path, number).exists():
        number += 1
    for each in range(number, 1, -1):
        os.rename(_old(path, each - 1), _old(path, each))
    os.rename(path, _old(path, 1))


def _old(path, number):
    return path.with_name(f"{path.name}.old{number if number > 1 else ''}")


@contextmanager
def locked(path, what, wait=False):
    """Locks `path` inside the `with`, so that only one process writes it. `path` need not exist.

    The operating system frees the lock when the process ends. If another process has the lock: waits for it, or
    UserError, naming the holder. what: name of `path` in the message.
    """
    file = path.with_name(f".{path.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = _take(file)
        except BlockingIOError:
            busy = f"{what} is being written by {_holder_of(file)}"
            if not wait:
                raise UserError(f"{busy}: wait for it, or stop it") from None
            print(f"{busy}: waiting for it", flush=True)
            held = _take(file, wait=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        os.close(held)


def _holder_of(file):
    """Which process has a lock, in words."""
    with suppress(OSError):  # it may remove the file just now
        return file.read_text("utf-8", "replace").strip() or "another process"
    return "another process"


def _take(file, wait=False):
    """Takes the lock. Returns its open file descriptor. BlockingIOError if another process has it, unless `wait`."""
    while True:
        held = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl:
                fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(held).st_ino == file.stat().st_ino:  # else the last holder has removed the file in between
                os.truncate(held, 0)
                os.write(held, f"process {os.getpid()} on {platform.node()}\n".encode())
                return held
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(held)
            raise
        os.close(held)


def as_path(text):
    """The Path of a text, in which ~ is the home folder. UserError if there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: {error}") from None
