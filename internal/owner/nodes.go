package owner

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Node names a file that cannot carry a record: its inode and when that was made, because inodes are used again. All files of
// one table are on one file system, and an overlay shows both as the file below has them.
type Node struct {
	Ino  uint64
	Born int64 // nanoseconds since 1970; 0 where the file system does not say
}

// NodeMask is what statx must be asked for.
const NodeMask = unix.STATX_INO | unix.STATX_BTIME

// NodeOf names the file that statx described.
func NodeOf(st *unix.Statx_t) Node {
	n := Node{Ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		n.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return n
}

// Nodes is the table of such files. The zero value is an empty one. It may be used by many goroutines.
type Nodes struct {
	mu sync.RWMutex
	m  map[Node]Record
}

// Get returns the record of a file.
func (t *Nodes) Get(n Node) (Record, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r, ok := t.m[n]
	return r, ok
}

// Empty reports whether there is no record.
func (t *Nodes) Empty() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.m) == 0
}

// Set writes the record of a file.
func (t *Nodes) Set(n Node, r Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[Node]Record{}
	}
	t.m[n] = r
}

// WriteNode writes one line of what Read reads.
func WriteNode(w io.Writer, n Node, r Record) error {
	_, err := fmt.Fprintf(w, "%d %d %s\n", n.Ino, n.Born, r)
	return err
}

// Read adds what WriteNode wrote.
func (t *Nodes) Read(r io.Reader) error {
	s := bufio.NewScanner(r)
	for s.Scan() {
		ino, rest, _ := strings.Cut(s.Text(), " ")
		born, record, _ := strings.Cut(rest, " ")
		i, err1 := strconv.ParseUint(ino, 10, 64)
		b, err2 := strconv.ParseInt(born, 10, 64)
		rec, ok := parse(record)
		if err1 != nil || err2 != nil || !ok {
			return fmt.Errorf("table of owners: %.80q is no record", s.Text())
		}
		t.Set(Node{Ino: i, Born: b}, rec)
	}
	return s.Err()
}
