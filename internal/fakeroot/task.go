package fakeroot

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel tells of a call which thread makes it, not who started that thread. A thread that is seen for the first time has
// the credentials of its process, and a process those of its parent, at the time it was made. That time is past, but
// credentials change in calls that come here, and parents are forgotten when they end, in a call that comes here too: before
// either, the children that are still unknown are given what they inherited (settle). Calls that make threads and processes
// therefore need no help. A parent that is killed before its child's first call is the exception: such a child counts as one
// of whoever adopts it.

// task is one thread of the step.
type task struct {
	tid, tgid uint32
	cred      *credentials
	pending   *pendingExec
	dir       int    // /proc/<tid>; -1 when it was closed to save descriptors
	start     string // of the thread, as /proc says, when dir is -1: thread ids are used again
	used      uint64 // clock of the last use
	checked   time.Time
}

// certain is how long a thread that was there cannot have ended and its id been given to another: ids go around, and there are
// tens of thousands.
const certain = 100 * time.Millisecond

// pendingExec is what a thread is if its execve succeeds.
type pendingExec struct {
	cred  *credentials
	image string // the program before
}

// maxOpen is how many directories of /proc are kept open. A step with more threads than that opens some again and again.
const maxOpen = 128

// tasks knows the threads of a step.
type tasks struct {
	proc    int // a procfs of our pid namespace
	self    uint32
	initial *credentials
	first   *task // of the step: adopts who loses its parent
	known   map[uint32]*task
	clock   uint64
	open    int
	sweepAt int
	buf     [4096]byte
}

func newTasks(proc int, initial *credentials) *tasks {
	return &tasks{proc: proc, self: uint32(unix.Getpid()), initial: initial, known: map[uint32]*task{}, sweepAt: 256}
}

// find returns the thread, which must be waiting for an answer: id says which call. Nil means that it has gone.
func (ts *tasks) find(tid uint32, valid func() bool) *task {
	ts.clock++
	t := ts.known[tid]
	if t != nil && !ts.alive(t) {
		ts.forget(t)
		t = nil
	}
	if t == nil {
		if t = ts.meet(tid); t == nil || !valid() {
			return nil
		}
	}
	if t.pending != nil {
		ts.decide(t)
	}
	t.used = ts.clock
	return t
}

// decide finds out whether the execve that was let pass has happened.
func (ts *tasks) decide(t *task) {
	if ts.image(t) != t.pending.image {
		t.cred = t.pending.cred
	}
	t.pending = nil
}

// alive reports whether a known thread is the one that has its id now, or was a moment ago, and opens its directory if need be.
func (ts *tasks) alive(t *task) bool {
	now := time.Now()
	if t.dir >= 0 && now.Sub(t.checked) < certain {
		return true
	}
	t.checked = now
	if t.dir >= 0 {
		return unix.Faccessat(t.dir, "comm", unix.F_OK, 0) == nil
	}
	dir := ts.openDir(t.tid)
	if dir < 0 {
		return false
	}
	if startTime(ts.read(dir, "stat")) != t.start {
		unix.Close(dir)
		return false
	}
	ts.keep(t, dir)
	return true
}

