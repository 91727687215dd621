#!/usr/bin/env bash
# rootfs.sh OUT.tar PACKAGE,PACKAGE...: a minimal root filesystem of this machine's own distribution, with its package
# sources and the settings that its apt needs to reach them.
set -euo pipefail
out=$1 include=$2
export TMPDIR=${TMPDIR:-/tmp}

# The sources this machine's apt knows from its distribution, third parties left out.
origin=$(. /etc/os-release && case $ID in ubuntu) echo Ubuntu ;; *) echo Debian ;; esac)
list() {
  apt-get indextargets --format '$(ORIGIN)|$(SIGNED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' |
    awk -F'|' -v o="$origin" '$1 == o { print "deb" ($2 ~ /^\// ? " [signed-by=" $2 "]" : ""), $3, $4, $5 }' | sort -u
}
sources=$(list)
if [ -z "$sources" ]; then
  apt-get update -qq
  sources=$(list)
fi
[ -n "$sources" ] || { echo "rootfs.sh: apt knows no source of $origin packages" >&2; exit 1; }

# How this machine's apt reaches them: proxies, mirrors with stale dates.
settings=$(mktemp)
trap 'rm -f "$settings"' EXIT
apt-config dump | grep -E '^Acquire::(http|https|Check-[A-Za-z-]+|Retries)(::[A-Za-z]+)? "..*";$' >"$settings" || true

codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
mmdebstrap --quiet --variant=minbase --include="$include" --aptopt="$settings" \
  --dpkgopt=path-exclude='/usr/share/doc/*' --dpkgopt=path-exclude='/usr/share/locale/*' --dpkgopt=path-exclude='/usr/share/man/*' \
  "$codename" "$out" - <<<"$sources"
