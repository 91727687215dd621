package build

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"build/cache"
	"build/internal/progress"
	"build/internal/store"
	"build/internal/testenv"
	"build/internal/userns"
	"build/snapshot"
)

// These tests send whole builds through the real kernel. Second processes are this test binary again: as the holder and as
// the first process of a step (Reentry), and as another build on the same store when workerVar says which.
const workerVar = "BUILD_TEST_WORKER"

func TestMain(m *testing.M) {
	storePoint = endAtPoint
	if Reentry() {
		return
	}
	if spec := os.Getenv(workerVar); spec != "" {
		os.Exit(workerMain(spec))
	}
	os.Exit(m.Run())
}

// killFile is beside a store. It says at which point of publishing the process dies that opens the store: "front|holder
// POINT COUNT", or where it takes longer, and notes that it came by: "late-front|late-holder POINT MILLISECONDS". A file, because the
// holder gets neither arguments nor environment.
func killFile(store string) string { return store + ".kill" }

// lateFile has a line for each time somebody was late.
func lateFile(store string) string { return store + ".late" }

func dawdle(store string, d time.Duration) {
	if f, err := os.OpenFile(lateFile(store), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err == nil {
		_, _ = f.WriteString("late\n")
		f.Close()
	}
	time.Sleep(d)
}

// endAtPoint is the hook of the store. The holder is process 1 of its namespace and cannot kill itself; leaving without any
// cleaning up is the same to everybody else.
func endAtPoint(dir string) func(string) {
	role := "front"
	if os.Args[0] == "build-holder" {
		role = "holder"
	}
	var mu sync.Mutex
	reached := 0
	return func(point string) {
		b, err := os.ReadFile(killFile(dir))
		if err != nil {
			return
		}
		var who, where string
		var count int
		if _, err := fmt.Sscan(string(b), &who, &where, &count); err != nil || where != point {
			return
		}
		if who == "late-"+role {
			dawdle(dir, time.Duration(count)*time.Millisecond)
		}
		if who != role {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if reached++; reached < count {
			return
		}
		_ = os.WriteFile(killFile(dir)+"ed", nil, 0o600)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		os.Exit(137)
	}
}

// world is one store with one context.
type world struct {
	t    testing.TB
	root string // the store
	dir  string // the context
	tmp  string

	parallel bool // other tests of this process have holders, too
	killed   bool // and not swept: what the dead left is harmless and still there
	damaged  bool // by the test itself: what nothing came across since is still so
}

// newWorld makes an empty store and an empty context. What steps wrote may belong to other ids, so the directory is removed
// as far as possible; a user's is inside what as-user.sh removes. At the end the store must be sound and nothing left.
func newWorld(t testing.TB) *world {
	t.Helper()
	tmp, err := os.MkdirTemp("", "build-test-")
	must(t, err)
	w := &world{t: t, root: tmp + "/store", dir: tmp + "/ctx", tmp: tmp}
	must(t, os.Mkdir(w.dir, 0o755))
	t.Cleanup(func() {
		if !t.Failed() {
			if !w.killed {
				w.nothingLeft()
			}
			w.sound()
		}
		removeAll(tmp)
	})
	return w
}

func removeAll(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}

// newParallel is newWorld for a test that runs beside others: those that take long.
func newParallel(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	w := newWorld(t)
	w.parallel = true
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write puts files into the context: path, content, path, content…
func (w *world) write(pairs ...string) {
	w.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		p := filepath.Join(w.dir, pairs[i])
		must(w.t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(w.t, os.WriteFile(p, []byte(pairs[i+1]), 0o644))
	}
}

// mod changes the options of one build.
type mod func(*Options)

// from replaces the Dockerfile for one build. Lines may be indented like the test around them.
func from(dockerfile string) mod {
	return func(o *Options) {
		o.Dockerfile, o.Stdin = "-", strings.NewReader(dedent(dockerfile))
	}
}

func dedent(s string) string {
	s = strings.TrimPrefix(s, "\n")
	indent := s[:len(s)-len(strings.TrimLeft(s, "\t"))]
	var b strings.Builder
	for l := range strings.Lines(s) {
		b.WriteString(strings.TrimPrefix(l, indent))
	}
	return strings.TrimRight(b.String(), "\t")
}

func arg(kv ...string) mod {
	return func(o *Options) {
		for i := 0; i < len(kv); i += 2 {
			o.BuildArgs = append(o.BuildArgs, KeyValue{kv[i], kv[i+1]})
		}
	}
}

func epoch(sec int64) mod {
	return func(o *Options) { t := time.Unix(sec, 0).UTC(); o.Epoch = &t }
}

func noCache(o *Options) { o.NoCache = true }

func output(out Output) mod { return func(o *Options) { o.Outputs = append(o.Outputs, out) } }

func ociTo(dest string) mod {
	return output(Output{Type: OutputOCI, Dest: dest, Tar: true, OCIMediaTypes: true})
}

func tags(names ...string) mod { return func(o *Options) { o.Tags = names } }

// options are those of a build of the context that knows the image "base".
func (w *world) options(rec progress.Sink, mods ...mod) Options {
	o := Options{
		Store:         StoreOptions{Root: w.root, Offline: true},
		Context:       w.dir,
		NamedContexts: []KeyValue{{"base", "oci-layout://" + testenv.Base(w.t, "busybox")}},
		Progress:      rec,
	}
	for _, m := range mods {
		m(&o)
	}
	return o
}

// build runs one build and says what it did.
func (w *world) build(mods ...mod) (*Result, *recorder, error) {
	w.t.Helper()
	return w.buildCtx(w.t.Context(), mods...)
}

func (w *world) buildCtx(ctx context.Context, mods ...mod) (*Result, *recorder, error) {
	w.t.Helper()
	rec := newRecorder()
	res, err := Run(ctx, w.options(rec, mods...))
	return res, rec, err
}

// ok is build for one that must succeed.
func (w *world) ok(mods ...mod) (*Result, *recorder) {
	w.t.Helper()
	res, rec, err := w.build(mods...)
	if err != nil {
		var b bytes.Buffer
		Explain(&b, err)
		w.t.Fatalf("build failed: %s", &b)
	}
	return res, rec
}

// fails is build for one that must fail with an exit code and an explanation that has all these words, and leave nothing.
func (w *world) fails(code int, words []string, mods ...mod) string {
	w.t.Helper()
	_, rec, err := w.build(mods...)
	return w.failed(code, words, rec, err)
}

func (w *world) failed(code int, words []string, rec *recorder, err error) string {
	w.t.Helper()
	if err == nil {
		w.t.Fatalf("the build succeeded; wanted exit code %d and %q", code, words)
	}
	var b bytes.Buffer
	Explain(&b, err)
	text := b.String()
	if got := ExitCode(err); got != code {
		w.t.Errorf("exit code %d, want %d, for %T: %s", got, code, err, text)
	}
	for _, word := range words {
		if !strings.Contains(text, word) {
			w.t.Errorf("%q is missing in: %s", word, text)
		}
	}
	if rec != nil {
		w.openVertices(rec)
	}
	w.nothingLeft()
	return text
}

// openVertices checks that a display is left with nothing that seems to go on.
func (w *world) openVertices(rec *recorder) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for id, n := range rec.open {
		if n {
			w.t.Errorf("%q was started and never ended", rec.names[id])
		}
	}
}

// sound checks the store: nothing in it lies.
func (w *world) sound() {
	w.t.Helper()
	if _, err := os.Stat(w.root + "/version"); err != nil {
		return
	}
	st, err := store.Open(w.root, store.Options{})
	must(w.t, err)
	defer st.Close()
	problems, err := st.Check(context.Background(), store.CheckOptions{
		References: cache.References,
		Verify: func(kind store.Kind, key string, data []byte) error {
			if kind == store.KindRecord {
				return cache.CheckRecord(key, data)
			}
			return nil
		},
		Repair:      w.damaged,
		VerifyIndex: snapshot.CheckIndex,
	})
	must(w.t, err)
	for _, p := range problems {
		if !p.Harmless() && !p.Repaired {
			w.t.Errorf("the store lies: %v", p)
		}
	}
}

// nothingLeft checks that no build left a temporary file, a lease, a mount or a process.
func (w *world) nothingLeft() {
	w.t.Helper()
	var left []string
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if left = w.leftovers(); len(left) == 0 {
			return
		}
	}
	w.t.Errorf("left behind: %v", left)
}

func (w *world) leftovers() []string {
	var left []string
	for _, pattern := range []string{"tmp/*", "lease/*", "local/*/tmp/*"} {
		m, _ := filepath.Glob(w.root + "/" + pattern)
		left = append(left, m...)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, w.root+"/") {
				left = append(left, line)
			}
		}
	}
	if w.parallel {
		return left
	}
	return append(left, children()...)
}

