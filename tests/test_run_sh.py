"""run.sh as a whole, in a copy of the project, with a small demo set and net and a tiny schedule."""

import csv
import re
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def project(tmp_path, root):
    """A copy of the project whose environment is this Python."""
    copy = tmp_path / "project"
    left = shutil.ignore_patterns(".venv*", ".git", "data", "checkpoint", "results", "export_finn", "__pycache__")
    shutil.copytree(root, copy, ignore=left)
    (copy / ".venv" / "bin").mkdir(parents=True)
    launcher = copy / ".venv" / "bin" / "python"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    launcher.chmod(0o755)
    shutil.copy(copy / "requirements.txt", copy / ".venv" / "requirements.installed")
    demo = copy / "datasets" / "demo.py"
    demo.write_text(demo.read_text().replace(": 1000", ": 48"))
    layers = "conv=((64, False), (64, True), (128, False), (128, True), (256, False), (256, False)),"
    edit(copy, "models/cnv.py", layers, "conv=((16, True), (32, True)),")
    return copy


def call(project, *words):
    result = subprocess.run([project / "run.sh", *words], capture_output=True, text=True, cwd="/", timeout=280)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("word", ("--help", "-h", "help"))
def test_help_is_the_head_of_the_script(project, word):
    code, out, err = call(project, word)
    assert (code, err) == (0, "") and out.startswith("Train; test clean") and "\n  ./run.sh demo  " in out
    assert out.endswith("./run.sh cifar10 --faulty_bit 5 --resume\n")


