#!/usr/bin/env bash
# Train; test clean, faulty, repaired by the neighbouring bit, and repaired by the MSB; print a table; sweep all faults.
#
#   ./run.sh                  CIFAR-10 (the same as ./run.sh cifar10), downloaded on first use
#   ./run.sh demo             a small synthetic set: no download, a few minutes
#   ./run.sh tiny_imagenet    Tiny-ImageNet, after python3 trans.py
#   ./run.sh cifar100
#   ./run.sh folder           images in class folders of your own: name their folder in DATA below (docs/extending.md)
#   ./run.sh test             runs the tests; ./run.sh check: checks the style
#   ./run.sh finn             export the CIFAR-10 net and run FINN's build steps on it, without vendor tools
#   ./run.sh finn tiny_imagenet      the same for Tiny-ImageNet; words after it are passed to finn_flow.py
#   TRAIN=0 ./run.sh          no training; WSCONV=1 and SWEEP=0 can be set in the same way
#
# Words after the data set are passed to train_smaller.py: ./run.sh cifar10 --faulty_bit 5 --resume
set -euo pipefail
unset CDPATH # with CDPATH, cd could lead elsewhere
cd -- "$(dirname -- "$(readlink -f -- "$0")")"

SESS=""         # checkpoint names, one or several; empty: <data set>_smaller, with WSCONV=1 <data set>_smaller_wsconv
SEED="11111"    # one or several
TRAIN=${TRAIN:-1} # 1: train anew (--resume continues an interrupted training); 0: evaluate the checkpoint, or the packed one
EPOCHS=""       # empty: those of train_smaller.py
WSCONV=${WSCONV:-0} # 1: weight standardisation
FAULTS="baseline faulty repaired_n repaired_s" # rows of the table; FAULTY_BIT, NEIGHBOR_OFFSET: see CIFARDataset.py
NOISE=""        # sigma_val of weight noise, one or several: a row each, the mean of 10 runs
SWEEP=${SWEEP:-1} # 1: after the table sweep.py measures all bits, repairs, rates and weight faults into results/; 0: no sweep
RUNS=""         # of each random fault in the sweep; empty: as in sweep.py, for the demo set 3
REPAIRS=""      # in the sweep, which then measures nothing else; empty: all faults, and all repairs but the offline ones
DATA="data"     # folder of all data sets; with ./run.sh folder: of the data set itself
PROCESSES=1     # if more than one, one for each GPU: training is data-parallel, the sweep is divided among them

# keep freed buffers in the process, in huge pages: training on CPUs is faster (glibc only; no effect elsewhere)
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=8589934592}

fail() { echo "error: $1" >&2; exit 1; }

# environment FOLDER REQUIREMENTS WHAT OPTION…: makes FOLDER with the packages in the file REQUIREMENTS, unless it was
# made from the same file before. WHAT: for the message; OPTION: of pip
environment() {
    local folder=$1 requirements=$2 what=$3 python
    shift 3
    cmp -s "$requirements" "$folder/requirements.installed" && "$folder/bin/python" -c "" 2>/dev/null && return
    if command -v flock >/dev/null; then # one at a time
        exec 9>"$folder.lock"
        flock -n 9 || { echo "waiting for another run.sh that sets up $folder"; flock 9; }
        cmp -s "$requirements" "$folder/requirements.installed" && return
    fi
    [ ! -e "$folder" ] || [ -e "$folder/requirements.installed" ] || [ -e "$folder/made-by-run.sh" ] ||
        fail "$folder was not made by run.sh: move it away and run this again"
    for python in python3.12 python3.11 python3 python; do
        "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && break
        python=
    done
    [ -n "$python" ] || fail "needs Python 3.11 or 3.12 with its venv module (on Debian: apt install python3-venv)"
    echo "setting up $folder with $("$python" --version): $what"
    rm -rf "$folder"
    mkdir "$folder"
    touch "$folder/made-by-run.sh"
    "$python" -m venv "$folder"
    local quiet=--quiet
    [ -t 1 ] && quiet=
    "$folder/bin/python" -m pip install --disable-pip-version-check $quiet "$@" -r "$requirements" ||
        fail "the packages could not be installed; run this again to try once more"
    cp "$requirements" "$folder/requirements.installed"
    exec 9>&-
}

setup() { environment .venv requirements.txt "PyTorch and its libraries, about 5.5 GB"; }

launch() { .venv/bin/python ${LAUNCH[@]+"${LAUNCH[@]}"} "$@"; }

# runs one evaluation and prints a row of the table: setting and accuracy, or – if the repair or the noise is impossible
measure() {
    local result status=0 what
    result=$(mktemp)
    .venv/bin/python train_smaller.py "$@" --result "$result" >&2 || status=$?
    if [ $status = 0 ]; then
        what=$(.venv/bin/python -c 'import json, sys; found = json.load(open(sys.argv[1])); print(found["setting"], format(found["top1"], ".3f"), sep="|")' "$result" 2>/dev/null) ||
            fail "train_smaller.py wrote no result"
        row "${what%|*}" "${what#*|}"
    elif [ $status = 3 ]; then
        what=${*: -2} # --mem_fault or --noise, and its value
        what=${what#--mem_fault }
        row "${what#--}" "–"
    fi
    rm "$result"
    [ $status = 0 ] || [ $status = 3 ] || exit 1
}

row() { printf '| %-44s | %9s |\n' "$@"; }

is_dataset() { grep -qF "    \"$1\": DataSet(" datasets/__init__.py; } # is there a row in the table of data sets?

suffix=
wsconv=--no-wsconv
[ "$WSCONV" = 1 ] && suffix=_wsconv wsconv=--wsconv

dataset=${1:-cifar10}
[ $# -gt 0 ] && shift
case $dataset in
-h | --help | help)
    sed -n '2,/^set /s/^# \{0,1\}//p' run.sh
    exit
    ;;
-*) fail "$dataset comes after the data set: ./run.sh cifar10 $dataset" ;;
check)
    setup
    .venv/bin/ruff check .
    exec .venv/bin/ruff format --check .
    ;;
