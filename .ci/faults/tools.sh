#!/usr/bin/env bash
# What the fault runs need beyond Python: installs it, or says what is missing and fails.
set -euo pipefail
missing=()
for tool in qemu-storage-daemon:qemu-system-common mkfs.ext4:e2fsprogs xfs_io:xfsprogs mkfs.xfs:xfsprogs fusermount3:fuse3 \
  strace:strace mount:mount; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
[ "$(id -u)" = 0 ] || { echo "the fault runs mount file systems: run them as root" >&2; exit 1; }
for device in /dev/fuse /dev/loop-control; do
  [ -e "$device" ] || { echo "$device is not there: no image can be mounted" >&2; exit 1; }
done
