#!/usr/bin/env bash
# Make docs/studies/cifar10/results.json: CIFAR-10 on a CPU, a public ResNet-20 or -32 -> ResNet-8, three presets at
# equal steps, and edgekd and pre-dfkd with and without a start from the teacher's layers and hints, which only edgekd
# has by itself.
#
#   docs/studies/cifar10/run.sh TEACHER DATA RUNS [MINUTES]
#
# TEACHER is cifar10-resnet20.th or -resnet32.th of akamaster/pytorch_resnet_cifar10, DATA holds cifar10/test as class
# folders, RUNS is a folder for runs; edgekd gets MINUTES (45) and its steps go to the others. Two runs at a time, one
# thread each: the machine should have two cores and do nothing else. Every command goes on where it was cut off. No
# choice depends on the test images: they are read for the curves, 200 of each class at each of 101 points, and at the
# end all of them.
set -euo pipefail
source docs/studies/common/shell.sh
teacher=$1 data=$2 runs=$3 minutes=${4:-45}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$runs"
export OMP_NUM_THREADS=1

curve=$runs/curve # all 10,000 at every point would take as long as a third of the training
few "$data/cifar10/test" "$curve"

overlay lean
overlay cifar
distil() { # NAME FLAGS...
  local name=$1
  shift
  "$python" -m edgekd distill "$teacher" --student resnet8 --normalize imagenet --data "$curve" --threads 1 \
    --run "$runs/$name" "$@" "${cifar[@]}"
  "$python" -m edgekd eval "$runs/$name" --data "$data/cifar10/test"
}
head_start=(--set method.student.inherit=true --set method.student.hint=5)
random_start=(--set method.student.inherit=false --set method.student.hint=0)

{
  distil edgekd --minutes "$minutes"
  steps=$(sed -n 's/^steps = //p' "$runs/edgekd/recipe.toml")
  distil edgekd-early-replay --steps "$steps" --set method.vae.gate=0.3
  distil edgekd-random-start --steps "$steps" "${random_start[@]}"
} &
steps=0
until test "${steps:-0}" -gt 0; do # known once a step has been timed
  kill -0 $!
  sleep 1
  steps=$(sed -n 's/^steps = //p' "$runs/edgekd/recipe.toml" 2>/dev/null || true)
done
for preset in pre-dfkd dfad; do
  distil "$preset" --method "$preset" --steps "$steps" "${lean[@]}"
done
distil pre-dfkd-head-start --method pre-dfkd --steps "$steps" "${lean[@]}" "${head_start[@]}"
wait $!

labelled=()
for run in edgekd pre-dfkd dfad edgekd-early-replay edgekd-random-start pre-dfkd-head-start; do
  labelled+=("$run=$runs/$run")
done
out=${OUT:-docs/studies/cifar10}
"$python" -m docs.studies.common.collect "$out/results.json" "$out/curves.svg" "${labelled[@]}" \
  --note "$minutes minutes; curves on 2,000 of CIFAR-10's test images, evals on all 10,000"
