"""page.py: its figures against the csv module and arithmetic by hand, and what it does in a browser."""

import csv
import json
import math
import random
import re
import shutil
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

import page
from faults import Cells, Fault, fault_of_cells
from repairs import with_protection
from report.page import write_page
from report.page_plots import pareto_front, plots_of
from report.page_tables import lost_at
from report.sessions import command, read_sessions

ROOT = Path(__file__).resolve().parent.parent
SESSION = "cifar10_smaller_40epochs_11111"
OTHERS = ("cifar10_smaller_flip_11111", "cifar10_smaller_more_11111")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
KEYS = ("fault", "bit", "repair", "source", "level")


def copy_sessions(results, *names):
    for name in names:
        (results / name).mkdir(parents=True)
        shutil.copy(ROOT / "results" / name / "sweep.csv", results / name)


def groups_of(path):
    """{(fault, bit, repair, source, level): [(line of the file, row), …]} of a sweep.csv, by the csv module."""
    groups = defaultdict(list)
    with open(path, newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            groups[tuple(row[key] for key in KEYS)].append((number, row))
    return groups


def mean_of(rows):
    return sum(100 * int(row["correct"]) / int(row["n"]) for _, row in rows) / len(rows)


class Tables(HTMLParser):
    """The tables of a page: .tables is {id of its div: [[text of a cell, …], …]}; .titles: their title attributes."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.titles, self.at, self.cell = {}, {}, None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "div" and attrs.get("id", "").startswith("table-"):
            self.at = attrs["id"]
            self.tables[self.at], self.titles[self.at] = [], []
        elif tag == "tr":
            self.tables[self.at].append([])
            self.titles[self.at].append([])
        elif tag in ("td", "th"):
            self.cell = ""
            self.titles[self.at][-1].append(attrs.get("title", ""))

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self.at][-1].append(" ".join(self.cell.split()))
            self.cell = None


@pytest.fixture
def made(tmp_path):
    """A page of three sessions without pictures: its text."""
    copy_sessions(tmp_path / "results", SESSION, *OTHERS)
    path, left_out = write_page(Path("results"), "nowhere")
    assert path == Path("results/index.html") and left_out == []
    return path.read_text("utf-8")


def test_ten_cells_drawn_at_random_are_those_of_the_csv(made):
    groups = groups_of(Path("results") / SESSION / "sweep.csv")
    content = json.loads(re.search(r'id="content">(.*?)</script>', made, re.S)[1])
    cells = {cell["text"][2]: cell for cell in content["cells"]}
    planes = [key for key in groups if key[0] in ("random", "stuck_at_0", "stuck_at_1")]
    for key in random.Random(5).sample(planes, 10):
        rows = groups[key]
        lines = [number for number, _ in rows]
        where = f"line {lines[0]}" if len(lines) == 1 else f"lines {lines[0]} to {lines[-1]}"
        cell = cells[f"results/{SESSION}/sweep.csv, {where}"]
        assert cell["y"] == pytest.approx(mean_of(rows), abs=1e-4)
        assert f"{len(rows)} run" in cell["text"][1] and f"{mean_of(rows):.3f}" in cell["text"][1]
        assert "--sess cifar10_smaller_40epochs --seed 11111" in cell["text"][3]


def test_tables_show_the_means_of_the_csv_and_name_their_lines(made):
    groups = groups_of(Path("results") / SESSION / "sweep.csv")
    tables = Tables(made)
    rows, titles = tables.tables["table-0-0"], tables.titles["table-0-0"]
    assert rows[0][:3] == ["accuracy (%)", "no fault", "bit 7"]
    for label, key in (("median", "median"), ("colors", "colors"), ("faulty (random)", "")):
        place = next(number for number, row in enumerate(rows) if row[0] == label)
        for column, bit in enumerate("76543210", 2):
            found = groups["random", bit, key, "", "1.0"]
            assert rows[place][column].startswith(f"{mean_of(found):.3f}")
            assert re.search(rf"sweep.csv, lines? {found[0][0]}\b", titles[place][column])
            assert f"--bits {bit} --repair" in titles[place][column]


def test_the_table_of_nets(made):
    rows = Tables(made).tables["table-nets"]
    nets = {row[0]: dict(zip(rows[0], row)) for row in rows[1:]}
    assert list(nets) == [SESSION, *OTHERS]
    groups = groups_of(Path("results") / SESSION / "sweep.csv")
    net = nets[SESSION]
    assert net["no fault (%)"].startswith(f"{mean_of(groups['none', '', '', '', '']):.2f} [")
    assert net["checkpoint"] == "62719f6cfee9a802" and net["epochs"] == "–"  # no checkpoint in this folder
    offline = ("color_scans", "color_mean", "color_field", "variation", "learned", "learned_mean", "taught")
    for bit in "765":
        found = {key: mean_of(rows) for key, rows in groups.items() if key[:2] == ("random", bit) and key[4] == "1.0"}
        assert net[f"bit {bit} random (%)"].startswith(f"{found['random', bit, '', '', '1.0']:.2f}")
        for heading, names in ((f"bit {bit}, best cheap repair (%)", False), (f"bit {bit}, best offline (%)", True)):
            best = max((mean, key[2]) for key, mean in found.items() if key[2] and (key[2] in offline) == names)
            assert net[heading].startswith(f"{best[0]:.2f}") and net[heading].endswith(best[1])
    clean = mean_of(groups["none", "", "", "", ""])
    low, high = mean_of(groups["noise", "", "", "", "0.2"]), mean_of(groups["noise", "", "", "", "0.4"])
    assert low > clean - 5 > high
    assert float(net["σ_val absolute"]) == pytest.approx(0.2 + 0.2 * (low - clean + 5) / (low - high), abs=0.006)


def test_where_five_points_are_lost_on_a_logarithmic_scale(made):
    (session, *_), _ = read_sessions(Path("results"))
    groups = groups_of(Path("results") / SESSION / "sweep.csv")
    clean = mean_of(groups["none", "", "", "", ""])
    levels = sorted(float(key[4]) for key in groups if key[0] == "flips")
    means = [mean_of(groups["flips", "", "", "", str(level)]) for level in levels]
    after = next(number for number, mean in enumerate(means) if mean <= clean - 5)
    share = (means[after - 1] - clean + 5) / (means[after - 1] - means[after])
    wanted = 10 ** (math.log10(levels[after - 1]) * (1 - share) + math.log10(levels[after]) * share)
    assert lost_at(session, "flips").sort == pytest.approx(wanted)


def test_trainings_come_from_the_table_of_the_results_folder(tmp_path):
    copy_sessions(tmp_path / "results", *OTHERS)
    shutil.copy(ROOT / "results/trainings.csv", tmp_path / "results")
    text = write_page(Path("results"), "nowhere")[0].read_text("utf-8")
    rows = Tables(text).tables["table-nets"]
    assert rows[2][3:5] == ["6", "fine-tuned; no fault"] and rows[1][3:5] == ["–", "–"]


def test_a_checkpoint_says_what_it_was_trained_for(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    copy_sessions(tmp_path / "results", *OTHERS)
    text = write_page(tmp_path / "results", "nowhere")[0].read_text("utf-8")
    rows = Tables(text).tables["table-nets"]
    assert rows[1][3:5] == ["6", "fine-tuned; 5 % of the weights flipped"]
    assert str(tmp_path) not in text  # no absolute path


def test_damaged_and_foreign_files_are_left_out_and_named(made, run_script):
    whole = (Path("results") / SESSION / "sweep.csv").read_bytes()
    bad = {
        "cut": whole[:-40],
        "foreign": b"name,age\nAda,36\n",
        "empty": b"",
        "binary": bytes(range(256)) * 2000,
        "mixed": whole + (Path("results") / OTHERS[0] / "sweep.csv").read_bytes().split(b"\n", 1)[1],
        "unknown": whole.replace(b"\ncifar10,", b"\nno_such,"),
        "<b>&markup": b"x",
    }
    for name, data in bad.items():
        Path("results", name).mkdir()
        Path("results", name, "sweep.csv").write_bytes(data)
    status, out, err = run_script(page, "--data", "nowhere")
    assert status == 0 and err == ""
    text = Path("results/index.html").read_text("utf-8")
    listed = re.findall(r"<li>(results/.*?)</li>", text)
    assert len(listed) == len(bad) == out.count("left out: ")
    assert all(any(f"results/{name}/" in line for line in listed) for name in bad if "<" not in name)
    assert any("results/&lt;b&gt;&amp;markup/sweep.csv" in line for line in listed) and "<b>&markup" not in text
    assert len(Tables(text).tables["table-nets"]) == 4


def test_folders_that_a_sweep_has_put_away_are_not_shown(made):
    Path("results", SESSION).rename(Path("results", f"{SESSION}.old2"))
    sessions, left_out = read_sessions(Path("results"))
    assert [session.name for session in sessions] == list(OTHERS) and left_out == []


def test_names_of_sessions_are_escaped_everywhere(tmp_path):
    name = "</script><img src=x onerror=alert(1)>"
    copy_sessions(tmp_path / "results", SESSION)
    path = tmp_path / "results" / SESSION / "sweep.csv"
    path.write_text(path.read_text().replace("cifar10_smaller_40epochs", "</script><img src=x>"))
    # a folder's name cannot hold a slash
    path.parent.rename(path.parent.with_name(name.replace("/", "")))
    text = write_page(Path("results"), "nowhere")[0].read_text("utf-8")
    assert "<img" not in text and "&lt;script&gt;&lt;img src=x onerror=alert(1)&gt;" in text


def test_it_ends_in_one_line_where_there_is_nothing_to_show(run_script):
    status, _, err = run_script(page)
    assert status == 1 and err.startswith("error: results is not there") and err.count("\n") == 1
    Path("results/x").mkdir(parents=True)
    Path("results/x/sweep.csv").write_text("nonsense\n")
    status, _, err = run_script(page)
    assert status == 1 and "results/x/sweep.csv" in err and err.count("\n") == 1


def test_without_a_data_set_it_says_so(made):
    assert "No pictures of CIFAR-10: the data set is not in nowhere/." in made and 'id="picture"' not in made


def test_it_is_small_and_names_no_other_place(made):
    assert len(made.encode()) < 12e6
    own = re.sub(r"<script>.*?</script>", "", made, flags=re.S)  # plotly's own code names some
    assert "http:" not in own and "https:" not in own


def test_commands_of_a_session():
    same = {"sess": "net_tested_without_wsconv", "seed": 3}
    assert command(same) == ".venv/bin/python sweep.py --no-wsconv --sess net --seed 3"
    same = {"sess": "net", "seed": 3}
    base = ".venv/bin/python sweep.py --sess net --seed 3"
    assert command(same, Fault("random", 6, level=1.0), 10) == f"{base} --bits 6 --repair --runs 10"
    assert command(same, Fault("random", 6, "repaired_s", 7, 1.0)) == f"{base} --bits 6 --repair repaired_s"
    assert command(same, Fault("random", 6, level=0.01)) == f"{base} --rate 0.01 --rate_bits 6"
    assert command(same, Fault("noise_relative", level=0.2), 3) == f"{base} --sigma 0.2 --runs 3"
    assert command(same, Fault("flips", level=1e-4)) == f"{base} --flip 0.0001"


def test_the_pareto_front():
    points = [(0, 5.0), (0, 7.0), (2, 7.0), (3, 9.0), (4, 8.0), (9, 9.5)]
    assert pareto_front(points) == [(0, 7.0), (3, 9.0), (9, 9.5)]


def test_memory_added_is_plotted_where_protections_were_measured(made):
    (session, *_), _ = read_sessions(Path("results"))
    assert "added" not in [plot.name for plot in plots_of([session])["plots"]]
    bare = fault_of_cells(Cells("image"), "inverted", 0.01)
    cells = list(session.cells.values())
    means = [cell.figures.mean for cell in cells]
    low, high = cells[means.index(min(means))], cells[means.index(max(means))]
    session.cells[bare] = low._replace(fault=bare)
    guarded = with_protection(bare, "secded", "median")
    session.cells[guarded] = high._replace(fault=guarded)
    (plot,) = (plot for plot in plots_of([session])["plots"] if plot.name == "added")
    ((options, figure),) = plot.figures.items()
    assert options == (session.name, "persistent", "0.01")
    lines = {line["name"]: line["x"] for line in figure["lines"]}
    assert lines == {"nothing": [0], "secded + median": [0.125], "Pareto front": [0, 0.125]}


def test_commands_of_faults_of_cells():
    same = {"sess": "net", "seed": 3}
    base = ".venv/bin/python sweep.py --sess net --seed 3"
    cells = Cells("weights", layers=("conv1", "fc2"), lines="row", array=(512, 64))
    fault = fault_of_cells(cells, "asymmetric", 0.01, p01=0.5, p10=0.25)
    assert command(same, fault, 2) == (
        f"{base} --memory weights --ber 0.01 --reading asymmetric --cells persistent --p01 0.5 --p10 0.25 "
        "--layers conv1 fc2 --lines row --array 512x64 --runs 2"
    )
    planes = Cells("image", planes=((7, 1.0), (6, 1.0)), persistent=False)
    assert command(same, fault_of_cells(planes, "random", 1.0)) == (
        f"{base} --memory image --ber 1 --reading random --cells transient --planes 7+6"
    )
    secded = with_protection(fault_of_cells(Cells("image"), "inverted", 0.01), "secded", "median")
    assert command(same, secded) == (
        f"{base} --memory image --ber 0.01 --reading inverted --cells persistent --protection secded --repair median"
    )
