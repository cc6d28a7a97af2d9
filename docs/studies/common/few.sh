# Sourced by ablation.sh, cifar.sh and gpu.py: a small part of a set of images, for curves of a hundred points.
# shellcheck shell=bash

few() { # FROM TO: copy 200 images of each class, the first by name; links are followed
  local class
  for class in "$1"/*/; do
    mkdir -p "$2/$(basename "$class")"
    find -L "$class" -type f | sort | sed -n 1,200p | xargs cp -t "$2/$(basename "$class")"
  done
}
