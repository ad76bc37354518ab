"""Shared by all parts: command line, files written whole, digests. Standard library only."""

from common.cli import Parser, UserError, bit_or_any, first_line, processes, rank, run, within
from common.digest import code_digest, content_digest, digest
from common.files import as_path, check_writable, keep_old, locked, write_bytes, write_text, written_whole
