#!/usr/bin/env bash
# users.sh: make the unprivileged users the tests run as: buildtest with a range of subordinate ids, buildtest0 without.
set -euo pipefail

if [ "$(id -u)" -ne 0 ]; then
  echo "users.sh: needs root" >&2
  exit 1
fi
for u in buildtest buildtest0; do
  id "$u" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$u"
done

# next_free FILE: the first id after every range in FILE.
next_free() {
  awk -F: 'BEGIN { n = 100000 } $2 + $3 > n { n = $2 + $3 } END { print n }' "$1"
}
for f in /etc/subuid /etc/subgid; do
  touch $f
  grep -q '^buildtest:' $f || echo "buildtest:$(next_free $f):65536" >>$f
  sed -i '/^buildtest0:/d' $f   # useradd may have given it one
done
