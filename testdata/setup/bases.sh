#!/usr/bin/env bash
# bases.sh [DIR]: make the base images of the tests as OCI layouts, tag "latest", once:
#   DIR/busybox   one static busybox with its applets, a passwd and a group file
#   DIR/busybox-arm64   the same for another machine
#   DIR/debian    mmdebstrap's minbase from this machine's own package sources
#   DIR/toolchain the same with a C compiler: what the demo builds in
#   DIR/cpp, golang, java, node, python   debian and a second layer: what the Dockerfiles of testdata/real build in
#   DIR/.stored   copies that the tests make for themselves (internal/testenv/stored_race.go)
# DIR is outside the repository (default /var/cache/build-test) and survives `make clean`; remove it to start over.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:-${BUILD_TEST_CACHE:-/var/cache/build-test}}
set -f   # patterns are for others
want=${BASES:-busybox busybox-arm64 debian cpp golang java node python}   # debian comes before what stands on it
mkdir -p "$dir"
exec 9>"$dir/.lock"
flock 9   # several `make test` at once make each base once

tmp=$(mktemp -d "$dir/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

# layout NAME TAR CMD [ARCH]: publish a one-layer OCI layout. The rename makes a half-made one invisible.
layout() {
  local out=$tmp/$1.layout
  umoci init --layout "$out"
  umoci new --image "$out:latest"
  umoci raw add-layer --image "$out:latest" --history.created_by "testdata/setup/bases.sh $1" "$2"
  umoci config --image "$out:latest" --no-history --config.cmd "$3" ${4:+--architecture "$4"} \
    --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  umoci gc --layout "$out"
  chmod -R a+rX "$out"
  rm -rf "${dir:?}/$1"
  mv "$out" "$dir/$1"
}

# busybox_base NAME BINARY [ARCH]
busybox_base() {
  local root=$tmp/root-$1
  mkdir -p "$root"/{bin,dev,etc,home,lib,proc,root,run,sbin,sys,usr/bin,usr/sbin,var/tmp}
  install -d -m 1777 "$root/tmp" "$root/var/tmp"
  chmod 700 "$root/root"
  cp "$2" "$root/bin/busybox"
  chmod 755 "$root/bin/busybox"
  busybox --list | grep -vx busybox | while read -r applet; do ln -s busybox "$root/bin/$applet"; done
  printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n' >"$root/etc/group"
  tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@1700000000 -cf "$tmp/$1.tar" .
  layout "$1" "$tmp/$1.tar" sh ${3:+"$3"}
}

# foreign_busybox ARCH: print the path of Debian's static busybox for another machine. It is not installed, and this machine's
# apt does not hear of the architecture.
foreign_busybox() {
  local state=$tmp/apt-$1 options=()
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
  options=(-qq -o APT::Architecture="$1" -o APT::Architectures="$1" -o APT::Sandbox::User=root
    -o Dir::State::lists="$state/lists" -o Dir::Cache="$state/cache" -o Dir::State::status=/dev/null)
  apt-get "${options[@]}" update
  (cd "$state" && apt-get "${options[@]}" download busybox-static)
  set +f
  dpkg-deb -x "$state"/busybox-static_*.deb "$state/root"
  set -f
  echo "$state/root/bin/busybox"
}

# debian_base NAME [PACKAGE...]
debian_base() {
  local name=$1; shift
  local include=ca-certificates p
  for p in "$@"; do include+=,$p; done
  "$here/rootfs.sh" "$tmp/$name.tar" "$include"
  layout "$name" "$tmp/$name.tar" bash
}

# blob OUT FILE: move FILE into the blobs of a layout and print its descriptor's digest and size.
blob() {
  local sum; sum=$(sha256sum "$2" | cut -d' ' -f1)
  printf '"digest":"sha256:%s","size":%d' "$sum" "$(stat -c %s "$2")"
  mv "$2" "$1/blobs/sha256/$sum"
}

# language_base NAME PACKAGE,PACKAGE... [EXCLUDE...]: debian with a layer of packages, without what no test needs. The
# layer is not compressed: it is read often, and slowly by tests with the race detector. umoci would compress it.
language_base() {
  local name=$1 include=$2 below layer out=$tmp/$1.layout diff=() image=application/vnd.oci.image; shift 2
  below=$(find "$dir/debian/blobs" -type f -printf '%s %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)   # debian's layer
  gzip -dc "$below" >"$tmp/below-$name.tar"
  "$here/rootfs.sh" "$tmp/$name.tar" "$include" "$tmp/below-$name.tar" "$@"
  diff=($(sha256sum "$tmp/below-$name.tar" "$tmp/$name.tar" | cut -d' ' -f1))
  rm "$tmp/below-$name.tar"

  mkdir -p "$out/blobs/sha256"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$out/oci-layout"
  cp "$below" "$tmp/below-$name"
  layer="{\"mediaType\":\"$image.layer.v1.tar+gzip\",$(blob "$out" "$tmp/below-$name")}"
  layer+=",{\"mediaType\":\"$image.layer.v1.tar\",$(blob "$out" "$tmp/$name.tar")}"
  cat >"$tmp/config-$name" <<JSON
{"architecture":"$(dpkg --print-architecture)","os":"linux","config":{"Cmd":["bash"],
"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
"rootfs":{"type":"layers","diff_ids":["sha256:${diff[0]}","sha256:${diff[1]}"]},
"history":[{"created_by":"testdata/setup/bases.sh debian"},{"created_by":"testdata/setup/bases.sh $name"}]}
JSON
  cat >"$tmp/manifest-$name" <<JSON
{"schemaVersion":2,"mediaType":"$image.manifest.v1+json","layers":[$layer],
"config":{"mediaType":"$image.config.v1+json",$(blob "$out" "$tmp/config-$name")}}
JSON
  cat >"$out/index.json" <<JSON
{"schemaVersion":2,"manifests":[{"mediaType":"$image.manifest.v1+json",$(blob "$out" "$tmp/manifest-$name"),
"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}
JSON
  chmod -R a+rX "$out"
  rm -rf "${dir:?}/$name"
  mv "$out" "$dir/$name"
}

make_base() {
  local perl=(./usr/share/perl './usr/lib/*/perl')
  local gcc=./usr/lib/gcc/x86_64-linux-gnu/12 go=./usr/lib/go-1.19/pkg js=./usr/share/nodejs
  case $1 in
    busybox) busybox_base busybox "$(command -v busybox)" ;;
    busybox-arm64) busybox_base busybox-arm64 "$(foreign_busybox arm64)" arm64 ;;
    debian) debian_base debian ;;
    toolchain) debian_base toolchain gcc libc6-dev ;;
    cpp) language_base cpp g++,make,ccache "${perl[@]}" $gcc/lto1 './usr/bin/*lto-dump*' './usr/lib/*/lib?san.so*' ;;
    golang) language_base golang golang-go "${perl[@]}" $go/linux_amd64/cmd ./usr/share/go-1.19/{api,test,src/cmd} \
      $go/tool/*/{addr2line,api,cover,dist,doc,objdump,pprof,test2json,trace} ;;
    java) language_base java default-jdk-headless,junit5,maven,libmaven-compiler-plugin-java,libmaven-jar-plugin-java,libmaven-resources-plugin-java '*.jmod' ;;
    node) language_base node nodejs,npm "${perl[@]}" './usr/lib/python3*' './usr/lib/*/*.a' ./usr/include \
      $js/{@babel,@types,@webassemblyjs,caniuse-lite,core-js,core-js-pure,es-abstract,eslint,lodash,lodash-es,terser,web-streams-polyfill,webpack} ;;
    python) language_base python python3,python3-pip,python3-setuptools,python3-wheel ;;
    *) echo "bases.sh: no recipe for $1" >&2; return 1 ;;
  esac
}

# Those that stand on debian wait for it and then for nobody: their downloads and compressors share the machine well.
jobs=()
for name in $want; do
  [ ! -e "$dir/$name/index.json" ] || continue
  echo "making base image $dir/$name" >&2
  case $name in
    busybox* | debian | toolchain) make_base "$name" ;;
    *) make_base "$name" & jobs+=($!) ;;
  esac
done
for job in "${jobs[@]}"; do wait "$job"; done
