package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Lease keeps what a build uses from being collected. A build takes one when it begins, and adds to it what it is
// about to look for before it looks. The lease ends with Close or with the process.
type Lease struct {
	s  *Store
	f  *os.File
	mu sync.Mutex

	have map[Ref]bool
	torn bool // a line may have been written in part: begin the next with a line break
}

// Lease takes a lease.
func (s *Store) Lease() (*Lease, error) {
	for {
		now := s.opts.Now()
		s.since.Store(now.UnixNano())
		f, err := createLocked(s.path(leaseDir, randomName()))
		if err != nil {
			return nil, fmt.Errorf("take a lease: %w", err)
		}
		if f == nil {
			continue // taken for rubbish before it could be locked
		}
		if _, err := fmt.Fprintf(f, "since %d\n", now.UnixNano()); err != nil {
			os.Remove(f.Name())
			f.Close()
			return nil, fmt.Errorf("take a lease: %w", err)
		}
		s.point("lease.taken")
		return &Lease{s: s, f: f, have: make(map[Ref]bool)}, nil
	}
}

// Add notes that the thing will be used, whether it is there or not. Call it before looking: then either collection
// sees the lease and lets the thing be, or the thing is already gone when it is looked for.
func (l *Lease) Add(kind Kind, key string) error {
	ref := Ref{Kind: kind, Key: key}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return fmt.Errorf("lease %s: %w", ref, fs.ErrClosed)
	}
	if l.have[ref] {
		return nil
	}
	line := string(kind) + " " + strconv.Quote(key) + "\n"
	if l.torn {
		line = "\n" + line
	}
	if _, err := l.f.WriteString(line); err != nil {
		l.torn = true
		return fmt.Errorf("lease %s: %w", ref, err)
	}
	l.torn = false
	l.have[ref] = true
	l.s.point("lease.added")
	return nil
}

// Close ends the lease.
func (l *Lease) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := os.Remove(l.f.Name())
	if closeErr := l.f.Close(); err == nil {
		err = closeErr
	}
	l.f = nil
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

// leases is what living processes use.
type leases struct {
	refs   map[Ref]bool
	oldest time.Time // when the oldest lease was taken; zero: there is none
}

// covers reports whether something last used at a time may have been used under a lease that is still held.
func (l *leases) covers(used time.Time) bool {
	return !l.oldest.IsZero() && used.After(l.oldest.Add(-clockSlack))
}

// clockSlack is how far the time of a file that was just written may lie before what the clock says: the kernel stamps files
// with a clock that stands still between ticks, and some file systems keep only seconds.
const clockSlack = 2 * time.Second

// readLeases reads the leases of the living and, if sweep is set, removes those of the dead.
func (s *Store) readLeases(sweep bool) (*leases, error) {
	out := &leases{refs: make(map[Ref]bool)}
	entries, err := os.ReadDir(s.path(leaseDir))
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	for _, e := range entries {
		path := s.path(leaseDir, e.Name())
		f, dead, err := lockExisting(path)
		if err != nil {
			return nil, fmt.Errorf("read leases: %w", err)
		}
		if dead {
			if sweep {
				err = os.Remove(path)
			}
			f.Close()
			if err != nil {
				return nil, fmt.Errorf("remove the lease of a dead process: %w", err)
			}
			continue
		}
		if err := out.read(path); err != nil {
			return nil, fmt.Errorf("read leases: %w", err)
		}
	}
	return out, nil
}

func (l *leases) read(path string) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // given back since
	}
	if err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	taken := fi.ModTime() // of one that is just being written
	for line := range strings.Lines(string(b)) {
		kind, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok {
			continue
		}
		if kind == "since" {
			if n, err := strconv.ParseInt(rest, 10, 64); err == nil {
				taken = time.Unix(0, n)
			}
		} else if key, err := strconv.Unquote(rest); err == nil {
			l.refs[Ref{Kind: Kind(kind), Key: key}] = true
		}
	}
	if l.oldest.IsZero() || taken.Before(l.oldest) {
		l.oldest = taken
	}
	return nil
}