func (ts *tasks) openDir(tid uint32) int {
	fd, err := unix.Openat(ts.proc, strconv.FormatUint(uint64(tid), 10), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

func (ts *tasks) keep(t *task, dir int) {
	if ts.open >= maxOpen {
		ts.closeOldest()
	}
	t.dir, t.checked = dir, time.Now()
	ts.open++
}

func (ts *tasks) closeOldest() {
	var oldest *task
	for _, t := range ts.known {
		if t.dir >= 0 && (oldest == nil || t.used < oldest.used) {
			oldest = t
		}
	}
	if oldest == nil {
		return
	}
	oldest.start = startTime(ts.read(oldest.dir, "stat"))
	if oldest.start == "" {
		ts.forget(oldest)
		return
	}
	unix.Close(oldest.dir)
	oldest.dir = -1
	ts.open--
}

func (ts *tasks) forget(t *task) {
	if t.dir >= 0 {
		unix.Close(t.dir)
		t.dir = -1
		ts.open--
	}
	if ts.known[t.tid] == t {
		delete(ts.known, t.tid)
	}
}

// meet learns of a thread that exists now.
func (ts *tasks) meet(tid uint32) *task {
	dir := ts.openDir(tid)
	if dir < 0 {
		return nil
	}
	status := ts.read(dir, "status")
	t := &task{tid: tid, tgid: number(status, "Tgid:"), dir: -1, used: ts.clock}
	if t.tgid == 0 {
		unix.Close(dir)
		return nil
	}
	t.cred = ts.inherited(t, number(status, "PPid:"))
	ts.add(t)
	ts.keep(t, dir)
	return t
}

func (ts *tasks) add(t *task) {
	if len(ts.known) >= ts.sweepAt {
		ts.sweep()
	}
	ts.known[t.tid] = t
	if ts.first == nil {
		ts.first = t
	}
}

// sweep forgets threads that were killed: those that end tell it.
func (ts *tasks) sweep() {
	for _, t := range ts.known {
		if !ts.alive(t) {
			ts.forget(t)
		}
	}
	ts.sweepAt = 2*len(ts.known) + 256
}

// inherited returns the credentials that a thread started with.
func (ts *tasks) inherited(t *task, parent uint32) *credentials {
	if t.tid != t.tgid {
		return ts.of(t.tgid).cred
	}
	if parent == 0 || parent == ts.self {
		return ts.initial
	}
	p := ts.of(parent)
	if other := ts.otherThread(p, t.tid); other != nil {
		return other.cred
	}
	return p.cred
}

// of returns the first thread of a process, known or not.
func (ts *tasks) of(pid uint32) *task {
	if t := ts.known[pid]; t != nil && ts.alive(t) {
		return t
	}
	if t := ts.meet(pid); t != nil {
		return t
	}
	return &task{tid: pid, tgid: pid, cred: ts.initial, dir: -1}
}

// otherThread returns the thread other than the first that started a process, where that matters.
func (ts *tasks) otherThread(p *task, child uint32) *task {
	for _, t := range ts.known {
		if t.tgid != p.tgid || t == p || t.cred.equal(p.cred) || !ts.alive(t) {
			continue
		}
		for _, c := range ts.children(t) {
			if c == child {
				return t
			}
		}
	}
	return nil
}

// children lists the processes that a thread has started and that live.
func (ts *tasks) children(t *task) []uint32 {
	if t.dir < 0 && !ts.alive(t) {
		return nil
	}
	var out []uint32
	for _, f := range strings.Fields(string(ts.read(t.dir, "task/"+strconv.FormatUint(uint64(t.tid), 10)+"/children"))) {
		if n, err := strconv.ParseUint(f, 10, 32); err == nil {
			out = append(out, uint32(n))
		}
	}
	return out
}

// settle gives what t has to those who inherited it and were not seen yet: the processes it started and, if t is the first of
// its threads, the others.
func (ts *tasks) settle(t *task) {
	for _, pid := range ts.children(t) {
		ts.settleOne(pid, pid, t.cred)
	}
	if t.tid != t.tgid {
		return
	}
	for _, tid := range ts.threads(t) {
		ts.settleOne(tid, t.tgid, t.cred)
	}
}

// threads lists all threads of a process.
func (ts *tasks) threads(t *task) []uint32 {
	if t.dir < 0 && !ts.alive(t) {
		return nil
	}
	fd, err := unix.Openat(t.dir, "task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var out []uint32
	for {
		n, err := unix.Getdents(fd, ts.buf[:])
		if err != nil || n <= 0 {
			return out
		}
		_, _, names := unix.ParseDirent(ts.buf[:n], -1, nil)
		for _, name := range names {
			if tid, err := strconv.ParseUint(name, 10, 32); err == nil {
				out = append(out, uint32(tid))
			}
		}
	}
}

// ending prepares for the end of a thread, or of all threads of its process. Children whose adopter has the same credentials
// inherit the right ones anyway, which is nearly always so.
func (ts *tasks) ending(t *task, all bool) {
	adopter := ts.initial
	if ts.first != nil {
		adopter = ts.first.cred
	}
	if !t.cred.equal(adopter) {
		ts.settle(t)
	}
	if all {
		for _, o := range ts.known {
			if o.tgid == t.tgid && o != t {
				if !o.cred.equal(adopter) && ts.alive(o) {
					ts.settle(o)
				}
				ts.forget(o)
			}
		}
	}
	if all || t.tid != t.tgid { // the first thread is what new ones are compared with, as long as the process lasts
		ts.forget(t)
	}
}

func (ts *tasks) settleOne(tid, tgid uint32, cred *credentials) {
	if old := ts.known[tid]; old != nil {
		if ts.alive(old) {
			return
		}
		ts.forget(old)
	}
	dir := ts.openDir(tid)
	if dir < 0 {
		return
	}
	t := &task{tid: tid, tgid: tgid, cred: cred, dir: -1, used: ts.clock}
	ts.add(t)
	ts.keep(t, dir)
}

// read returns a small file of a directory of /proc, or nothing. It is overwritten by the next read.
func (ts *tasks) read(dir int, name string) []byte {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, ts.buf[:])
	if err != nil {
		return nil
	}
	return ts.buf[:n]
}

// readAll is read of a file of any size.
func (ts *tasks) readAll(dir int, name string) []byte {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var out []byte
	for {
		n, err := unix.Read(fd, ts.buf[:])
		if err != nil || n <= 0 {
			return out
		}
		out = append(out, ts.buf[:n]...)
	}
}

// image tells one program of a thread from the next: execve makes another stack at a random place.
func (ts *tasks) image(t *task) string {
	f := statFields(ts.read(t.dir, "stat"))
	if len(f) < 49 {
		return ""
	}
	var st unix.Statx_t
	exe := ""
	if unix.Statx(t.dir, "exe", 0, unix.STATX_INO, &st) == nil {
		exe = strconv.FormatUint(st.Ino, 10)
	}
	// startcode, endcode, startstack; arg_start, arg_end, env_start, env_end: proc(5), less the first two.
	return strings.Join(f[23:26], " ") + " " + strings.Join(f[45:49], " ") + " " + exe
}

// statFields returns the fields of /proc/<pid>/stat after the program's name.
func statFields(stat []byte) []string {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return nil
	}
	return strings.Fields(string(stat[i+1:]))
}

func startTime(stat []byte) string {
	if f := statFields(stat); len(f) > 19 {
		return f[19]
	}
	return ""
}

// number reads the first number behind a key of /proc/<pid>/status; octal is for Umask, hexadecimal for capabilities.
func number(status []byte, key string) uint32 { return uint32(numberBase(status, key, 10)) }

func numberBase(status []byte, key string, base int) uint64 {
	_, rest, ok := bytes.Cut(status, []byte("\n"+key))
	if !ok {
		return 0
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseUint(string(f[0]), base, 64)
	return n
}

// close closes what is open.
func (ts *tasks) close() {
	for _, t := range ts.known {
		if t.dir >= 0 {
			unix.Close(t.dir)
		}
	}
}

// lastPID is the id that a process has in its own pid namespace, of its status file.
func lastPID(status []byte) uint32 {
	_, rest, _ := bytes.Cut(status, []byte("\nNSpid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseUint(string(f[len(f)-1]), 10, 32)
	return uint32(n)
}
