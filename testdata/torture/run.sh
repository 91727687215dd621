#!/usr/bin/env bash
# run.sh [test flags]: the tests of internal/torture, long: 1,000 kills, 32 builds at once ten times, 200 losses of power here and 100
# of a virtual machine, a full disk at each of 64 sizes, files of every kind damaged in every way five times over. Some two hours on two
# cores, as root; what it makes is in TMPDIR. TORTURE_SHARE=10 does a tenth of it. The flags are those of go test, e.g. -run TestKills
# -torture.seed 7; see internal/torture/harness_test.go. Each test says how much it did; the last line says how many failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
share=${TORTURE_SHARE:-100}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
CGO_ENABLED=0 go build -trimpath -o "$dir/build" ./cmd/build
go test -c -o "$dir/torture.test" ./internal/torture
cd internal/torture
run() { "$dir/torture.test" -torture.bin "$dir/build" -test.v -test.timeout 2h "$@"; }
of() { echo $((($1 * share + 99) / 100)); }
failed=0
long() { # one that fails does not keep the others from running
  local began=$SECONDS
  run "$@" || failed=$((failed + 1))
  echo "== $2: $((SECONDS - began)) s"
}
if [ $# -gt 0 ]; then
  run "${@/#-run/-test.run}"
  exit
fi
long -test.run '^TestKills$' -torture.kills "$(of 1000)"
long -test.run '^TestTogether$' -test.count "$(of 10)"
long -test.run '^TestPowerLoss$' -torture.crashes "$(of 200)"
long -test.run '^TestPowerLossMachine$' -torture.machine -torture.crashes "$(of 100)"
long -test.run '^TestDiskFull$' -torture.pages "$(of 64)"
long -test.run '^TestDamage$' -torture.each "$(($(of 5) * (share == 100 ? 1 : 0)))"
long -test.run '^TestStocked$' -torture.kills "$(of 1000)"
echo "== $failed of 7 failed"
[ "$failed" = 0 ]
