package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How often a busy lock is tried again: soon at first, because most are held for moments.
const (
	firstRetry = 500 * time.Microsecond
	lastRetry  = 50 * time.Millisecond
)

// The locks that this package takes itself. FORMAT.md has their order.
const (
	collectLock = "collect"
	namesLock   = "names"
)

// Lock takes the lock of that name and returns what gives it back, which may be called more than once. While somebody
// else has the lock, waiting (unless nil) is told who, and again when that changes. The wait ends with ctx.
//
// Two holders never overlap, be they processes or goroutines of one. A lock ends with the process that holds it.
func (s *Store) Lock(ctx context.Context, name string, waiting func(holder string)) (unlock func(), err error) {
	told, delay := "", firstRetry
	for {
		unlock, ok, err := s.TryLock(name)
		if err != nil || ok {
			return unlock, err
		}
		if waiting != nil {
			if h := s.holder(name); h != told {
				told = h
				waiting(h)
			}
		}
		t := time.NewTimer(delay/2 + rand.N(delay/2+1))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("wait for lock %s: %w", name, context.Cause(ctx))
		case <-t.C:
		}
		delay = min(2*delay, lastRetry)
	}
}

// TryLock takes the lock of that name if nobody has it.
func (s *Store) TryLock(name string) (unlock func(), ok bool, err error) {
	f, ok, err := lockFile(s.lockPath(name))
	if err != nil {
		return nil, false, fmt.Errorf("lock %s: %w", name, err)
	}
	if !ok {
		return nil, false, nil
	}
	// Only information: a disk too full for it must not keep anybody from working.
	_, _ = f.WriteAt(s.holderText(name), 0)
	var once sync.Once
	return func() {
		once.Do(func() {
			_ = f.Truncate(0)
			f.Close()
		})
	}, true, nil
}

func (s *Store) lockPath(name string) string {
	sum := sha256.Sum256([]byte(name))
	return s.path(lockDir, hex.EncodeToString(sum[:16]))
}

// openLock opens a lock file. The descriptor does not survive an exec: a lock must end with the process that took it.
func openLock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
}

// flock takes an exclusive lock without waiting.
func flock(f *os.File) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		default:
			return false, os.NewSyscallError("flock", err)
		}
	}
}

// lockFile locks the file at path, emptied, creating it when missing. Lock files are removed by those who hold their
// lock, so a lock counts only if the path still leads to the file that was locked.
func lockFile(path string) (*os.File, bool, error) {
	for {
		f, err := openLock(path)
		if err != nil {
			return nil, false, err
		}
		ok, err := flock(f)
		if err != nil || !ok {
			f.Close()
			return nil, false, err
		}
		same, err := leadsTo(path, f)
		if err == nil && same {
			err = f.Truncate(0)
		}
		if err != nil {
			f.Close()
			return nil, false, err
		}
		if same {
			return f, true, nil
		}
		f.Close()
	}
}

// leadsTo reports whether path still leads to the open file.
func leadsTo(path string, f *os.File) (bool, error) {
	at, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	have, err := f.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(at, have), nil
}

// lockExisting locks a file that somebody may hold, for looking at what the dead left. ok is false when it is held or gone.
func lockExisting(path string) (f *os.File, ok bool, err error) {
	f, err = os.OpenFile(path, os.O_RDWR|syscall.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if ok, err = flock(f); err == nil && ok {
		ok, err = leadsTo(path, f)
	}
	if err != nil || !ok {
		f.Close()
		return nil, false, err
	}
	return f, true, nil
}

// holderText is what a lock file says about who holds it: one "name value" pair a line.
func (s *Store) holderText(name string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "lock %s\npid %d\npidns %s\nsince %s\nwho %s\n", strconv.Quote(name), os.Getpid(), pidNamespace(),
		s.opts.Now().UTC().Format(time.RFC3339), strconv.Quote(s.who()))
	return []byte(b.String())
}

func (s *Store) who() string {
	if s.opts.Who != "" {
		return s.opts.Who
	}
	return commandLine()
}

// commandLine is what this process was started as, without the values of name=value arguments, which may be secret.
var commandLine = sync.OnceValue(func() string { return commandLineOf(os.Args) })

func commandLineOf(argv []string) string {
	args := []string{filepath.Base(argv[0])}
	for _, a := range argv[1:] {
		flag, rest := "", a
		if strings.HasPrefix(a, "-") {
			if f, v, ok := strings.Cut(a, "="); ok {
				flag, rest = f+"=", v
			}
		}
		if k, _, ok := strings.Cut(rest, "="); ok {
			rest = k + "=…"
		}
		args = append(args, flag+rest)
	}
	line := strings.Join(args, " ")
	if len(line) > 200 {
		line = strings.ToValidUTF8(line[:200], "") + "…"
	}
	return line
}

var pidNamespace = sync.OnceValue(func() string {
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "unknown"
	}
	return ns
})

// holderInfo is what a lock file says.
type holderInfo struct {
	lock, pidns, who string
	pid              int
	since            time.Time
}

func readHolder(f io.Reader) (holderInfo, bool) {
	var h holderInfo
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return h, false
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch name {
		case "lock":
			h.lock, err = strconv.Unquote(value)
		case "pid":
			h.pid, err = strconv.Atoi(value)
		case "pidns":
			h.pidns = value
		case "since":
			h.since, err = time.Parse(time.RFC3339, value)
		case "who":
			h.who, err = strconv.Unquote(value)
		}
		if err != nil {
			return h, false
		}
	}
	return h, h.who != ""
}

func (h holderInfo) String() string {
	return fmt.Sprintf("pid %d (%s) since %s", h.pid, h.who, h.since.Local().Format("15:04:05"))
}

// holder says who has a lock, as far as the lock file tells.
func (s *Store) holder(name string) string {
	f, err := os.Open(s.lockPath(name))
	if err != nil {
		return "another process"
	}
	defer f.Close()
	h, ok := readHolder(f)
	if !ok {
		return "another process"
	}
	return h.String()
}
