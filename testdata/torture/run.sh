#!/usr/bin/env bash
# run.sh [test flags]: the tests of internal/torture, long: 1,000 kills, 32 builds at once ten times, 200 losses of power, a full
# disk at each of 64 sizes, every kind of file damaged in every way five times over. An hour on two cores, as root; what it makes is in
# TMPDIR. The flags are those of go test, e.g. -run TestKills -torture.seed 7; see internal/torture/harness_test.go.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
CGO_ENABLED=0 go build -trimpath -o "$dir/build" ./cmd/build
go test -c -o "$dir/torture.test" ./internal/torture
cd internal/torture
run() { "$dir/torture.test" -torture.bin "$dir/build" -test.v -test.timeout 2h "$@"; }
if [ $# -gt 0 ]; then
  run "${@/#-run/-test.run}"
else
  run -test.run TestKills -torture.kills 1000
  run -test.run TestTogether -test.count 10
  run -test.run TestPowerLoss -torture.crashes 200
  run -test.run TestDiskFull -torture.pages 64
  run -test.run TestDamage -torture.each 5
  run -test.run TestStocked -torture.kills 1000
fi
