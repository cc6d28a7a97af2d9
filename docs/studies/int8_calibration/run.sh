#!/usr/bin/env bash
# Make docs/studies/int8_calibration/results.json: what INT8 files are calibrated on.
#
#   docs/studies/int8_calibration/run.sh TEACHER DATA RUNS [LABEL=RUN=SET...]
#
# TEACHER is cifar10-resnet20.th or -resnet32.th of akamaster/pytorch_resnet_cifar10; DATA holds the sets, mnist and
# cifar10 among them, each with train and test as class folders; RUNS is a folder for runs. Each RUN is a finished one
# whose images are SET, such as one of the studies of MNIST and CIFAR-10; it gets its INT8 files. Distilled here
# are the quickstart's student and, in MINUTES (30), STUDENT (mobilenetv2@0.5) from TEACHER. A run, teacher or set that
# does not exist is left out with a word, and with MINUTES=0 the latter student. FLAGS go to compare.py, such as
# "--test-limit 2000". Every command goes on where it was cut off.
set -euo pipefail
source docs/studies/common/shell.sh
teacher=$1 data=$2 runs=$3
shift 3
python=${PYTHON:-.venv/bin/python}
minutes=${MINUTES:-30} student=${STUDENT:-mobilenetv2@0.5} out=${OUT:-docs/studies/int8_calibration/results.json}
read -ra flags <<<"${FLAGS:-}"
STUDY_COMMAND="MINUTES=$minutes STUDENT=$student FLAGS='${flags[*]}' $STUDY_COMMAND"
mkdir -p "$runs"

tolerant() { # COMMAND...: a file below its gate is part of the result
  "$@" || test $? -eq 5
}

if ! test -d "$runs/digits"; then
  rm -rf "$runs/digits.partial"
  "$python" recipes/quickstart/digits.py "$runs/digits.partial"
  mv "$runs/digits.partial" "$runs/digits"
fi
ln -sfn heldout "$runs/digits/test"
tolerant "$python" -m edgekd run recipes/quickstart.toml --run "$runs/quickstart"
studied=("quickstart=$runs/quickstart=$runs/digits")

if test "$minutes" = 0 || ! test -f "$teacher" || ! test -d "$data/cifar10"; then
  echo "run.sh: $student is left out: MINUTES is 0, or there is no $teacher or no $data/cifar10" >&2
else
  overlay cifar
  run=$runs/cifar-${student//[^a-z0-9.-]/-}
  "$python" -m edgekd distill "$teacher" --student "$student" --normalize imagenet --minutes "$minutes" --run "$run" \
    "${cifar[@]}"
  set -- "$@" "cifar-$student=$run=cifar10"
fi

for item in "$@"; do
  IFS== read -r label run set <<<"$item"
  if ! test -f "$run/recipe.toml" || ! test -d "$data/$set/test"; then
    echo "run.sh: $label is left out: there is no run $run or no $data/$set/test" >&2
    continue
  fi
  tolerant "$python" -m edgekd export "$run" --int8
  studied+=("$label=$run=$data/$set")
done

"$python" -m docs.studies.int8_calibration.compare "$out" "${studied[@]}" "${flags[@]}"
