#!/usr/bin/env bash
# Make docs/results/arm64.json: a bundle checked and measured on an emulated arm64 Linux, by root on Debian or Ubuntu.
#
#   docs/arm64.sh RUN ROOT     RUN is a run with an export, ROOT a folder for the arm64 system (made if missing)
#
# Needs debootstrap and qemu-user-static. The system is Debian's own packages unpacked, its Python runs the bundle with
# onnxruntime's arm64 wheel; every process is translated by qemu-aarch64, so that the numerics are ARM's and the times
# say nothing about any board.
set -euo pipefail
run=$1 root=$2
python=${PYTHON:-.venv/bin/python}
binfmt=/proc/sys/fs/binfmt_misc

if ! test -x "$root/usr/bin/python3"; then
  debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm "$root"
  for package in "$root"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
fi
if ! test -d "$root/opt/site/onnxruntime"; then
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 --dest "$root/opt" onnxruntime numpy
  for wheel in "$root"/opt/*.whl; do "$python" -m zipfile -e "$wheel" "$root/opt/site"; done
fi

# The kernel hands arm64 programs to qemu, which F loads now, so that it is found inside the other root too.
test -e "$binfmt/register" || mount -t binfmt_misc binfmt_misc "$binfmt"
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
test -e "$binfmt/qemu-aarch64" || printf '%s' ":qemu-aarch64:M::$magic:$mask:/usr/bin/qemu-aarch64-static:F" >"$binfmt/register"
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
trap 'umount "$root/proc"' EXIT

mkdir -p "$root/work"
"$python" -m edgekd bundle "$run" --output "$root/work/student.pyz"
for verb in check bench; do
  chroot "$root" /usr/bin/env -C /work PYTHONPATH=/opt/site python3 student.pyz "$verb"
done
cp "$root/work/results.json" docs/results/arm64.json
