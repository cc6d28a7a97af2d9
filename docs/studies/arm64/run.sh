#!/usr/bin/env bash
# Make docs/studies/arm64/results.json: a bundle checked and measured on an emulated arm64 Linux, by root on Debian or
# Ubuntu.
#
#   docs/studies/arm64/run.sh RUN ROOT
#
# RUN is a run after `edgekd export --int8`, ROOT a folder for the system (made if missing). Needs debootstrap, qemu-user-static and Linux 6.7. The system is Debian's own packages unpacked, its Python runs the
# bundle with onnxruntime's arm64 wheel; every process is translated by qemu-aarch64, so that kernels, formats and
# rounding are ARM's and the times say nothing about any board.
set -euo pipefail
source docs/studies/common/shell.sh
run=$1 root=$2
python=${PYTHON:-.venv/bin/python}

for tool in debootstrap qemu-aarch64-static unshare; do
  command -v "$tool" >/dev/null || { echo "no $tool here: apt-get install debootstrap qemu-user-static util-linux" >&2; exit 6; }
done

if test -z "${EMULATED:-}"; then
  if ! test -x "$root/usr/bin/python3"; then
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm "$root"
    for package in "$root"/var/cache/apt/archives/*.deb; do
      dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --keep-directory-symlink
    done
  fi
  if ! test -d "$root/opt/site/onnxruntime"; then
    pins=$(sed -n 's/^ *"\(\(onnxruntime\|numpy\)==[^"]*\)",$/\1/p' pyproject.toml) # the versions all else is measured with
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
      --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
      --platform manylinux2014_aarch64 --dest "$root/opt" $pins
    for wheel in "$root"/opt/*.whl; do "$python" -m zipfile -e "$wheel" "$root/opt/site"; done
  fi
  mkdir -p "$root/work"
  "$python" -m edgekd bundle "$run" --output "$root/work/student.pyz"
  "$python" -m zipfile -l "$root/work/student.pyz" | grep -q int8-cpu-arm ||
    { echo "$run has no int8-cpu-arm file: edgekd export $run --int8" >&2; exit 4; }
  # What is mounted and registered below exists in namespaces of its own, and is gone when they end.
  EMULATED=yes unshare --user --map-root-user --mount --uts --pid --fork --mount-proc "$0" "$run" "$root"
  "$python" -m docs.studies.common.provenance "$root/work/results.json" docs/studies/arm64/results.json "$run"
  exit
fi

# The kernel hands arm64 programs to qemu, which F loads now, so that it is found inside the other root too.
mount -t binfmt_misc binfmt_misc "$root/run"
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >"$root/run/register"

# In a container debootstrap links /proc to the one outside. qemu 7 shows the host's cpuinfo; ONNX Runtime and edgekd
# read an ARM's features there. /sys stays away: with the host's, ONNX Runtime crashed when it was imported.
if test -L "$root/proc"; then rm "$root/proc" && mkdir "$root/proc"; fi
mount -t proc proc "$root/proc"
for ((cpu = 0; cpu < $(nproc); cpu++)); do
  printf 'processor\t: %d\nmodel name\t: emulated (qemu-aarch64)\nFeatures\t: fp asimd asimdhp asimddp\n\n' "$cpu"
done >"$root/opt/cpuinfo"
mount --bind "$root/opt/cpuinfo" "$root/proc/cpuinfo"
hostname emulated-arm64

for verb in check bench; do
  chroot "$root" /usr/bin/env -C /work PYTHONPATH=/opt/site python3 student.pyz "$verb"
done
