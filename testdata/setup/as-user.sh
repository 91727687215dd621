#!/usr/bin/env bash
# as-user.sh USER PROGRAM [ARG...]: run a test binary as an unprivileged user. Made for
#   go test -exec 'testdata/setup/as-user.sh buildtest' ./...
# The user sees neither root's build directories nor, perhaps, the checkout: binary and sources are copied to a place of
# the user's own, and the test starts in the copy of its package's directory.
set -euo pipefail
user=$1 program=$2
shift 2
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
home=$(getent passwd "$user" | cut -d: -f6)
dir=$(mktemp -d "${TMPDIR:-/tmp}/build-as-user.XXXXXX")
# What a test leaves behind may belong to ids of the user's range, which only root can remove. The user's temporary
# directory is on the way of every such file.
trap 'rm -rf --one-file-system "$dir"' EXIT
chmod 755 "$dir"
tar -C "$repo" --exclude=./.git --exclude=./out --exclude=./build -cf - . | tar -C "$dir" --one-top-level=src -xf -
install -m 755 "$program" "$dir/$(basename "$program")"
install -d -o "$user" -g "$(id -g "$user")" "$dir/tmp"
chown -R "$user" "$dir/src"
chmod -R u+rwX,go+rX "$dir/src"

cd "$dir/src/${PWD#"$repo"}"
pass=(HOME="$home" USER="$user" LOGNAME="$user" PATH="$PATH" TMPDIR="$dir/tmp" LANG=C.UTF-8)
for v in BUILD_TEST_REQUIRE BUILD_TEST_CACHE BUILD_TEST_ISOLATION CI http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY GORACE; do
  [ -z "${!v+x}" ] || pass+=("$v=${!v}")
done
status=0
setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups env -i "${pass[@]}" "$dir/$(basename "$program")" "$@" || status=$?
exit $status
