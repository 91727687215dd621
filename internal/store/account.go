package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// usageFile has the running sum of what is in the store: a line "build store usage 1 <bytes> <unix ns> <bytes>" that a
// collection wrote when it counted (what there was, when, and what it could not get below its limit, or 0), and after it a
// line with a signed number for every process that added or removed something since. Reading it costs the same whatever the
// store holds. It is an estimate: a process that was killed added no line, and cache mounts grow without one. Counting
// corrects it.
const (
	usageFile = "usage"
	usageHead = "build store usage 1 "
)

// emptyUsage is the account of a new store.
func (s *Store) emptyUsage() string {
	return fmt.Sprintf("%s0 %d 0\n", usageHead, s.opts.Now().UnixNano())
}

// Account is what the running sum says.
type Account struct {
	Bytes   int64     // in the store, on the disk
	Counted time.Time // when all of it was counted; zero: never
	// Stuck is what the last collection left although it was above its limit, because all of it was in use or named; 0 when
	// it got below.
	Stuck int64
	Lines int // added since it was counted
}

// How long an account is good for: cache mounts and the traces of the dead are in none of its lines.
const (
	accountAge   = 24 * time.Hour
	accountLines = 1000
)

// Stale reports whether counting anew is due.
func (a Account) Stale(now time.Time) bool {
	return a.Counted.IsZero() || a.Lines > accountLines || a.Lines > 0 && now.Sub(a.Counted) > accountAge
}

// Account reads the running sum. One that is missing or damaged was never counted.
func (s *Store) Account() Account {
	b, err := os.ReadFile(s.path(usageFile))
	if err != nil {
		return Account{}
	}
	return parseAccount(b)
}

func parseAccount(b []byte) Account {
	head, rest, ok := bytes.Cut(b, []byte("\n"))
	text, isHead := strings.CutPrefix(string(head), usageHead)
	var a Account
	var at int64
	if n, err := fmt.Sscan(text, &a.Bytes, &at, &a.Stuck); !ok || !isHead || err != nil || n != 3 {
		return Account{}
	}
	a.Counted = time.Unix(0, at)
	for line := range strings.Lines(string(rest)) {
		if n, err := strconv.ParseInt(strings.TrimSuffix(line, "\n"), 10, 64); err == nil { // one that was cut off by a full disk is no number
			a.Bytes += n
			a.Lines++
		}
	}
	a.Bytes = max(a.Bytes, 0)
	return a
}

// grow notes that this process made the store larger, or with a negative number smaller.
func (s *Store) grow(bytes int64) { s.grown.Add(bytes) }

// block is the unit in which file systems give out room. What a file takes is known from its size without asking.
const block = 4096

func inBlocks(size int64) int64 { return (size + block - 1) &^ (block - 1) }

// tell adds what this process changed to the running sum.
func (s *Store) tell() {
	n := s.grown.Swap(0)
	if n == 0 {
		return
	}
	f, err := os.OpenFile(s.path(usageFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return // an estimate that is off until the next counting
	}
	defer f.Close()
	_, _ = f.WriteString(strconv.FormatInt(n, 10) + "\n")
}

// accountMark is how far the account was written when counting began: what comes after may not have been counted.
func (s *Store) accountMark() int64 {
	fi, err := os.Stat(s.path(usageFile))
	if err != nil {
		return 0
	}
	return fi.Size()
}

// counted replaces the running sum by what was counted. Lines that came after the mark are kept: perhaps some of them are
// counted twice then, until the next time, but none is lost.
func (s *Store) counted(mark, total, stuck int64) error {
	b, err := os.ReadFile(s.path(usageFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var rest []byte
	if int64(len(b)) > mark {
		rest = b[mark:]
	}
	head := fmt.Appendf(nil, "%s%d %d %d\n", usageHead, total, s.opts.Now().UnixNano(), stuck)
	if mark == 0 && !bytes.HasPrefix(rest, []byte(usageHead)) || mark > 0 {
		head = append(head, rest...)
	}
	return s.publish(s.path(usageFile), head, usageFile, false)
}

// trimFile is what the last collection that ran by itself did, for whoever looks at the store next: nobody was there to be told.
const trimFile = "trimmed"

// TrimNote is what a collection that ran by itself did.
type TrimNote struct {
	Time  time.Time `json:"time"`
	Freed int64     `json:"freed"`
	Error string    `json:"error,omitempty"`
}

// NoteTrim writes down what a collection did.
func (s *Store) NoteTrim(n TrimNote) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return s.publish(s.path(trimFile), append(data, '\n'), trimFile, false)
}

// LastTrim returns what NoteTrim wrote; the zero value when there is nothing.
func (s *Store) LastTrim() TrimNote {
	var n TrimNote
	b, err := os.ReadFile(s.path(trimFile))
	if err != nil || json.Unmarshal(b, &n) != nil {
		return TrimNote{}
	}
	return n
}
