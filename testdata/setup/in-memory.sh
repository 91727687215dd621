#!/usr/bin/env bash
# in-memory.sh PROGRAM [ARG...]: run a program with its temporary files in memory, if this machine has enough of it and the caller may
# mount. Tests make and remove files by the hundred thousand, and some file systems look the longer for a free inode the more were
# removed just now. What must be seen to work on a disk is run without this.
set -euo pipefail
available=$(awk '/^MemAvailable:/ {print int($2 / 1048576)}' /proc/meminfo)
if [ "$available" -lt 10 ] || ! unshare --mount true 2>/dev/null; then
  exec "$@"
fi
dir=$(mktemp -d /tmp/b.XXXXXX) # short: sockets are made below it
trap 'rmdir "$dir"' EXIT
# The mount is seen by the program alone and goes with it.
unshare --mount sh -c 'dir=$1; shift; mount -t tmpfs -o mode=1777,size=60% build-test "$dir" && export TMPDIR="$dir" && exec "$@"' sh "$dir" "$@"
