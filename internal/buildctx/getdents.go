package buildctx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

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
	path string // ends in name
	kind byte   // DT_…
}

var scratches = sync.Pool{New: func() any { return &scratch{buf: make([]byte, 32<<10)} }}

// Where the fields of a linux_dirent64 are.
const (
	direntLen  = 16
	direntType = 18
	direntName = 19
)

var errDirent = errors.New("the kernel returned a malformed directory entry")

// read fills names with what is in the directory at fd, whose path is dir, sorted. The strings stay valid; the slice does not.
func (s *scratch) read(fd int, dir string) error {
	if dir != "" {
		dir += "/"
	}
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
			s.text = append(append(s.text, dir...), name...)
			s.ends = append(s.ends, len(s.text))
			s.names = append(s.names, dirent{kind: kind})
		}
	}
	all, from := string(s.text), 0 // one allocation for all names
	for i, end := range s.ends {
		s.names[i].path = all[from:end]
		s.names[i].name = all[from+len(dir) : end]
		from = end
	}
	slices.SortFunc(s.names, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	return nil
}

// maxReaders bounds the goroutines that read directories ahead.
const maxReaders = 8

// readAhead starts to read a directory and all below it, in parallel to the caller, who looks at them meanwhile and reads those
// that no helper has come to. Errors are in the listings. The function it returns ends the reading and waits for that.
func (d *Dir) readAhead(path string, v verdict) (end func()) {
	d.mu.Lock()
	known := d.walked[path]
	d.mu.Unlock()
	helpers := min(runtime.GOMAXPROCS(0), maxReaders) - 1 // who asks is one more
	if known || helpers == 0 {
		return func() {}
	}
	q := &queue{todo: []task{{path, v}}}
	q.more.L = &q.mu
	var wg sync.WaitGroup
	for range helpers {
		wg.Go(func() { q.work(d) })
	}
	return func() {
		q.stop()
		wg.Wait()
	}
}

// task is a directory to be read.
type task struct {
	path string
	v    verdict
}

// queue holds directories that are still to be read by whoever has nothing to do. What a worker finds it keeps for itself as
// long as all others are busy, so that they seldom meet.
type queue struct {
	mu      sync.Mutex
	more    sync.Cond
	todo    []task
	busy    int
	waiting atomic.Int32
	stopped atomic.Bool
}

// stop makes work end soon.
func (q *queue) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped.Store(true)
	q.more.Broadcast()
}

// work reads directories until there are none left and nobody is about to find more, or it is stopped.
func (q *queue) work(d *Dir) {
	for {
		t, ok := q.take()
		if !ok {
			return
		}
		for own := []task{t}; len(own) > 0 && !q.stopped.Load(); {
			t, own = own[len(own)-1], own[:len(own)-1]
			own = q.subdirs(d, t, own)
			if len(own) > 1 && q.waiting.Load() > 0 {
				own = q.share(own)
			}
		}
		q.mu.Lock()
		q.busy--
		q.mu.Unlock()
		q.more.Broadcast()
	}
}

// take waits for a directory to read; false when there will be no more.
func (q *queue) take() (task, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting.Add(1)
	defer q.waiting.Add(-1)
	for len(q.todo) == 0 && q.busy > 0 && !q.stopped.Load() {
		q.more.Wait()
	}
	if len(q.todo) == 0 || q.stopped.Load() {
		return task{}, false
	}
	t := q.todo[len(q.todo)-1]
	q.todo = q.todo[:len(q.todo)-1]
	q.busy++
	return t, true
}

// share gives the half of own that is higher up in the tree to others and returns the rest.
func (q *queue) share(own []task) []task {
	half := len(own) / 2
	q.mu.Lock()
	q.todo = append(q.todo, own[:half]...)
	q.mu.Unlock()
	q.more.Broadcast()
	return append(own[:0], own[half:]...)
}

// subdirs reads a directory and appends the directories in it.
func (q *queue) subdirs(d *Dir, t task, below []task) []task {
	l, err := d.list(t.path, t.v)
	if err != nil {
		return below
	}
	for i := range l.nodes {
		if n := &l.nodes[i]; n.kind == tree.Dir {
			below = append(below, task{n.path, n.verdict()})
		}
	}
	return below
}
