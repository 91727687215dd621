#!/usr/bin/env bash
# bases.sh [DIR]: make the base images of the tests as OCI layouts, tag "latest", once:
#   DIR/busybox   one static busybox with its applets, a passwd and a group file
#   DIR/debian    mmdebstrap's minbase from this machine's own package sources
#   DIR/toolchain the same with a C compiler: what the demo builds in
# DIR is outside the repository (default /var/cache/build-test) and survives `make clean`; remove it to start over.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:-${BUILD_TEST_CACHE:-/var/cache/build-test}}
want=${BASES:-busybox debian}
mkdir -p "$dir"
exec 9>"$dir/.lock"
flock 9   # several `make test` at once make each base once

tmp=$(mktemp -d "$dir/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

# layout NAME TAR CMD: publish a one-layer OCI layout. The rename makes a half-made one invisible.
layout() {
  local out=$tmp/$1.layout
  umoci init --layout "$out"
  umoci new --image "$out:latest"
  umoci raw add-layer --image "$out:latest" --history.created_by "testdata/setup/bases.sh $1" "$2"
  umoci config --image "$out:latest" --no-history --config.cmd "$3" \
    --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  umoci gc --layout "$out"
  chmod -R a+rX "$out"
  rm -rf "${dir:?}/$1"
  mv "$out" "$dir/$1"
}

busybox_base() {
  local root=$tmp/root
  mkdir -p "$root"/{bin,dev,etc,home,lib,proc,root,run,sbin,sys,usr/bin,usr/sbin,var/tmp}
  install -d -m 1777 "$root/tmp" "$root/var/tmp"
  chmod 700 "$root/root"
  cp "$(command -v busybox)" "$root/bin/busybox"
  chmod 755 "$root/bin/busybox"
  "$root/bin/busybox" --list | grep -vx busybox | while read -r applet; do ln -s busybox "$root/bin/$applet"; done
  printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n' >"$root/etc/group"
  tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@1700000000 -cf "$tmp/busybox.tar" .
  layout busybox "$tmp/busybox.tar" sh
}

# debian_base NAME [PACKAGE...]
debian_base() {
  local name=$1; shift
  local include=ca-certificates p
  for p in "$@"; do include+=,$p; done
  "$here/rootfs.sh" "$tmp/$name.tar" "$include"
  layout "$name" "$tmp/$name.tar" bash
}

for name in $want; do
  [ -e "$dir/$name/index.json" ] && continue
  echo "making base image $dir/$name" >&2
  case $name in
    busybox) busybox_base ;;
    debian) debian_base debian ;;
    toolchain) debian_base toolchain gcc libc6-dev ;;
    *) echo "bases.sh: no recipe for $name" >&2; exit 1 ;;
  esac
done
