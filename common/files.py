"""Files and folders that are there whole or not at all."""

import os
import shutil
from contextlib import contextmanager, suppress

from common.cli import UserError


@contextmanager
def written_whole(path):
    """Yields a temporary path beside `path` at which the block writes a file or makes a folder.

    It replaces what lies at `path` when the block ends without an error, and is removed otherwise. The file is on the
    disk before that. Folders above `path` are made. UserError if the system refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if partial.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename not in (None, str(partial), str(path), str(path.parent)):
            raise  # another file of the block's
        raise UserError(f"{path} cannot be written ({error.strerror})") from None
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file whole, in UTF-8."""
    with written_whole(path) as partial:
        partial.write_text(text, "utf-8")