STUB = """#!/bin/sh
# stands in for Python: makes an environment of stubs, and notes what is installed
echo "$*" >> "{log}"
case "$*" in
*"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


def test_environment_is_made_once_and_again_when_the_requirements_change(project, tmp_path, monkeypatch):
    shutil.rmtree(project / ".venv")
    log = tmp_path / "log"
    stub = tmp_path / "bin" / "python3.12"
    stub.parent.mkdir()
    stub.write_text(STUB.format(log=log))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:/usr/bin:/bin")

    def installs():
        code, _, err = call(project, "test")
        assert code == 0, err
        lines = log.read_text().splitlines()
        log.unlink()
        assert lines[-1] == "-m pytest -n auto tests"
        return sum("pip install" in line and "-r requirements.txt" in line for line in lines)

    assert [installs(), installs()] == [1, 0]
    edit(project, "requirements.txt", "tqdm", "# the bar\ntqdm")
    assert [installs(), installs()] == [1, 0]


def test_an_environment_of_someone_else_is_left_alone(project):
    (project / ".venv" / "requirements.installed").unlink()
    code, out, err = call(project, "test")
    assert code == 1 and out == ""
    assert err == "error: .venv was not made by run.sh: move it away and run this again\n"
    assert (project / ".venv" / "bin" / "python").exists()


def test_cdpath_does_not_lead_elsewhere(project, tmp_path):
    """A folder of the same name where CDPATH looks first."""
    (project / ".venv" / "bin" / "python").write_text("#!/bin/sh\npwd\n")
    other = tmp_path / "elsewhere" / project.name
    shutil.copytree(project, other)
    result = subprocess.run(
        [f"{project.name}/run.sh", "test"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"CDPATH": str(other.parent), "PATH": "/usr/bin:/bin"},
    )
    assert set(result.stdout.splitlines()) == {str(project)}, result.stderr


def test_which_words_an_evaluation_gets(project, tmp_path):
    """After a training, the words that an evaluation uses; without one, all words: a wrong one is an error."""
    log = tmp_path / "log"
    launcher = project / ".venv" / "bin" / "python"
    launcher.write_text(
        f'#!/bin/sh\necho "$@" >> "{log}"\nfor word; do :; done\n'
        """case "$*" in *--result*) echo '{"setting": "x", "top1": 1.0}' > "$word" ;; esac\n"""
        f'case "$1" in -c) exec "{sys.executable}" "$@" ;; esac\n'
    )
    words = ["--epochs", "2", "--faulty_bit", "5", "--resume", "--neighbor_offset", "-3", "--lr=0.1", "--no-fold"]
    edit(project, "run.sh", "SWEEP:-1", "SWEEP:-0")
    assert call(project, "demo", *words)[0] == 0
    train, *evaluations = [line for line in log.read_text().splitlines() if line.startswith("train_smaller.py")]
    assert all(word in train.split() for word in words)
    assert len(evaluations) == 4
    for line in evaluations:
        assert " --faulty_bit 5 --neighbor_offset -3 --no-fold --mem_fault " in line
    log.unlink()
    edit(project, "run.sh", "TRAIN:-1", "TRAIN:-0")
    assert call(project, "demo", *words)[0] == 0
    assert all(" ".join(words) in line for line in log.read_text().splitlines() if line.startswith("train_smaller.py"))


def edit(project, file, old, new):
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new))


def test_demo_from_training_to_the_tables(project):
    edit(project, "run.sh", 'RUNS=""', 'RUNS="1"')
    code, out, err = call(project, "demo", "--epochs", "2")
    assert code == 0, err
    assert "epoch 2/2" in out
    accuracies = re.findall(r"^Avg\. acc\.: (\d+\.\d{3})%$", err, re.M)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == [
        "demo_smaller_11111",
        "-" * 46,
        "baseline, no fault",
        "faulty, bit 6 random",
        "repaired_n, bit 6 copied from bit 5",
        "repaired_s, bit 6 copied from the MSB",
    ]
    assert [row[1] for row in rows[2:]] == accuracies and len(accuracies) == 4
    checkpoint = project / "checkpoint" / "ckpt.t7.demo_smaller_11111.pth"
    saved = checkpoint.read_bytes()
    results = project / "results" / "demo_smaller_11111"
    assert out.endswith(
        "results/demo_smaller_11111: sweep.csv, tables.md, summary.json, plots\nresults/index.html: all sessions\n"
    )
    with open(results / "sweep.csv") as file:
        swept = {
            (row["fault"], row["bit"], row["repair"], row["source"]): row["top1"]
            for row in csv.DictReader(file)
            if row["level"] in ("", "1.0")
        }
    cells = [
        ("none", "", "", ""),
        ("random", "6", "", ""),
        ("random", "6", "repaired_n", "5"),
        ("random", "6", "repaired_s", "7"),
    ]
    assert [f"{float(swept[cell]):.3f}" for cell in cells] == accuracies  # the same as in the short table

    edit(project, "run.sh", "TRAIN:-1", "TRAIN:-0")
    edit(project, "run.sh", "SWEEP:-1", "SWEEP:-0")
    edit(project, "run.sh", 'NOISE="" ', 'NOISE="0.1"')
    edit(project, "run.sh", 'FAULTS="baseline faulty repaired_n repaired_s"', 'FAULTS="repaired_n"')
    edit(project, "run.sh", 'FAULTS="repaired_n"', 'FAULTS="repaired_n repaired_s"')
    edit(project, "CIFARDataset.py", "FAULTY_BIT = 6", "FAULTY_BIT = 7")
    code, out, err = call(project, "demo", "--neighbor_offset", "-3")
    assert code == 0, err
    assert "epoch" not in out and checkpoint.read_bytes() == saved
    assert re.search(r"^\| repaired_n, bit 7 copied from bit 4 +\| +\d+\.\d{3} \|$", out, re.M)
    assert re.search(r"^\| repaired_s +\| +– \|$", out, re.M) and "cannot repair bit 7" in err
    assert re.search(r"^\| baseline, no fault, noise sigma_val 0.1 +\| +\d+\.\d{3} \|$", out, re.M)

    words = ["--data", "data", "--sess", "demo_smaller"]
    packing = subprocess.run([sys.executable, "pack.py", *words], capture_output=True, text=True, cwd=project)
    assert packing.returncode == 0, packing.stderr
    checkpoint.unlink()
    code, again, err = call(project, "demo", "--neighbor_offset", "-3")
    assert code == 0, err
    assert "using the packed net" in err and "weight noise needs latent weights" in err
    assert re.search(r"^\| noise 0.1 +\| +– \|$", again, re.M)
    repaired = [line for line in out.splitlines() if "repaired_n" in line]
    assert [line for line in again.splitlines() if "repaired_n" in line] == repaired


@pytest.mark.parametrize(
    "words,complaint",
    [
        (("mnist",), "error: 'mnist' is unknown: demo, cifar10, cifar100, tiny_imagenet, folder, test, check or finn"),
        (("--epochs", "2"), "error: --epochs comes after the data set: ./run.sh cifar10 --epochs"),
        (("tiny_imagenet",), "python3 trans.py says where to get Tiny-ImageNet"),
        (("demo", "--epochs", "-1"), "error: argument --epochs: -1 is out of range: at least 1"),
        (("demo", "--sess=x"), "error: --sess=x names the checkpoint"),
        (("demo", "--pad", "-1"), "error: --pad is for training alone"),
        (("demo", "--data=x"), "error: --data=x: edit DATA"),
        (("demo", "--export_finn"), "error: --export_finn: ./run.sh finn demo does that"),
        (("demo", "--noise", "0.5"), "error: --noise is for evaluations: edit NOISE"),
        (("demo", "--result", "x"), "error: --result is what run.sh itself reads"),
    ],
)
def test_bad_input_ends_the_chain_with_one_line(project, words, complaint):
    code, out, err = call(project, *words)
    lines = [line for line in err.splitlines() if "cpp_extension" not in line]
    assert code != 0 and out == "" and len(lines) == 1 and complaint in lines[0]
