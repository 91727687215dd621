#!/usr/bin/env bash
# packages.sh [test|demo]: install the Debian packages that the tests or the demo use. Needs root, unless all are here.
set -euo pipefail

# What makes base images; `packages.sh demo` installs no more.
packages=(busybox-static mmdebstrap uidmap umoci)
if [ "${1:-test}" = test ]; then
  packages+=(
    attr libcap2-bin                          # what tests look at files with
    isal                                      # igzip, which may inflate layers
    skopeo podman buildah docker-registry     # other tools that must understand what we make
    runc                                      # what runs containers where crun refuses the cgroup layout
    openssh-server openssh-client git         # repositories behind ssh
    ca-certificates gcc libc6-dev             # the race detector
    qemu-system-x86                           # boots the kernel of kernel.sh; 19 MB with what it needs
  )
fi

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "packages.sh: missing ${missing[*]}: run this as root, or install them with apt-get" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# A registry or podman service started by the package itself would only be in the way: policy-rc.d forbids it meanwhile.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
  trap 'rm -f $policy' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
