package torture

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// task is one kind of build of the workload. Its context has variants; equal variants give equal images.
type task struct {
	name     string
	df       string
	files    []string // of the context: path, content, …; %d is the variant
	variants int
	args     []string
}

// workload is what builds are made of: every kind of step and of thing in the store.
func workload(registry string) []task {
	return []task{
		{name: "stages", df: `FROM bb AS a
COPY src /src
RUN mkdir -p /d/e && seq 20000 > /d/e/f && chown 7:8 /d && mkfifo /d/p
WORKDIR /w
FROM bb
COPY --from=a /d /d
RUN cat /d/e/f > /g; ln /g /h; rm -r /d/e
LABEL k=v
`, files: []string{"src/a", "a", "src/b", strings.Repeat("b", 50_000)}},
		{name: "changed", variants: 4, df: `FROM bb
RUN echo stays > /stays
COPY f /f
RUN cat /f /f > /twice
COPY --link g /g
`, files: []string{"f", "variant %d\n", "g", "g"}},
		{name: "caches", variants: 2, df: `FROM bb
COPY f /f
RUN --mount=type=cache,target=/c,sharing=locked [ ! -e /c/inside ] || rm /c/inside; touch /c/inside; sleep 0.05; rm /c/inside; seq 3000 > /one
RUN --mount=type=cache,target=/p,sharing=private touch /p/x; cat /f > /two
RUN --mount=type=cache,target=/s --mount=type=tmpfs,target=/t seq 1000 >> /s/log; cat /f > /three
`, files: []string{"f", "cached %d\n"}},
		{name: "pull", variants: 2, df: "FROM " + registry + "/base:1\nARG V\nRUN cat /seed /seed > /two; echo $V > /v\nADD http://" + registry + "/file /file\n",
			files: []string{"unused", "%d"}, args: []string{"--pull"}},
		{name: "wide", df: `FROM bb AS one
RUN seq 1 2000 > /x
FROM bb AS two
RUN seq 2 2000 > /x
FROM bb AS three
COPY many /many
FROM scratch
COPY --from=one /x /1
COPY --from=two /x /2
COPY --from=three /many /3
`, files: manyFiles(60)},
		{name: "mounts", df: `FROM bb AS a
RUN seq 5000 > /big
FROM bb
RUN --mount=type=bind,from=a,target=/a --mount=type=bind,target=/ctx cp /a/big /big; cat /ctx/f >> /big
RUN cat > /here <<EOT
text
EOT
`, files: []string{"f", "bound"}},
	}
}

func manyFiles(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("many/d%d/f%02d", i%7, i), strings.Repeat(fmt.Sprint(i), 300))
	}
	return out
}

// job is one task in one variant, with its context.
type job struct {
	task
	variant int
	dir     string
}

// job lays out the context.
func (w *world) job(tk task, variant int) job {
	w.t.Helper()
	j := job{task: tk, variant: variant, dir: fmt.Sprintf("%s/ctx/%s%d", w.tmp, tk.name, variant)}
	if _, err := os.Stat(j.dir); err == nil {
		return j
	}
	w.write(j.dir, "Dockerfile", tk.df)
	for i := 0; i < len(tk.files); i += 2 {
		w.write(j.dir, tk.files[i], strings.ReplaceAll(tk.files[i+1], "%d", fmt.Sprint(variant)))
	}
	return j
}

// imageArgs is the build of a job that puts an image into the store.
func (j job) imageArgs(more ...string) []string {
	args := append([]string{"-t", j.name + ":1", "-o", "type=image,rewrite-timestamp=true", "--build-arg", fmt.Sprintf("V=%d", j.variant)}, j.args...)
	return append(append(args, more...), j.dir)
}

// alone is what a job gives on a store of its own: the image and the tree.
type alone struct{ digest, tree string }

// bench is a workload with what each job of it has to give.
type bench struct {
	*world
	jobs []job
	good map[string]alone
}

func newBench(t *testing.T) *bench {
	t.Helper()
	w := newWorld(t)
	b := &bench{world: w, good: map[string]alone{}}
	for _, tk := range workload(newRegistry(t, w)) {
		for v := range max(1, tk.variants) {
			j := w.job(tk, v)
			b.jobs = append(b.jobs, j)
			root := w.with(fmt.Sprintf("%s/alone-%s%d", w.tmp, tk.name, v))
			out := root.root + ".tree"
			digest := root.ok(j.imageArgs("-o", "type=local,dest="+out)...)
			b.good[j.dir] = alone{digest, treeSum(t, out)}
			removeTree(root.root)
			removeTree(out)
		}
	}
	return b
}

// newRegistry serves a base image and a file.
func newRegistry(t testing.TB, w *world) string {
	t.Helper()
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	slow := false
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/file" {
			rw.Header().Set("ETag", `"1"`)
			_, _ = io.WriteString(rw, strings.Repeat("over http\n", 1000))
			return
		}
		if slow && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			rw = slowWriter{rw}
		}
		inner.ServeHTTP(rw, r)
	}))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	seeder := w.with(w.tmp + "/seed-store")
	dir := w.write(w.tmp+"/seed", "Dockerfile", "FROM bb\nCOPY seed /seed\nRUN seq 30000 > /filler; head -c 1500000 /dev/urandom > /random\n", "seed", "seed")
	seeder.ok("-t", host+"/base:1", "--push", dir)
	removeTree(seeder.root)
	slow = true
	return host
}

// slowWriter sends some 10 MB a second, so that a download can be hit.
type slowWriter struct{ http.ResponseWriter }

func (w slowWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		k, err := w.ResponseWriter.Write(p[n:min(n+32<<10, len(p))])
		if n += k; err != nil {
			return n, err
		}
		time.Sleep(3 * time.Millisecond)
	}
	return n, nil
}

// failing is the context of a build whose step fails, after it printed more than an error report has: it leaves a log.
func (w *world) failing() string {
	return w.write(w.tmp+"/failing", "Dockerfile", "FROM bb\nRUN seq 50000; exit 3\n")
}

// pick chooses a job.
func (b *bench) pick(r *rand.Rand) job { return b.jobs[r.IntN(len(b.jobs))] }

// right compares what a build that ended well gave with what it has to give.
func (b *bench) right(j job, o outcome) error {
	switch {
	case o.stuck:
		return fmt.Errorf("%s%d did not end in %v: %s", j.name, j.variant, stuck, o.text)
	case o.code != 0:
		return fmt.Errorf("%s%d: exit code %d: %s", j.name, j.variant, o.code, o.text)
	case o.digest != b.good[j.dir].digest:
		return fmt.Errorf("%s%d: image %s, alone %s: %s", j.name, j.variant, o.digest, b.good[j.dir].digest, o.text)
	}
	return nil
}

// archiveDigest is the digest of the manifest in an OCI archive.
func archiveDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			return "", errors.Join(errors.New("no index.json"), err)
		}
		if h.Name != "index.json" {
			continue
		}
		var ix struct{ Manifests []struct{ Digest string } }
		if err := json.NewDecoder(r).Decode(&ix); err != nil {
			return "", err
		}
		if len(ix.Manifests) == 0 {
			return "", errors.New("index.json lists nothing")
		}
		for _, m := range ix.Manifests { // one for each name
			if m.Digest != ix.Manifests[0].Digest {
				return "", fmt.Errorf("%v are not one image", ix.Manifests)
			}
		}
		return ix.Manifests[0].Digest, nil
	}
}
