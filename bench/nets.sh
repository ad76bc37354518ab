#!/usr/bin/env bash
# Trains, packs and sweeps a teacher, nets distilled from it, one of them with WS, and four tuned to faults.
#
#   bench/nets.sh cifar10                    # one after the other
#   JOBS=4 bench/nets.sh cifar10             # four at a time, for one GPU
#   JOBS=2 SEEDS=11111 bench/nets.sh tiny_imagenet
#   OPTIONS="--no-compile --batch-size 512" JOBS=4 bench/nets.sh cifar10    # options of train_smaller.py for each net
#
# Several trainings share a GPU well only through NVIDIA's multi-process service (nvidia-cuda-mps-control -d).
# An interrupted training goes on when the script is run again. Logs, nets and results are in nets/<data set>/.

set -euo pipefail
dataset=${1:?usage: bench/nets.sh DATASET}
jobs=${JOBS:-1}
seeds=${SEEDS:-"11111 12348 13579"}
epochs=${EPOCHS:-$([ "$dataset" = cifar10 ] && echo 100 || echo 44)}
teacher_epochs=${TEACHER_EPOCHS:-60}

root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$root/nets/$dataset"
cd "$root/nets/$dataset"
python=${PYTHON:-$root/.venv/bin/python}
data=(--data "$root/data")
teacher=checkpoint/teacher.${dataset}_11111.pt

train() { # train NAME SEED OPTIONS...: trains or goes on, packs, sweeps with noise while the latent weights are there
  local name=$1 seed=$2
  shift 2
  local checkpoint=checkpoint/ckpt.t7.${name}_$seed.pth log=$name.$seed.log
  local resume=() options
  read -ra options <<< "${OPTIONS:-}"
  [ -e "$checkpoint" ] && resume=(--resume)
  "$python" "$root/train_smaller.py" "${data[@]}" --train --sess "$name" --seed "$seed" --dataset "$dataset" "$@" \
    "${options[@]}" "${resume[@]}" >> "$log" 2>&1
  "$python" "$root/pack.py" "${data[@]}" --sess "$name" --seed "$seed" --about "bench/nets.sh $dataset" >> "$log" 2>&1
  "$python" "$root/sweep.py" "${data[@]}" --sess "$name" --seed "$seed" --sigma 0 0.2 0.4 0.6 0.8 1 >> "$log" 2>&1
  echo "$name, seed $seed: $(grep accuracy "checkpoint/ckpt.t7.${name}_$seed.packed.txt")"
}
export -f train
export root python dataset teacher

stage() { # stage: runs the lines of its input, `jobs` at a time
  xargs -P "$jobs" -d '\n' -I{} bash -euc 'data=(--data "$root/data"); {}'
}

[ -e "$teacher" ] || "$python" "$root/train_teacher.py" "${data[@]}" --dataset "$dataset" --epochs "$teacher_epochs"
distilled="--epochs $epochs --teacher $teacher"
{
  for seed in $seeds; do echo "train ${dataset}_smaller $seed $distilled"; done
  echo "train ${dataset}_smaller_wsconv 11111 $distilled --wsconv"
} | stage
tuned="--teacher $teacher --pretrained checkpoint/ckpt.t7.${dataset}_smaller_11111.packed.pth --epochs $((epochs / 4 + 1))"
{
  echo "train ${dataset}_smaller_flip 11111 $tuned --train_flip 0.05"
  echo "train ${dataset}_smaller_midpoint_any 11111 $tuned --mem_fault midpoint --faulty_bit any"
  echo "train ${dataset}_smaller_median_any 11111 $tuned --mem_fault median --faulty_bit any"
  echo "train ${dataset}_smaller_color_field_any 11111 $tuned --mem_fault color_field --faulty_bit any"
} | stage
