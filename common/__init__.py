"""What all parts share: the command line and files written whole. Standard library only."""

from common.cli import Parser, UserError, bit_or_any, run, within
from common.files import write_text, written_whole
