package buildctx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// scratch is what reading a directory needs for a moment.
type scratch struct {
	buf   []byte
	names []dirent
	text  []byte
	ends  []int
}

// dirent is one name in a directory.
type dirent struct {
	name string
	kind byte // DT_…
}

var scratches = sync.Pool{New: func() any { return &scratch{buf: make([]byte, 32<<10)} }}

// Where the fields of a linux_dirent64 are.
const (
	direntLen  = 16
	direntType = 18
	direntName = 19
)

var errDirent = errors.New("the kernel returned a malformed directory entry")

// read fills names with what is in the directory at fd, sorted. The names stay valid; the slice does not.
func (s *scratch) read(fd int) error {
	s.names, s.text, s.ends = s.names[:0], s.text[:0], s.ends[:0]
	for {
		n, err := retry(func() (int, error) { return unix.Getdents(fd, s.buf) })
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		for rest := s.buf[:n]; len(rest) > 0; {
			if len(rest) < direntName {
				return errDirent
			}
			size := int(binary.NativeEndian.Uint16(rest[direntLen:]))
			if size <= direntName || size > len(rest) {
				return errDirent
			}
			name, _, _ := bytes.Cut(rest[direntName:size], []byte{0})
			kind := rest[direntType]
			rest = rest[size:]
			if string(name) == "." || string(name) == ".." || kind == unix.DT_SOCK {
				continue
			}
			s.text = append(s.text, name...)
			s.ends = append(s.ends, len(s.text))
			s.names = append(s.names, dirent{kind: kind})
		}
	}
	all, from := string(s.text), 0 // one allocation for all names
	for i, end := range s.ends {
		s.names[i].name = all[from:end]
		from = end
	}
	slices.SortFunc(s.names, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	return nil
}

// maxReaders bounds the goroutines that read directories ahead.
const maxReaders = 8

// readAhead reads a directory and all directories below it, in parallel. Errors wait in the listings.
func (d *Dir) readAhead(path string, v verdict) {
	q := &queue{todo: []task{{path, v}}}
	q.more.L = &q.mu
	workers := min(runtime.GOMAXPROCS(0), maxReaders)
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(func() { q.work(d) })
	}
	q.work(d)
	wg.Wait()
}

// task is a directory to be read.
type task struct {
	path string
	v    verdict
}

// queue holds the directories that are still to be read.
type queue struct {
	mu   sync.Mutex
	more sync.Cond
	todo []task
	busy int
}

// work reads directories until there are none left and nobody is about to find more.
func (q *queue) work(d *Dir) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.todo) == 0 {
			if q.busy == 0 {
				q.more.Broadcast()
				return
			}
			q.more.Wait()
		}
		t := q.todo[len(q.todo)-1]
		q.todo = q.todo[:len(q.todo)-1]
		q.busy++
		q.mu.Unlock()
		below := d.subdirs(t)
		q.mu.Lock()
		q.busy--
		q.todo = append(q.todo, below...)
		if len(below) > 0 || q.busy == 0 {
			q.more.Broadcast()
		}
	}
}

// subdirs reads a directory and returns the directories in it.
func (d *Dir) subdirs(t task) []task {
	l, err := d.list(t.path, t.v)
	if err != nil {
		return nil
	}
	var below []task
	for i := range l.nodes {
		if n := &l.nodes[i]; n.kind == tree.Dir {
			below = append(below, task{tree.Join(t.path, n.name), n.verdict})
		}
	}
	return below
}
