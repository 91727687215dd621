#!/usr/bin/env bash
# packages.sh: install the Debian packages that the tests and the demo use. Needs root; does nothing when all are here.
set -euo pipefail

packages=(
  attr busybox-static libcap2-bin mmdebstrap uidmap      # what tests are made of
  skopeo umoci podman buildah docker-registry            # other tools that must understand what we make
  ca-certificates gcc libc6-dev                          # the race detector
)

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
