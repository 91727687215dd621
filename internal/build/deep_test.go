package build

import (
	"fmt"
	"strings"
	"testing"

	"build/executor"
)

// A RUN on more layers than an overlay takes stands on a private tree.
func TestDeeperThanOverlays(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("f", "f")
	var df strings.Builder
	df.WriteString("FROM base\n")
	for i := range executor.MaxLowers {
		fmt.Fprintf(&df, "COPY f /f%d\n", i)
	}
	fmt.Fprintf(&df, "RUN cat /f0 /f%d > /both && rm /f1\nRUN [ ! -e /f1 ] && [ \"$(cat /both)\" = ff ]\n", executor.MaxLowers-1)
	w.ok(from(df.String()))
}
