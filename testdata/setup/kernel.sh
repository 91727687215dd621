#!/usr/bin/env bash
# kernel.sh [DIR]: get the kernel that tests boot in a virtual machine: Debian's cloud kernel, 26 MB to download, of which DIR/kernel
# keeps vmlinuz and two modules. It is unpacked and not installed. DIR is that of bases.sh.
set -euo pipefail
dir=${1:-${BUILD_TEST_CACHE:-/var/cache/build-test}}
mkdir -p "$dir"
exec 9>"$dir/.lock"
flock 9
[ ! -e "$dir/kernel/vmlinuz" ] || exit 0

tmp=$(mktemp -d "$dir/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
cd "$tmp"
apt-get -o APT::Sandbox::User=root download -qq "$package"
dpkg -x ./*.deb root
mkdir kernel
cp root/boot/vmlinuz-* kernel/vmlinuz
cp root/lib/modules/*/kernel/{fs/overlayfs/overlay,drivers/block/loop}.ko kernel/
printf '%s\n' "$package" >kernel/package
chmod -R a+rX kernel
mv kernel "$dir/kernel"
