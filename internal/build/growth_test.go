package build

import (
	"fmt"
	"strings"
	"testing"
)

// Stages that each use the one before them twice have more ways through them than could be walked one by one.
func TestDiamonds(t *testing.T) {
	w := newWorld(t)
	w.write("f", "x")
	var df strings.Builder
	df.WriteString("FROM scratch AS d0\nCOPY f /f\n")
	for i := range 45 {
		fmt.Fprintf(&df, "FROM scratch AS d%d\nCOPY --from=d%d /f /a\nCOPY --from=d%d /f /f\n", i+1, i, i)
	}
	w.ok(from(df.String()))
	res, rec := w.ok(from(df.String()))
	if len(rec.ran()) != 0 || res.Cached != 1+2*45 {
		t.Errorf("again: ran %q, %d cached", rec.ran(), res.Cached)
	}
}
