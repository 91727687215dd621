package build

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"build/dag"
	"build/internal/progress"
)

// A name of --no-cache-filter that is no stage's is told; the case of letters does not matter.
func TestNoCacheFilterOfNoStage(t *testing.T) {
	w := newWorld(t)
	w.write("f", "f")
	_, rec := w.ok(from("FROM base AS one\nCOPY f /\n"), func(o *Options) { o.NoCacheStages = []string{"ONE", "tow"} })
	want := []string{"--no-cache-filter=tow has no effect: Dockerfile has no stage of that name"}
	if !slices.Equal(rec.warnings, want) {
		t.Errorf("warnings %q, want %q", rec.warnings, want)
	}
}

// FROM by digest finds the image under whatever name the store has it, and an image of an index that is named.
func TestFromDigestOfAnotherName(t *testing.T) {
	w := newWorld(t)
	w.write("f", "f")
	res, _ := w.ok(from("FROM base\nCOPY f /\n"), tags("reg.example/one:1"))
	_, rec := w.ok(from("FROM other.example/two@" + res.Digest + "\nCOPY f /g\n"))
	wantRan(t, "by digest", rec, "COPY f /g")
	if len(rec.warnings) > 0 {
		t.Errorf("warnings %q", rec.warnings)
	}
	multi, _ := w.ok(from("FROM scratch\nCOPY f /\n"), tags("multi:1"), platformsOfBuild(ocispec.Platform{OS: "linux", Architecture: "amd64"}, ocispec.Platform{OS: "linux", Architecture: "arm64"}))
	w.ok(from("FROM x@" + multi.Digest + "\nCOPY f /h\n"))
	manifests := w.readIndex(multi.Digest)
	w.ok(from("FROM y@" + manifests[0] + "\nCOPY f /h\n"))
	none := "sha256:" + strings.Repeat("0", 64)
	w.fails(ExitNetwork, []string{"no image x@" + none[:13], "--offline"}, from("FROM x@"+none+"\n"))
}

// When there are no descriptors left for a step's pipes, none of those that were there is lost.
func TestStepLogWithoutDescriptors(t *testing.T) {
	s := &session{opts: &Options{Progress: progress.Discard}}
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list) - 1
	}
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	have := count()
	for room := range 5 { // it wants five
		top, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0) // the lowest that is free
		must(t, err)
		unix.Close(top)
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(top + room), Max: before.Max}))
		l, err := newStepLog(s, &dag.Step{}, 1)
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
		if err == nil {
			l.close()
		} else if got := count(); got != have {
			t.Errorf("with room for %d: %d descriptors before, %d after (%v)", room, have, got, err)
		}
	}
}

// readIndex lists the manifests of an index in the store.
func (w *world) readIndex(d string) (out []string) {
	data, err := os.ReadFile(w.root + "/blobs/sha256/" + strings.TrimPrefix(d, "sha256:"))
	must(w.t, err)
	var ix ocispec.Index
	must(w.t, json.Unmarshal(data, &ix))
	for _, m := range ix.Manifests {
		out = append(out, m.Digest.String())
	}
	return out
}
