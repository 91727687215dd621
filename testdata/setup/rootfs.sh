#!/usr/bin/env bash
# rootfs.sh OUT.tar PACKAGE,PACKAGE...: a minimal root filesystem of this machine's own distribution, with its package
# sources and the settings that its apt needs to reach them.
#
# rootfs.sh OUT.tar PACKAGE,PACKAGE... BASE.tar [EXCLUDE...]: only what the packages, and those they need, add to such a
# root filesystem. They are unpacked and not configured, so that a compiler takes seconds instead of minutes: what their
# scripts would do (alternatives, users, dpkg's status) is not done. EXCLUDE are paths to leave out, for tar: ./usr/games
set -euo pipefail
out=$1 include=$2 base=${3:-}
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
if [ -z "$base" ]; then
  mmdebstrap --quiet --variant=minbase --include="$include" --aptopt="$settings" \
    --dpkgopt=path-exclude='/usr/share/doc/*' --dpkgopt=path-exclude='/usr/share/locale/*' --dpkgopt=path-exclude='/usr/share/man/*' \
    "$codename" "$out" - <<<"$sources"
  exit
fi

# Runs in the root filesystem's namespace, as its root. /bin, /lib and /sbin are links into /usr where Debian has merged
# them: they are there while packages are unpacked, and no part of what these add.
export INCLUDE=${include//,/ } EXCLUDE="./usr/share/doc ./usr/share/man ./usr/share/locale ./usr/share/lintian ${*:4}"
unpack='set -efu; root=$1; mkdir -p "$root/added"
  APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq --yes --no-install-recommends --download-only install $INCLUDE
  for d in bin lib lib32 lib64 sbin; do
    [ ! -L "$root/$d" ] || { mkdir -p "$root/added/usr/$d" && ln -s "usr/$d" "$root/added/$d"; }
  done
  set --; for e in $EXCLUDE; do set -- "$@" "--exclude=$e"; done
  set +f
  for deb in "$root"/var/cache/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -C "$root/added" -xp --keep-directory-symlink "$@"
  done
  find "$root/added" -maxdepth 1 -type l -delete; find "$root/added/usr" -type d -empty -delete
  tar -C "$root/added" --sort=name --numeric-owner -cf "$root/added.tar" .'
mmdebstrap --quiet --variant=custom --format=null --aptopt="$settings" --setup-hook="tar-in $base /" \
  --customize-hook="$unpack" --customize-hook="download /added.tar $out" "$codename" /dev/null - <<<"$sources"
