//go:build !race

package testenv

import "testing"

// stored returns the layout as it is; stored_race.go says what for.
func stored(_ testing.TB, layout string) string { return layout }
