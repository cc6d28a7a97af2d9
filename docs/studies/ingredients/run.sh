#!/usr/bin/env bash
# Make docs/studies/ingredients/results.json: what each ingredient is worth, on MNIST at 16x16 pixels.
#
#   docs/studies/ingredients/run.sh DATA RUNS [STEPS]
#
# DATA holds mnist/train as class folders; RUNS is a folder for runs.
# The teacher is resnet8@0.5, which has BatchNorm, the student lenet5-half; both are small, so that forty runs fit
# into an hour. Accuracies are those of 2,000 of the 10,000 training images that the teacher did not see: they may choose
# the default. Two runs at a time, one thread each. Every command goes on where it was cut off.
set -euo pipefail
source docs/studies/common/shell.sh
data=$1 runs=$2 steps=${3:-400}
python=${PYTHON:-.venv/bin/python}
pixels=(--input 1x16x16 --mean 0.1307 --std 0.3081)
mkdir -p "$runs"
export OMP_NUM_THREADS=1

if ! test -f "$runs/resnet8.pt"; then
  "$python" recipes/train_teacher.py "$data/mnist/train" "$runs/resnet8.pt" --arch resnet8@0.5 "${pixels[@]}" \
    --epochs 10 --shift 1 --hold-out 10000 --development "$runs/development"
fi
few "$runs/development" "$runs/images"

"$python" -m docs.studies.ingredients.ablate docs/studies/ingredients/results.json "$runs/resnet8.pt" "$runs/images" \
  "$runs" --steps "$steps" --jobs 2 --student lenet5-half "${pixels[@]}" --threads 1