// children are the processes this one started in other pid namespaces: holders.
func children() []string {
	mine, _ := os.Readlink("/proc/self/ns/pid")
	var out []string
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(b)) {
			ns, err := os.Readlink("/proc/" + pid + "/ns/pid")
			if cmd, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.HasPrefix(string(cmd), "build-holder") || err == nil && ns != mine {
				out = append(out, "process "+pid+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
			}
		}
	}
	return out
}

// recorder keeps what a build said.
type recorder struct {
	mu       sync.Mutex
	names    map[progress.ID]string
	open     map[progress.ID]bool
	cached   []string
	done     []string
	logs     map[progress.ID]*bytes.Buffer
	messages []string
	warnings []string
	because  map[string]progress.Because // by instruction
	watch    func(progress.Event)
}

func newRecorder() *recorder {
	return &recorder{names: map[progress.ID]string{}, open: map[progress.ID]bool{}, logs: map[progress.ID]*bytes.Buffer{}, because: map[string]progress.Because{}}
}

func (r *recorder) Emit(e progress.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e := e.(type) {
	case progress.Started:
		r.names[e.ID], r.open[e.ID] = e.Name, true
	case progress.Cached:
		r.cached, r.open[e.ID] = append(r.cached, r.names[e.ID]), false
	case progress.Done:
		r.done, r.open[e.ID] = append(r.done, r.names[e.ID]), false
	case progress.Log:
		b := r.logs[e.ID]
		if b == nil {
			b = &bytes.Buffer{}
			r.logs[e.ID] = b
		}
		b.Write(e.Data)
	case progress.Because:
		r.because[bareTitle(r.names[e.ID])] = e
	case progress.Message:
		r.messages = append(r.messages, e.Text)
	case progress.Warning:
		r.warnings = append(r.warnings, e.Text)
	}
	if r.watch != nil {
		r.watch(e)
	}
}

