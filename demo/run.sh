#!/usr/bin/env bash
# run.sh: what `make demo` does. Bases come from Debian's own packages and are made once (testdata/setup/bases.sh);
# store and result are below out/demo.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname "$here")
cache=${BUILD_TEST_CACHE:-/var/cache/build-test}
out=$repo/out/demo
mkdir -p "$out"

"$repo/testdata/setup/packages.sh" demo
BASES="busybox toolchain" "$repo/testdata/setup/bases.sh" "$cache"

demo_build() {
  "$repo/build" --root "$out/store" -t demo/words:latest \
    --build-context "busybox=oci-layout://$cache/busybox" --build-context "toolchain=oci-layout://$cache/toolchain" \
    -o "type=oci,dest=$out/words.tar" "$@" "$here"
}
now() { date +%s%N; }

t0=$(now)
demo_build --no-cache
t1=$(now)
digest=$(demo_build --progress=plain 2>"$out/second.log")
t2=$(now)
again=$(demo_build --progress=plain 2>>"$out/second.log")
[ "$digest" = "$again" ] || { echo "the cached build has another digest: $digest, $again" >&2; exit 1; }

echo
echo "image:        $out/words.tar (OCI archive, $(du -h "$out/words.tar" | cut -f1))"
echo "also:         demo/words:latest in the store $out/store; try: ./build --root $out/store images"
printf 'first build:  %d.%02d s\n' $(((t1 - t0) / 1000000000)) $(((t1 - t0) / 10000000 % 100))
printf 'second build: %d ms, everything cached\n' $(((t2 - t1) / 1000000))
echo "look at it:   skopeo inspect oci-archive:$out/words.tar"
