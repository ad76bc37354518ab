"""The command line of the scripts: options, one clear line for bad input, a clean end on Ctrl-C."""

import argparse
import math
import os
import sys


class UserError(ValueError):
    """Bad input. The message says in one line what is wrong, where, and what to do."""

    status = 1  # exit status of a script that ends with this error


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviated options. A wrong option ends the script with one line, no usage text."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        _end(f"{message} (--help lists the options)", UserError.status)


def within(kind, low=None, high=None, open_low=False):
    """An argparse type: int or float (`kind`) from `low` to `high`; with `open_low`, above `low`."""

    def convert(text):
        try:
            value = kind(text)
            if not math.isfinite(value):
                raise ValueError
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number") from None
        below = low is not None and (value <= low if open_low else value < low)
        if below or (high is not None and value > high):
            bounds = [f"{'above' if open_low else 'at least'} {low}"] if low is not None else []
            bounds += [f"at most {high}"] if high is not None else []
            raise argparse.ArgumentTypeError(f"{text} is out of range: {', '.join(bounds)}")
        return value

    return convert


def bit_or_any(text):
    """An argparse type: the number of a bit, as int, or the word any."""
    try:
        return text if text == "any" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid bit value: {text!r}") from None


def first_line(error):
    """The first line of an exception's message; the name of its class if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run(main):
    """Call main(). Errors of the user or the disk end with one line and the error's status or 1, Ctrl-C with 130."""
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal cannot show becomes ?
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        main()
    except UserError as error:
        _end(error, error.status)
    except OSError as error:
        _end(f"{error.filename or 'input or output'}: {error.strerror or error}", UserError.status)
    except KeyboardInterrupt as interrupt:
        if rank() == 0:
            print(f"\ninterrupted{': ' if interrupt.args else ''}{interrupt}", file=sys.stderr)
        sys.exit(130)


def rank():
    """Number of this process among those that torchrun started; 0 for a single one."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def processes():
    """Number of processes that torchrun started; 1 where it did not, whatever a shell or scheduler has left."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1
    return int(os.environ["WORLD_SIZE"])


def _end(message, status):
    if rank() == 0:  # if several processes find the same error, only the first prints it
        print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