// ran lists the instructions that were carried out, sorted: "RUN make", "COPY a /a".
func (r *recorder) ran() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, name := range r.done {
		_, instr, _ := strings.Cut(name, "] ")
		if word, _, _ := strings.Cut(instr, " "); slices.Contains([]string{"RUN", "COPY", "ADD", "WORKDIR"}, word) {
			out = append(out, instr)
		}
	}
	slices.Sort(out)
	return out
}

// log is what the steps whose name contains word printed.
func (r *recorder) log(word string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for id, l := range r.logs {
		if strings.Contains(r.names[id], word) {
			b.Write(l.Bytes())
		}
	}
	return b.String()
}

func wantRan(t testing.TB, what string, rec *recorder, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := rec.ran(); !slices.Equal(got, want) {
		t.Errorf("%s: ran %q, want %q", what, got, want)
	}
}

// needIDs skips where RUN is not possible at all.
func needIDs(t testing.TB) {
	t.Helper()
	h, _, _, err := userns.Open(t.Context(), nil)
	if err != nil {
		testenv.Skip(t, "namespaces: "+err.Error())
	}
	h.Close()
}

// tally counts, outside of every sandbox, which steps ran: they share the caller's network and ask it for a path.
type tally struct {
	*httptest.Server
	mu     sync.Mutex
	counts map[string]int
	came   map[string]chan struct{} // closed when a path was first asked for
	free   chan struct{}            // closed: whoever hangs goes on
}

// newTally starts one. Paths that begin with /hang/ answer when release is called; /meet/N/… when N steps wait there.
func newTally(t testing.TB) *tally {
	t.Helper()
	y := &tally{counts: map[string]int{}, came: map[string]chan struct{}{}, free: make(chan struct{})}
	y.Server = httptest.NewServer(y)
	t.Cleanup(func() {
		y.CloseClientConnections()
		y.Close()
	})
	return y
}

func (y *tally) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	y.mu.Lock()
	y.counts[r.URL.Path]++
	select {
	case <-y.sawLocked(r.URL.Path):
	default:
		close(y.came[r.URL.Path])
	}
	y.mu.Unlock()
	parts := strings.Split(r.URL.Path, "/")
	switch parts[1] {
	case "hang":
		select {
		case <-y.free:
		case <-r.Context().Done():
		}
	case "meet":
		n, _ := strconv.Atoi(parts[2])
		for end := time.Now().Add(20 * time.Second); y.under("/meet/") < n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) || r.Context().Err() != nil {
				http.Error(w, "nobody else came", http.StatusGatewayTimeout)
				return
			}
		}
	}
	fmt.Fprintln(w, "counted")
}

func (y *tally) sawLocked(path string) chan struct{} {
	if y.came[path] == nil {
		y.came[path] = make(chan struct{})
	}
	return y.came[path]
}

// saw is closed once a path was asked for.
func (y *tally) saw(path string) <-chan struct{} {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.sawLocked(path)
}

func (y *tally) under(prefix string) (n int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for p, c := range y.counts {
		if strings.HasPrefix(p, prefix) {
			n += c
		}
	}
	return n
}

// take returns the counts since the last time.
func (y *tally) take() map[string]int {
	y.mu.Lock()
	defer y.mu.Unlock()
	c := y.counts
	y.counts = map[string]int{}
	return c
}

// get is a command that is counted under a path.
func (y *tally) get(path string) string { return "wget -q -O /dev/null " + y.URL + "/" + path }

func waitFor(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain: %s", what)
	}
}

// freePort is an address nobody listens at.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// records returns every record of the store by the path of its file.
func (w *world) records(t testing.TB) map[string]*cache.Record {
	t.Helper()
	st, err := store.Open(w.root, store.Options{})
	must(t, err)
	defer st.Close()
	out := map[string]*cache.Record{}
	files, _ := filepath.Glob(w.root + "/record/*/*")
	for _, f := range files {
		k, err := cache.ParseKey(filepath.Base(f))
		must(t, err)
		rec, err := cache.New(st).Get(k)
		must(t, err)
		out[f] = rec
	}
	return out
}
