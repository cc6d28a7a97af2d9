#!/usr/bin/env bash
# Make docs/studies/mnist/results.json: MNIST, LeNet-5 -> LeNet-5-half, two seeds of 30 minutes and all presets at equal
# steps.
#
#   docs/studies/mnist/run.sh DATA RUNS [STEPS]
#
# DATA holds mnist/train and mnist/test as class folders; RUNS is a folder for runs.
# STEPS is what half an hour holds; without it the runs are planned by `--minutes 30`, which measures a step before the
# other run is at work, and may take longer.
# Every command goes on where it was cut off. The machine should do nothing else meanwhile. No choice depends on the
# test images: they are read for the curves alone.
set -euo pipefail
source docs/studies/common/shell.sh
data=$1 runs=$2
length=(--minutes 30)
test -z "${3:-}" || length=(--steps "$3")
python=${PYTHON:-.venv/bin/python}
mkdir -p "$runs"
pixels=(--input 1x32x32 --mean 0.1307 --std 0.3081)
export OMP_NUM_THREADS=1

test -f "$runs/lenet5.pt" || "$python" recipes/train_teacher.py "$data/mnist/train" "$runs/lenet5.pt" --arch lenet5 \
  "${pixels[@]}" --epochs 40 --shift 2 --rotate 10 --scale 0.1 --hold-out 10000

distil() { # NAME FLAGS...
  local name=$1
  shift
  "$python" -m edgekd distill "$runs/lenet5.pt" --student lenet5-half "${pixels[@]}" --data "$data/mnist/test" \
    --threads 1 --run "$runs/$name" "$@"
  "$python" -m edgekd eval "$runs/$name" --data "$data/mnist/test"
}

# At equal steps: as many as edgekd manages in ten minutes, three tenths of that for the rest.
overlay lean
equal() { # PRESET MINUTES
  local steps sets=()
  steps=$(sed -n 's/^steps = //p' "$runs/edgekd-30min-seed2/recipe.toml")
  test "$1" = edgekd || sets=("${lean[@]}")
  distil "$1-$2min" --method "$1" --steps $((steps * $2 / 30)) "${sets[@]}"
}

# Two runs at a time on two cores, one thread each.
{
  distil edgekd-30min-seed1 "${length[@]}" --seed 1
  equal edgekd 10
  equal edgekd 3
  equal dafl 3
} &
distil edgekd-30min-seed2 "${length[@]}" --seed 2
equal pre-dfkd 10
equal dfad 10
equal memory-bank 3
equal pre-dfkd-released 3
wait $!

labelled=()
for run in edgekd-30min-seed1 edgekd-30min-seed2 edgekd-10min pre-dfkd-10min dfad-10min \
  edgekd-3min dafl-3min memory-bank-3min pre-dfkd-released-3min; do
  labelled+=("$run=$runs/$run")
done
out=docs/studies/mnist
"$python" -m docs.studies.common.collect "$out/results.json" "$out/curves.svg" "${labelled[@]}" \
  --note "accuracies on MNIST's 10,000 test images; how often they were opened: README.md"
