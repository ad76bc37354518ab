"""finn_flow.py and run.sh finn, where FINN is not installed: their messages, and the commands that they call."""

import subprocess
import sys

import numpy as np
import pytest

import finn_flow


@pytest.fixture
def complain(monkeypatch, capsys):
    """Runs the script on bad input; returns the one line that it ends with."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["finn_flow.py", *words])
        with pytest.raises(SystemExit) as exit:
            finn_flow.run(finn_flow.main)
        lines = capsys.readouterr().err.splitlines()
        assert exit.value.code == 1 and len(lines) == 1
        return lines[0]

    return call


def test_bad_input_gets_one_line(tmp_path, complain):
    onnx = pytest.importorskip("onnx")

    def write(name, batch):
        names = ("images", "logits")
        images, logits = (
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, 3, 4, 4]) for name in names
        )
        node = onnx.helper.make_node("Identity", ["images"], ["logits"])
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [images], [logits])), name)

    assert "none.onnx is missing: export_finn.py writes it" in complain("none.onnx")
    write("one.qonnx.onnx", 1)
    assert "one.qonnx.input.npy is missing: export the net once more, without --verify 0" in complain("one.qonnx.onnx")
    assert "fold.json is missing" in complain("one.qonnx.onnx", "--folding", "fold.json")
    assert "--images: 0 is out of range" in complain("one.qonnx.onnx", "--images", "0")
    for kind, values in (("input", np.zeros((2, 3, 4, 4))), ("expected_output", np.zeros((2, 3)))):
        np.save(f"one.qonnx.{kind}.npy", values)
        np.save(f"two.qonnx.{kind}.npy", values)
    write("two.qonnx.onnx", 2)
    assert "takes several images at once, and FINN takes one: export it with --batch 1" in complain("two.qonnx.onnx")
    assert "FINN is not installed here: run it by ./run.sh finn" in complain("one.qonnx.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    assert "damaged.onnx is no file of export_finn.py" in complain("damaged.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert "empty.onnx is no file of export_finn.py" in complain("empty.onnx")
    (tmp_path / "one.qonnx.input.npy").write_bytes(b"no array")
    assert "one.qonnx.input.npy is damaged: export the net once more" in complain("one.qonnx.onnx")


def test_a_package_that_is_left_out_may_be_imported_but_not_used():
    absent = finn_flow._Absent("scipy")
    assert absent.Graph is not None  # FINN names such things at import, as a base class or in a default
    with pytest.raises(RuntimeError, match="Graph is used, of a package that requirements-finn"):
        absent.Graph(3)


STUB = """#!/bin/sh
# stands in for Python: makes an environment of stubs, and notes how it is called
echo "$0 $*" >> "{log}"
case "$*" in
*"-m venv"*) for folder in "$@"; do :; done; mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" ;;
esac
"""


def test_run_sh_exports_and_runs_in_an_environment_of_its_own(tmp_path, root, monkeypatch):
    (tmp_path / "datasets").mkdir()
    for name in ("run.sh", "requirements.txt", "requirements-finn.txt", "datasets/__init__.py"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    (tmp_path / "run.sh").chmod(0o755)
    stub = tmp_path / "bin" / "python3.12"
    stub.parent.mkdir()
    stub.write_text(STUB.format(log=tmp_path / "log"))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:/usr/bin:/bin")
    monkeypatch.setenv("WSCONV", "1")
    result = subprocess.run(
        [tmp_path / "run.sh", "finn", "demo", "--images", "2"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert any(
        line.startswith(".venv-finn/bin/python -m pip install") and "--no-deps -r requirements-finn.txt" in line
        for line in lines
    )
    assert ".venv/bin/python export_finn.py --sess demo_smaller_wsconv --seed 11111 --data data" in lines
    flow = "export_finn/ckpt.t7.demo_smaller_wsconv_11111.qonnx.onnx --images 2"
    assert lines[-1] == f".venv-finn/bin/python finn_flow.py {flow}"
    wrong = subprocess.run([tmp_path / "run.sh", "finn", "mnist"], capture_output=True, text=True, timeout=60)
    assert (
        wrong.returncode == 1
        and wrong.stderr == "error: 'mnist' is no data set: finn demo, cifar10, cifar100, tiny_imagenet or folder\n"
    )
