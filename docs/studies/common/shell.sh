# Sourced by the shell scripts of the studies: names their command for the results and shares two functions.
# shellcheck shell=bash

printf -v STUDY_COMMAND '%q ' "$0" "$@"
export STUDY_COMMAND # see provenance.py

few() { # FROM TO: copy 200 images of each class, the first by name; links are followed
  local class
  for class in "$1"/*/; do
    mkdir -p "$2/$(basename "$class")"
    find -L "$class" -type f | sort | sed -n 1,200p | xargs cp -t "$2/$(basename "$class")"
  done
}

overlay() { # NAME: make the keys of common/NAME.toml an array NAME of `--set` flags
  local words
  words=$("${python:?}" -m docs.studies.common.overlay "docs/studies/common/$1.toml")
  mapfile -t "$1" <<<"$words"
}
