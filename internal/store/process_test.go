package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"build/internal/testenv"
)

func itoa(n int) string { return strconv.Itoa(n) }

// The second processes of these tests are this test binary again, told by a variable what to do.
const workerVar = "STORE_TEST_WORKER"

// work is what a worker is told.
type work struct {
	Dir   string
	Seed  uint64
	For   time.Duration
	DieAt string // end by SIGKILL at this point
	After int    // when it was reached so many times
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(workerVar); spec != "" {
		var w work
		if err := json.Unmarshal([]byte(spec), &w); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := w.run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func (w work) command(t *testing.T) *exec.Cmd {
	t.Helper()
	spec, err := json.Marshal(w)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerVar+"="+string(spec))
	cmd.Stderr = new(bytes.Buffer)
	return cmd
}

// universe is how many different things the workers publish, few enough to meet.
const universe = 24

func blobContent(i int) []byte { return randomBytes(uint64(i), 3000+500*i) }

// run does random things to the store until the time is up, each checked as far as that is possible among others.
func (w work) run() error {
	reached := 0
	s, err := Open(w.Dir, Options{Point: func(p string) {
		if p == w.DieAt {
			if reached++; reached > w.After {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}})
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(w.Seed, 1))
	ops := []func(*Store, *rand.Rand) error{
		workPublish, workPublish, workPublish, workRead, workRead, workRead,
		workLock, workLock, workName, workSync, workCollect, workCheck, workTemp,
	}
	for end := time.Now().Add(w.For); time.Now().Before(end); {
		if err := ops[r.IntN(len(ops))](s, r); err != nil {
			return err
		}
	}
	return nil
}

// workPublish does what a build does: lease, blob, layer, record.
func workPublish(s *Store, r *rand.Rand) error {
	l, err := s.Lease()
	if err != nil {
		return err
	}
	defer l.Close()
	i := r.IntN(universe)
	if err := l.Add(KindLayer, fmt.Sprint("l-", i)); err != nil {
		return err
	}
	d, err := putBlob(s, blobContent(i))
	if err != nil {
		return err
	}
	if err := s.Write(KindLayer, fmt.Sprint("l-", i), []byte("blob "+d.String()+"\n")); err != nil {
		return err
	}
	if err := s.Write(KindRecord, fmt.Sprint("r-", i), fmt.Appendf(nil, "layer l-%d\n", i)); err != nil {
		return err
	}
	return readBack(s, i, true)
}

// workRead leases a record and looks. What is not there, or lacks something, is a miss: somebody may just be publishing it
// or putting it back. What was found whole must stay whole as long as the lease is held.
func workRead(s *Store, r *rand.Rand) error {
	l, err := s.Lease()
	if err != nil {
		return err
	}
	defer l.Close()
	i := r.IntN(universe)
	if err := l.Add(KindRecord, fmt.Sprint("r-", i)); err != nil {
		return err
	}
	if _, err := s.Read(KindRecord, fmt.Sprint("r-", i)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := readBack(s, i, false); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond)
	return readBack(s, i, false)
}

func readBack(s *Store, i int, published bool) error {
	if _, err := s.Read(KindLayer, fmt.Sprint("l-", i)); err != nil {
		return fmt.Errorf("layer %d under a lease (published here: %v): %w", i, published, err)
	}
	want := blobContent(i)
	got, err := readBlob(s, digest.FromBytes(want))
	if err != nil {
		return fmt.Errorf("blob %d under a lease (published here: %v): %w", i, published, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("blob %d has other bytes", i)
	}
	return nil
}

// workLock writes its pid under a lock and finds it there a moment later.
func workLock(s *Store, r *rand.Rand) error {
	name := fmt.Sprint("step-", r.IntN(3))
	unlock, err := s.Lock(context.Background(), name, func(string) {})
	if err != nil {
		return err
	}
	defer unlock()
	s.point("test.locked")
	path := s.dir + "-" + name
	mine := itoa(os.Getpid())
	if err := os.WriteFile(path, []byte(mine), 0o600); err != nil {
		return err
	}
	time.Sleep(time.Duration(r.IntN(2)) * time.Millisecond)
	if got, err := os.ReadFile(path); err != nil || string(got) != mine {
		return fmt.Errorf("%s was locked by %q too (%v)", name, got, err)
	}
	return nil
}

func workName(s *Store, r *rand.Rand) error {
	l, err := s.Lease()
	if err != nil {
		return err
	}
	defer l.Close()
	ref := fmt.Sprint("app:", r.IntN(4))
	if r.IntN(4) == 0 {
		return s.RemoveName(ref)
	}
	img, err := putImage(s, blobContent(r.IntN(universe)))
	if err != nil {
		return err
	}
	return s.SetName(ref, Name{Descriptor: img, Origin: []Origin{Built, Pulled}[r.IntN(2)], Complete: true})
}

func workSync(s *Store, _ *rand.Rand) error { return s.Sync() }

func workTemp(s *Store, _ *rand.Rand) error {
	dir, release, err := s.TempDir()
	if err != nil {
		return err
	}
	defer release()
	s.point("test.temp")
	return os.WriteFile(dir+"/f", []byte("x"), 0o600)
}

// workCollect evicts half of the store, as if everything had not been used for long: only leases protect.
func workCollect(s *Store, r *rand.Rand) error {
	future := &Store{dir: s.dir, boot: s.boot, opts: s.opts}
	future.opts.Now = func() time.Time { return time.Now().Add(3 * time.Hour) }
	g, err := s.list()
	if err != nil {
		return err
	}
	total := g.total
	_, err = future.Collect(context.Background(), CollectOptions{Limited: true, Limit: total / int64(1+r.IntN(3)), References: testReferences})
	var busy *BusyError
	if errors.As(err, &busy) {
		return nil
	}
	return err
}

func workCheck(s *Store, r *rand.Rand) error {
	if r.IntN(4) != 0 {
		return nil
	}
	ps, err := s.Check(context.Background(), CheckOptions{})
	for _, p := range ps {
		if !p.Harmless() {
			return fmt.Errorf("the store lies: %v", p)
		}
	}
	return err
}

// points are all the places at which a worker can be killed.
var points = []string{
	"blob.temp", "blob.written", "blob.marked", "blob.published",
	"record.temp", "record.written", "record.published", "layer.written", "layer.published",
	"name.temp", "name.written", "name.published", "name.unlisted",
	"index.json.temp", "index.json.written", "index.json.published",
	"lease.taken", "lease.added", "sync.flushed", "sync.sealed", "synced.written", "synced.published",
	"collect.unlisted", "collect.trashed", "collect.removed", "test.locked", "test.temp",
}

// Twelve processes share a store; in each round most of them are killed, each at another point. After it nothing in
// the store lies, no lock is stuck, and everything can be made and read again.
func TestProcessesKilledAtEveryPoint(t *testing.T) {
	const processes, survivors = 12, 3
	span := 700 * time.Millisecond
	left := slices.Clone(points)
	killed := make(map[string]bool)
	for round := 0; len(left) > 0 && round < 12; round++ {
		s := openTest(t, Options{})
		var cmds []*exec.Cmd
		for i := range processes {
			w := work{Dir: s.dir, Seed: uint64(100*round + i), For: span}
			if i >= survivors {
				w.DieAt, w.After = left[i%len(left)], i%3
				w.For = 20 * span // it ends at its point; if that is rare, not much later than the others
			}
			cmd := w.command(t)
			must(t, cmd.Start())
			cmds = append(cmds, cmd)
		}
		for i, cmd := range cmds {
			err := cmd.Wait()
			if point := left[i%len(left)]; i >= survivors && killedBy(cmd) == syscall.SIGKILL {
				killed[point] = true
			} else if err != nil {
				t.Errorf("worker %d of round %d: %v: %s", i, round, err, cmd.Stderr)
			}
		}
		left = slices.DeleteFunc(left, func(p string) bool { return killed[p] })
		afterKills(t, s)
	}
	if len(left) > 0 {
		t.Errorf("nobody was killed at %v", left)
	}
}

func killedBy(cmd *exec.Cmd) syscall.Signal {
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return ws.Signal()
	}
	return 0
}

func afterKills(t *testing.T, s *Store) {
	t.Helper()
	mustBeSound(t, s)
	for i := range 3 {
		unlock, ok, err := s.TryLock(fmt.Sprint("step-", i))
		if err != nil || !ok {
			t.Errorf("a lock is stuck: %v", err)
			continue
		}
		unlock()
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 30 {
		must(t, errors.Join(workRead(s, r), workPublish(s, r)))
	}
	_, err := s.Collect(context.Background(), CollectOptions{})
	must(t, err)
	must(t, s.Close())
	ps, err := s.Check(context.Background(), CheckOptions{References: testReferences})
	must(t, err)
	if len(ps) > 0 {
		t.Errorf("after a collection: %v", ps)
	}
	if left, _ := os.ReadDir(s.path(trashDir)); len(left) > 0 {
		t.Errorf("in the trash: %v", left)
	}
}

// The descriptor of a lock must not reach what a process starts: a lock ends with its holder.
func TestLockIsNotInherited(t *testing.T) {
	s := openTest(t, Options{})
	unlock, err := s.Lock(context.Background(), "x", nil)
	must(t, err)
	cmd := exec.Command("sleep", "60")
	must(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid))
	must(t, err)
	for _, fd := range fds {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", cmd.Process.Pid, fd.Name())); strings.HasPrefix(to, s.dir) {
			t.Errorf("a child has %s", to)
		}
	}
	unlock()
	again, ok, err := s.TryLock("x")
	if err != nil || !ok {
		t.Fatalf("not free while a child runs: %v", err)
	}
	again()
}

// The holder of a user namespace opens the store of the user who started it, and what it makes there is that user's.
func TestSharedWithAUserNamespace(t *testing.T) {
	s := openTest(t, Options{})
	var cmds []*exec.Cmd
	for i := range 4 {
		cmd := work{Dir: s.dir, Seed: uint64(i), For: 300 * time.Millisecond}.command(t)
		if i%2 == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
			}
		}
		if err := cmd.Start(); i%2 == 0 && err != nil {
			testenv.Skip(t, "user namespaces ("+err.Error()+")")
		} else if err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("worker %d: %v: %s", i, err, cmd.Stderr)
		}
	}
	_ = filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		must(t, err)
		fi, err := e.Info()
		must(t, err)
		if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Getuid() {
			t.Errorf("%s belongs to uid %d", s.rel(path), st.Uid)
		}
		return nil
	})
	afterKills(t, s)
}
