#!/usr/bin/env bash
# Make docs/results/cifar10.json: CIFAR-10 on a CPU, a public ResNet-20 or -32 -> ResNet-8, three presets at equal steps.
#
#   docs/cifar.sh TEACHER DATA RUNS [MINUTES]
#
# TEACHER is cifar10-resnet20.th or -resnet32.th of akamaster/pytorch_resnet_cifar10, DATA holds cifar10/test as class
# folders, RUNS is a folder for runs; edgekd gets MINUTES (45) and its steps go to the others. Every command goes on
# where it was cut off. The machine should do nothing else meanwhile. No choice depends on the test images: they are read
# for the curves, 200 of each class at each of 101 points, and at the end all of them. THREADS=1 leaves a core to others.
set -euo pipefail
teacher=$1 data=$2 runs=$3 minutes=${4:-45}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$runs"

curve=$runs/curve # all 10,000 at every point would take as long as a third of the training
source docs/few.sh
few "$data/cifar10/test" "$curve"

# Half the usual batches for every preset: on a CPU, twice the steps in the same time.
batches=(--set method.student.batch_size=64 --set method.replay.batch_size=64
  --set method.vae.novel=32 --set method.vae.rehearsed=16)
distil() { # NAME FLAGS...
  local name=$1
  shift
  "$python" -m edgekd distill "$teacher" --student resnet8 --normalize imagenet --data "$curve" \
    --run "$runs/$name" ${THREADS:+--threads "$THREADS"} "$@" "${batches[@]}"
  "$python" -m edgekd eval "$runs/$name" --data "$data/cifar10/test"
}

distil edgekd --minutes "$minutes"
steps=$(sed -n 's/^steps = //p' "$runs/edgekd/recipe.toml")
source docs/lean.sh
for preset in pre-dfkd dfad; do
  distil "$preset" --method "$preset" --steps "$steps" "${lean[@]}"
done

"$python" docs/collect.py docs/results/cifar10.json docs/results/cifar10.svg \
  "edgekd=$runs/edgekd" "pre-dfkd=$runs/pre-dfkd" "dfad=$runs/dfad" \
  --note "docs/cifar.sh TEACHER DATA RUNS $minutes; curves on 2,000 of CIFAR-10's test images, evals on all 10,000, opened for this table alone"
