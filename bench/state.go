package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// states hands out the directories that builders keep what they know in, and takes them back. Nothing is deleted between the
// runs of a row, because whoever comes next would pay for it, unless memory (a tmpfs is made of it) gets scarce.
type states struct {
	dir     string
	current map[[2]string]string // builder and workload → directory
	owners  map[string]builder   // directory → whose it is
	trash   []string
	next    int
	keep    int64 // bytes of memory that must stay free
	notes   func(string)
}

func newStates(dir string, keep int64, notes func(string)) *states {
	return &states{dir: dir, current: map[[2]string]string{}, owners: map[string]builder{}, keep: keep, notes: notes}
}

// get returns a builder's state for a workload and its daemon; fresh asks for a new one, and retires the one before.
func (s *states) get(ctx context.Context, b builder, work string, fresh bool) (dir string, daemon int, known bool, err error) {
	key := [2]string{b.name(), work}
	dir, known = s.current[key]
	if known && fresh {
		if err := s.retire(dir); err != nil {
			return "", 0, false, err
		}
		known = false
	}
	if !known {
		s.next++
		dir = filepath.Join(s.dir, fmt.Sprintf("%s-%d", b.name(), s.next))
		s.current[key], s.owners[dir] = dir, b
	}
	daemon, err = b.open(ctx, dir)
	return dir, daemon, known, err
}

// file is a place for something that a run writes.
func (s *states) file(name string) string {
	s.next++
	return filepath.Join(s.dir, fmt.Sprintf("%s-%d", name, s.next))
}

// discard has something deleted, later.
func (s *states) discard(path string) { s.trash = append(s.trash, path) }

func (s *states) retire(dir string) error {
	b := s.owners[dir]
	delete(s.owners, dir)
	s.discard(dir)
	return b.close(dir)
}

// endWorkload retires all states of a workload and deletes what was discarded.
func (s *states) endWorkload(work string) error {
	var errs []error
	for key, dir := range s.current {
		if key[1] == work {
			errs = append(errs, s.retire(dir))
			delete(s.current, key)
		}
	}
	return errors.Join(append(errs, s.empty())...)
}

func (s *states) empty() error {
	var errs []error
	for _, path := range s.trash {
		errs = append(errs, os.RemoveAll(path))
	}
	s.trash = nil
	return errors.Join(errs...)
}

// closeAll ends all daemons, and leaves nothing.
func (s *states) closeAll() error {
	var errs []error
	for dir := range s.owners {
		errs = append(errs, s.retire(dir))
	}
	return errors.Join(append(errs, s.empty())...)
}

// makeRoom deletes what was discarded when less than keep is left.
func (s *states) makeRoom() error {
	free, err := available()
	if err != nil || free >= s.keep || len(s.trash) == 0 {
		return err
	}
	s.notes(fmt.Sprintf("only %d MiB of memory were left: deleted what earlier runs had left behind", free>>20))
	return s.empty()
}

// spare is what touch leaves alone, in bytes.
const spare = 1 << 30

// touch writes to the memory that is to stay free, and gives it back. A virtual machine gets memory from its host when it first
// writes to it, and may return what it has not used for a while: on a machine like that the same write to a tmpfs took up to eight
// times as long, whoever happened to make it.
func (s *states) touch() error {
	free, err := available()
	if err != nil {
		return err
	}
	file := s.file("touched")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	defer f.Close()
	zeros := make([]byte, 1<<20)
	for n := min(s.keep, free-spare); n > 0; n -= int64(len(zeros)) {
		if _, err := f.Write(zeros); err != nil {
			return fmt.Errorf("write to the memory that is free: %w", err)
		}
	}
	return nil
}

// available is how much memory the kernel could give away without swapping, in bytes (MemAvailable of proc_meminfo(5)).
func available() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "MemAvailable:") {
			return fieldOf(lines.Text(), "MemAvailable:") << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

// isTmpfs reports whether a directory is on a tmpfs.
func isTmpfs(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return st.Type == unix.TMPFS_MAGIC, nil
}
