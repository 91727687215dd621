#!/usr/bin/env bash
# emulators.sh [DIR]: put Debian's static QEMU programs for the machines that build knows into DIR/emulators (DIR as in
# bases.sh). The package is unpacked, not installed: installing it may register the emulators for the whole machine, and the tests
# show that nothing of the kind is needed.
set -euo pipefail
dir=${1:-${BUILD_TEST_CACHE:-/var/cache/build-test}}
out=$dir/emulators
mkdir -p "$dir"
exec 9>"$dir/.lock-emulators"
flock 9
[ ! -d "$out" ] || exit 0
echo "making $out" >&2

tmp=$(mktemp -d "$dir/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/emulators"
download() { (cd "$tmp" && apt-get -qq -o APT::Sandbox::User=root download qemu-user-static); }
download 2>/dev/null || { apt-get -qq update && download; }
names=()
for arch in aarch64 arm i386 loongarch64 mips64 mips64el ppc64le riscv64 s390x x86_64; do names+=("./usr/bin/qemu-$arch-static"); done
dpkg-deb --fsys-tarfile "$tmp"/qemu-user-static_*.deb | tar -C "$tmp/emulators" --strip-components=3 -xf - "${names[@]}"
chmod 755 "$tmp/emulators"
mv "$tmp/emulators" "$out"