test)
    setup
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # as many tests at once as there are cores, a thread each
    exec .venv/bin/python -m pytest -n auto "$@" tests
    ;;
finn)
    dataset=${1:-cifar10}
    [ $# -gt 0 ] && shift
    is_dataset "$dataset" || fail "'$dataset' is no data set: finn demo, cifar10, cifar100, tiny_imagenet or folder"
    setup
    for sess in ${SESS:-${dataset}_smaller$suffix}; do
        for seed in $SEED; do
            .venv/bin/python export_finn.py --sess "$sess" --seed "$seed" --data "$DATA"
            environment .venv-finn requirements-finn.txt "FINN's build steps, 400 MB" --no-deps
            .venv-finn/bin/python finn_flow.py "export_finn/ckpt.t7.${sess}_$seed.qonnx.onnx" "$@"
        done
    done
    exit
    ;;
*) is_dataset "$dataset" || fail "'$dataset' is unknown: demo, cifar10, cifar100, tiny_imagenet, folder, test, check or finn" ;;
esac
for word in "$@"; do
    [ "$word" != any ] && [ "$word" != --faulty_bit=any ] ||
        fail "--faulty_bit any is for training alone: .venv/bin/python train_smaller.py --train, then TRAIN=0 $0"
    case ${word%%=*} in
    --train | --dataset) fail "$word is up to run.sh: TRAIN at its top, and the data set as its first word" ;;
    --pad) fail "--pad is for training alone, under a name of its own: .venv/bin/python train_smaller.py --train --pad -1 --sess ${dataset}_smaller_pad; then edit SESS" ;;
    --data) fail "$word: edit DATA at the top of run.sh" ;;
    --export_finn) fail "$word: ./run.sh finn $dataset does that, after the training" ;;
    --noise) [ "$TRAIN" = 0 ] || fail "--noise is for evaluations: edit NOISE at the top of run.sh, for a row each" ;;
    --result) fail "$word is what run.sh itself reads: .venv/bin/python train_smaller.py --result" ;;
    --holdout) fail "--holdout is for trials of a recipe: .venv/bin/python train_smaller.py --train --holdout" ;;
    --sess | --seed | --wsconv | --no-wsconv) fail "$word names the checkpoint: edit SESS, SEED or WSCONV at the top of run.sh" ;;
    esac
done
setup

LAUNCH=()
[ "$PROCESSES" -gt 1 ] && LAUNCH=(-m torch.distributed.run --nproc_per_node "$PROCESSES")

# the words that an evaluation uses, too; without a training, all words are for the evaluation
heeded=("$@")
if [ "$TRAIN" = 1 ]; then
    heeded=() keep=
    for word in "$@"; do
        case $word in
        --faulty_bit | --neighbor_offset | --workers) heeded+=("$word") keep=1 ;;
        --faulty_bit=* | --neighbor_offset=* | --workers=*) heeded+=("$word") keep= ;;
        --fold | --no-fold | --channels_last | --no-channels_last) heeded+=("$word") keep= ;;
        --*) keep= ;;
        *) [ -z "$keep" ] || heeded+=("$word") ;;
        esac
    done
fi

tables=
SESS=${SESS:-${dataset}_smaller$suffix}
for sess in $SESS; do
    for seed in $SEED; do
        options=(--dataset "$dataset" --data "$DATA" --sess "$sess" --seed "$seed")
        [ "$TRAIN" = 1 ] && launch train_smaller.py --train "${options[@]}" $wsconv ${EPOCHS:+--epochs "$EPOCHS"} "$@"
        rows=
        for fault in $FAULTS; do
            rows+=$(measure "${options[@]}" ${heeded[@]+"${heeded[@]}"} --mem_fault "$fault")$'\n'
            export CIFAR_WARNED=1 # so that it shows its warning only once
        done
        for noise in $NOISE; do
            rows+=$(measure "${options[@]}" ${heeded[@]+"${heeded[@]}"} --mem_fault baseline --noise "$noise")$'\n'
        done
        tables+=$'\n'$(row "${sess}_$seed" "acc. (%)")$'\n'"|$(printf -- '-%.0s' {1..46})|$(printf -- '-%.0s' {1..10}):|"$'\n'$rows
    done
done
echo "$tables"
if [ "$SWEEP" = 1 ]; then
    [ "$dataset" = demo ] && RUNS=${RUNS:-3}
    replace=
    [ "$TRAIN" = 1 ] && replace=--replace # moves away the results of the net before this training
    launch sweep.py --data "$DATA" --sess $SESS --seed $SEED ${RUNS:+--runs "$RUNS"} ${REPAIRS:+--repair $REPAIRS} $replace
fi
