#!/usr/bin/env bash
# in-memory.sh PROGRAM [ARG...]: run a program with its temporary files in memory, if this machine has enough of it and the caller may
# mount. Tests make and remove files by the hundred thousand, and some file systems look the longer for a free inode the more were
# removed just now. What must be seen to work on a disk is run without this.
set -euo pipefail
available=$(awk '/^MemAvailable:/ {print int($2 / 1048576)}' /proc/meminfo)
dir=$(mktemp -d /tmp/b.XXXXXX) # short: sockets are made below it
trap 'rmdir "$dir"' EXIT
mount='mount -t tmpfs -o mode=1777,size=60% build-test "$0"'
if [ "$available" -lt 10 ] || ! unshare --mount sh -c "$mount" "$dir" 2>/dev/null; then
  "$@"
  exit
fi
# The mount is seen by the program alone and goes with it.
TMPDIR=$dir unshare --mount sh -c "$mount"' && exec "$@"' "$dir" "$@"
