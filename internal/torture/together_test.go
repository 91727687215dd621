package torture

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// counter counts, outside of every sandbox, how often a path was asked for.
type counter struct {
	*httptest.Server
	mu     sync.Mutex
	counts map[string]int
}

func newCounter(t testing.TB) *counter {
	t.Helper()
	c := &counter{counts: map[string]int{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.counts[r.URL.Path]++
	}))
	t.Cleanup(c.Close)
	return c
}

// hit is a command that is counted.
func (c *counter) hit(name string) string { return "wget -q -O /dev/null " + c.URL + "/" + name }

// countedDockerfile has steps that all kinds share, steps that two share and one of its own. No two steps that lock a cache
// may overlap, be they of one build or of several.
func countedDockerfile(c *counter, kind int) string {
	return fmt.Sprintf(`FROM bb AS common
COPY src /src
RUN --mount=type=cache,target=/c %s; echo x >> /c/log; sleep 0.1; seq 1000 > /common
FROM bb AS side
RUN --mount=type=cache,target=/l,sharing=locked %s; mkdir /l/busy || exit 9; sleep 0.1; rmdir /l/busy; seq 2000 > /side
FROM common
COPY --from=side /side /side
RUN --mount=type=cache,target=/l,sharing=locked %s; mkdir /l/busy || exit 9; sleep 0.1; rmdir /l/busy; cat /side > /pair%d
WORKDIR /k%d
RUN %s; cat /common /side > all
`, c.hit("common"), c.hit("side"), c.hit(fmt.Sprint("pair", kind/2)), kind/2, kind, c.hit(fmt.Sprint("last", kind)))
}

// TestTogether runs 32 builds at once on one store that is not there yet: equal ones, ones that share steps, pulls, cache mounts,
// files as output, names. Each gives what it gives alone, and each step is carried out once in all.
func TestTogether(t *testing.T) {
	b := newBench(t)
	c := newCounter(t)
	var jobs []job
	for kind := range 4 {
		tk := task{name: fmt.Sprint("counted", kind), df: countedDockerfile(c, kind), files: []string{"src/x", "x", "src/y", strings.Repeat("y", 100_000)}}
		j := b.job(tk, 0)
		solo := b.with(fmt.Sprintf("%s/alone%d", b.tmp, kind))
		out := solo.root + ".tree"
		b.good[j.dir] = alone{solo.ok(j.imageArgs("-o", "type=local,dest="+out)...), treeSum(t, out)}
		jobs = append(jobs, j, j, j, j)
	}
	c.counts = map[string]int{}
	for i := range 16 {
		jobs = append(jobs, b.jobs[i%len(b.jobs)])
	}

	runs := make([]*run, len(jobs))
	for i, j := range jobs {
		args := j.imageArgs("-t", fmt.Sprintf("own:%d", i))
		switch i % 3 {
		case 0:
			args = append([]string{"-o", fmt.Sprintf("type=local,dest=%s/tree%d", b.tmp, i)}, args...)
		case 1:
			args = append([]string{"-o", fmt.Sprintf("type=oci,rewrite-timestamp=true,dest=%s/image%d.tar", b.tmp, i)}, args...)
		}
		runs[i] = b.start(b.args(args...)...)
	}
	for i, j := range jobs {
		if err := b.right(j, runs[i].wait()); err != nil {
			t.Errorf("build %d: %v", i, err)
			continue
		}
		switch i % 3 {
		case 0:
			if sum := treeSum(t, fmt.Sprintf("%s/tree%d", b.tmp, i)); sum != b.good[j.dir].tree {
				t.Errorf("build %d, %s: another tree than alone", i, j.name)
			}
		case 1:
			if d, err := archiveDigest(fmt.Sprintf("%s/image%d.tar", b.tmp, i)); err != nil || d != b.good[j.dir].digest {
				t.Errorf("build %d, %s: archive of %s: %v", i, j.name, d, err)
			}
		}
	}
	want := map[string]int{"/common": 1, "/side": 1, "/pair0": 1, "/pair1": 1, "/last0": 1, "/last1": 1, "/last2": 1, "/last3": 1}
	if !maps.Equal(c.counts, want) {
		t.Errorf("steps were carried out %v times, want %v", c.counts, want)
	}
	images := b.command("images").digest
	for i := range jobs {
		if !strings.Contains(images, fmt.Sprintf("own:%d ", i)) {
			t.Errorf("own:%d has no name: %s", i, images)
		}
	}
	b.idle()
	b.sound()
	b.swept()
}
