"""Statistics of the rows of a sweep: means, intervals, shares of the lost accuracy recovered."""

import json
import math
import statistics
from typing import NamedTuple

from faults import NO_FAULT, unrepaired
from report.rows import SAME, columns_of, fault_in, order

Z95 = statistics.NormalDist().inv_cdf(0.975)
# 97.5 % quantiles of Student's t for 2, 3, … runs; for more than 20 runs the last one is used, a little too large
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)
LEAST_LOSS = 3.0  # percentage points of accuracy; if a fault costs less, no share recovered is given
EXTRAS = (
    "flipped",
    "recovered",
    "psnr",
    "broken",
    "changed",
    "mcnemar",
    "size",
)  # fields of a Summary whose column is empty in some rows


class Summary(NamedTuple):
    """All runs of one measurement. Accuracies in %."""

    runs: int
    n: int  # images
    mean: float
    std: float | None  # of the runs' accuracies, sample standard deviation; None for a single run
    low: float  # of the 95 % interval
    high: float
    top5: float
    flipped: float | None  # mean share of binary weights flipped, 0 to 1
    recovered: float | None  # mean share of the broken bits that have their original value, 0 to 1
    psnr: float | None  # of the images against the clean ones, dB, mean of the runs
    broken: float | None  # mean number of images that the intact net alone classifies rightly: silent data corruption
    changed: float | None  # mean number of images whose predicted class changes
    mcnemar: float | None  # p of the repair against no repair, mean of the runs
    size: float | None  # cells that can break
    won: float | None = None  # share of the accuracy lost to a random bit that the repair recovers; below 0: harm


def interval(mean, std, runs, n):
    """The 95 % interval of a mean accuracy (%) over `runs` runs on the same n images: (low, high), %.

    It combines two errors, taken as independent: the choice of test images (Wilson's score interval for n images;
    more runs do not narrow it), and the random faults of the runs (Student's t over the runs).
    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    share = mean / 100
    center = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    drawn = 0.0 if std is None else T95[min(runs - 2, len(T95) - 1)] * std / math.sqrt(runs)
    below, above = (
        math.hypot(100 * (share - (center - half)), drawn),
        math.hypot(100 * (center + half - share), drawn),
    )
    return max(0.0, mean - below), min(100.0, mean + above)


def summarize(rows):
    """{Fault of run 0: Summary over its runs}, in the order of the faults."""
    groups = {}
    for row in sorted(rows, key=lambda row: order(fault_in(row))):
        groups.setdefault(fault_in(row)._replace(run=0), []).append(row)
    summaries = {fault: _summary(runs) for fault, runs in groups.items()}
    return {fault: summary._replace(won=_won(fault, summaries)) for fault, summary in summaries.items()}


def _won(fault, summaries):
    """Share of the lost accuracy that a repair recovers; None without a repair, or for too small a loss."""
    faulty = summaries.get(unrepaired(fault))
    if (fault.repair or fault.protection) is None or faulty is None or NO_FAULT not in summaries:
        return None
    lost = summaries[NO_FAULT].mean - faulty.mean
    return (summaries[fault].mean - faulty.mean) / lost if lost >= LEAST_LOSS else None


def _summary(runs):
    n = runs[0]["n"]
    accuracies = [100 * row["correct"] / n for row in runs]
    mean = statistics.fmean(accuracies)
    top5 = statistics.fmean(100 * row["correct5"] / n for row in runs)
    std = statistics.stdev(accuracies) if len(runs) > 1 else None
    known = [[row[name] for row in runs if row[name] is not None] for name in EXTRAS]
    extras = [statistics.fmean(values) if values else None for values in known]
    return Summary(len(runs), n, mean, std, *interval(mean, std, len(runs), n), top5, *extras)


def summary_json(rows):
    """The text of a session's summary.json, from its rows."""
    cells = []
    for fault, figures in summarize(rows).items():
        known = {column: value for column, value in columns_of(fault).items() if value is not None and column != "run"}
        measured = {key: value for key, value in figures._asdict().items() if value is not None and key != "n"}
        cells.append({**known, **{key: round(value, 6) for key, value in measured.items()}})
    return json.dumps({**{key: rows[0][key] for key in SAME}, "cells": cells}, indent=1) + "\n"
