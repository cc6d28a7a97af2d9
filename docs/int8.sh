#!/usr/bin/env bash
# Make docs/results/int8.json: what INT8 files are calibrated on, on four students.
#
#   docs/int8.sh TEACHER DATA RUNS MNIST CIFAR [MINUTES]
#
# TEACHER is cifar10-resnet32.th of akamaster/pytorch_resnet_cifar10; DATA holds mnist and cifar10, each with train and
# test as class folders; RUNS is a folder for runs; MNIST is a run of docs/mnist.sh and CIFAR one of docs/cifar.sh
# (ResNet-8). Distilled here are the quickstart's student and, in MINUTES (30), a MobileNetV2 of half its width. Every
# command goes on where it was cut off.
set -euo pipefail
teacher=$1 data=$2 runs=$3 mnist=$4 cifar=$5 minutes=${6:-30}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$runs"

test -d "$runs/digits" || "$python" recipes/quickstart/digits.py "$runs/digits"
ln -sfn heldout "$runs/digits/test"
"$python" -m edgekd run recipes/quickstart.toml --run "$runs/quickstart"
"$python" -m edgekd distill "$teacher" --student mobilenetv2@0.5 --normalize imagenet --minutes "$minutes" \
  --run "$runs/cifar-mobilenetv2"
for run in "$runs/cifar-mobilenetv2" "$mnist" "$cifar"; do
  "$python" -m edgekd export "$run" --int8 || test $? -eq 5 # a file below its gate is part of the result
done

"$python" docs/int8.py docs/results/int8.json "$runs/quickstart=$runs/digits" "$mnist=$data/mnist" \
  "$cifar=$data/cifar10" "$runs/cifar-mobilenetv2=$data/cifar10"
