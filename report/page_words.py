"""The words that stand at a figure of the page: its value, and where it comes from."""


def value_of(cell):
    """The accuracy of a Cell with its interval, runs and images, in one line."""
    figures = cell.figures
    runs = "1 run" if figures.runs == 1 else f"{figures.runs} runs"
    spread = "" if figures.std is None else f" ± {figures.std:.3f}"
    interval = f"[{figures.low:.2f}, {figures.high:.2f}]"
    return f"{figures.mean:.3f}{spread} % {interval}, {runs}, {figures.n} images"


def what_of(cell):
    """What was broken and how it was repaired, in one line."""
    fault = cell.fault
    share = f", {fault.level:g} of the plane" if fault.bit is not None and fault.level < 1 else ""
    return f"{fault}{share}"


def source_of(cell):
    """(where a Cell's figure stands, the command that measures it)"""
    return cell.row, cell.command
