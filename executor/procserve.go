package executor

import (
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"build/internal/bpf"
)

// watchedCalls are what a step does to files by name to find out what /proc knows. Executing a file of /proc, and entering a
// directory of it, cannot be answered by anybody but the kernel.
var (
	watchedCalls   = []string{"open", "readlink", "stat", "lstat", "access"}
	watchedCallsAt = []string{"openat", "readlinkat", "newfstatat", "statx", "faccessat", "faccessat2"} // first argument: a directory
)

// asUser is whom a call is made for.
type asUser struct{ uid, gid uint32 }

// procServer answers the watched calls of one step. Whatever is not about /proc is passed on to the kernel, which looks at the
// arguments again; passing a call on is therefore always safe, and what is decided here about a path that the step changes
// meanwhile is at worst an answer to the path it had.
type procServer struct {
	listener listener
	fake     *fakeProc
	proc     int
	nrs      map[int32]string
	kept     sync.Mutex // held while a call is answered, and from stop on

	mu      sync.Mutex
	workers map[asUser]chan *notification
}

func newProcServer(l int, fake *fakeProc) *procServer {
	s := &procServer{listener: listener(l), fake: fake, proc: fake.proc, nrs: map[int32]string{}, workers: map[asUser]chan *notification{}}
	native := bpf.Native()
	for _, n := range slices.Concat(watchedCalls, watchedCallsAt) {
		if nr, ok := native[n]; ok {
			s.nrs[int32(nr)] = n
		}
	}
	return s
}

// stop returns when no call is being answered, and lets none be any more.
func (s *procServer) stop() { s.kept.Lock() }

// serve answers until the process ends. Threads that look into a process have to be of its user, since they do not have
// CAP_SYS_PTRACE: this one becomes the step's user, and others are made for the users that the step's processes become.
func (s *procServer) serve(as asUser) {
	runtime.LockOSThread()
	if becomeThread(as) != nil {
		as = asUser{} // and the step's calls are passed on
	}
	var n notification
	for s.listener.next(&n) == nil {
		s.kept.Lock()
		if !s.answer(&n) {
			s.delegate(as, n)
		}
		s.kept.Unlock()
	}
}

// delegate gives a call to a thread of the caller's user.
func (s *procServer) delegate(not asUser, n notification) {
	who, err := s.userOf(int(n.pid))
	if err != nil || who == not {
		s.listener.pass(&n)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.workers[who]
	if !ok {
		w = make(chan *notification, 64)
		s.workers[who] = w
		go s.work(who, w)
	}
	select {
	case w <- &n:
	default:
		s.listener.pass(&n)
	}
}

func (s *procServer) work(as asUser, calls <-chan *notification) {
	runtime.LockOSThread()
	err := becomeThread(as)
	for n := range calls {
		s.kept.Lock()
		if err != nil || !s.answer(n) {
			s.listener.pass(n)
		}
		s.kept.Unlock()
	}
}

// becomeThread makes the calling thread, and no other, a user's. A user other than root has no capabilities.
func becomeThread(as asUser) error {
	if as == (asUser{}) {
		return nil
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(as.gid), uintptr(as.gid), uintptr(as.gid)); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(as.uid), uintptr(as.uid), uintptr(as.uid)); errno != 0 {
		return errno
	}
	return nil
}

// userOf is the real user of a thread.
func (s *procServer) userOf(tid int) (asUser, error) {
	var o asUser
	uid, err := s.statusField(tid, "Uid:")
	if err != nil {
		return o, err
	}
	gid, err := s.statusField(tid, "Gid:")
	return asUser{uint32(uid), uint32(gid)}, err
}

func (s *procServer) statusField(tid int, field string) (int, error) {
	data, err := readAt(s.proc, strconv.Itoa(tid)+"/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				return strconv.Atoi(f[0])
			}
		}
	}
	return 0, unix.EINVAL
}

// answer answers a call. It reports false when the thread it runs on may not look into the caller.
func (s *procServer) answer(n *notification) (mine bool) {
	// A call that we make no sense of must not take away from the step who keeps it. The kernel makes sense of it.
	defer func() {
		if recover() != nil {
			s.listener.pass(n)
			mine = true
		}
	}()
	name, ok := s.nrs[n.nr]
	if !ok {
		s.listener.pass(n)
		return true
	}
	c := parseCall(name, n)
	text, err := memory(n.pid).text(c.pathAddr)
	if err == unix.EPERM {
		return false
	}
	if err != nil || text == "" {
		s.listener.pass(n)
		return true
	}
	rel, ok := s.recognize(&c, text)
	if !ok {
		s.listener.pass(n)
		return true
	}
	s.reply(&c, rel)
	return true
}

func (s *procServer) reply(c *pathCall, rel string) {
	if rel == "" || rel == "." { // whoever lists /proc finds the step's processes
		if c.op == "open" {
			s.refresh()
		}
		s.listener.pass(c.notification)
		return
	}
	t, ok := s.resolve(c, rel)
	if !ok {
		if pid, err := strconv.Atoi(rel); err == nil && pid > 0 {
			s.refresh()
		}
		s.listener.pass(c.notification)
		return
	}
	defer t.close()
	switch c.op {
	case "open":
		s.replyOpen(c, &t)
	case "readlink":
		s.replyLink(c, &t)
	case "stat", "statx":
		s.replyStat(c, &t)
	case "access":
		s.replyAccess(c, &t)
	}
}

func (s *procServer) refresh() {
	if all, err := processes(s.proc); err == nil {
		s.fake.list(below(all, os.Getpid()))
	}
}

// writable are the files of a process that it may write, besides its own descriptors.
var writable = []string{"oom_score_adj", "comm", "coredump_filter", "timerslack_ns", "loginuid"}

func (s *procServer) replyOpen(c *pathCall, t *target) {
	write := c.flags&unix.O_ACCMODE != unix.O_RDONLY
	isFD := path.Dir(t.name) == "fd"
	if write && !isFD && !slices.Contains(writable, t.name) {
		s.listener.fail(c.notification, unix.EROFS)
		return
	}
	if t.pid != 0 && slices.Contains([]string{"mounts", "mountinfo"}, t.name) {
		s.replyMounts(c, t)
		return
	}
	if t.pid != 0 && (t.name == "fd" || t.name == "task" || t.name == "fdinfo") {
		s.replyDirectory(c, t)
		return
	}
	// Whoever opens a fifo waits for its other end; we do not.
	const taken = unix.O_ACCMODE | unix.O_APPEND | unix.O_TRUNC | unix.O_DIRECTORY | unix.O_NONBLOCK | unix.O_SYNC
	fd, err := openTarget(t, int(c.flags)&taken|unix.O_NOCTTY|unix.O_NONBLOCK)
	if err != nil {
		s.listener.fail(c.notification, errnoOf(err))
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && !t.link {
		s.listener.fail(c.notification, unix.EACCES)
		return
	}
	if c.flags&unix.O_NONBLOCK == 0 {
		unix.SetNonblock(fd, false)
	}
	s.listener.give(c.notification, fd, c.flags&unix.O_CLOEXEC != 0)
}

// replyMounts tells of one mount. The kernel tells of none, because none of those it knows is below a chroot's root, and
// programs that look for the file system of a file find that odd.
func (s *procServer) replyMounts(c *pathCall, t *target) {
	var st unix.Stat_t
	text := "overlay / overlay rw,relatime 0 0\n"
	if err := unix.Stat("/", &st); err == nil && t.name == "mountinfo" {
		text = fmt.Sprintf("1 0 %d:%d / / rw,relatime - overlay overlay rw\n", unix.Major(st.Dev), unix.Minor(st.Dev))
	}
	fd, err := unix.MemfdCreate(t.name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		s.listener.fail(c.notification, errnoOf(err))
		return
	}
	defer unix.Close(fd)
	unix.Write(fd, []byte(text))
	unix.Seek(fd, 0, 0)
	unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	s.listener.give(c.notification, fd, c.flags&unix.O_CLOEXEC != 0)
}

func errnoOf(err error) unix.Errno {
	if errno, ok := err.(unix.Errno); ok && errno != 0 {
		return errno
	}
	return unix.EIO
}

func (s *procServer) replyDirectory(c *pathCall, t *target) {
	dir, err := openTarget(t, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		s.listener.fail(c.notification, errnoOf(err))
		return
	}
	f := os.NewFile(uintptr(dir), t.name)
	names, err := f.Readdirnames(-1)
	f.Close()
	var fd int
	if err == nil {
		fd, err = s.fake.entries(t.pid, t.name, names)
	}
	if err != nil {
		s.listener.fail(c.notification, errnoOf(err))
		return
	}
	defer unix.Close(fd)
	s.listener.give(c.notification, fd, c.flags&unix.O_CLOEXEC != 0)
}

func (s *procServer) replyLink(c *pathCall, t *target) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(t.dir, t.name, buf)
	if err != nil {
		s.listener.fail(c.notification, errnoOf(err))
		return
	}
	s.put(c, buf[:min(n, int(min(c.size, unix.PathMax)))])
}

// put writes an answer into the caller's memory, if the caller is still there to have it.
func (s *procServer) put(c *pathCall, data []byte) {
	if !s.listener.valid(c.notification) {
		return
	}
	if err := memory(c.pid).write(c.out, data); err != nil {
		s.listener.fail(c.notification, unix.EFAULT)
		return
	}
	val := int64(0)
	if c.op == "readlink" {
		val = int64(len(data))
	}
	s.listener.succeed(c.notification, val)
}

// statSize is that of struct stat on both supported machines; struct statx is 256 bytes everywhere.
const statSize = int(unsafe.Sizeof(unix.Stat_t{}))

func (s *procServer) replyStat(c *pathCall, t *target) {
	name, err := unix.BytePtrFromString(t.name)
	if err != nil {
		s.listener.pass(c.notification)
		return
	}
	var buf [256]byte
	var errno unix.Errno
	size := statSize
	flags := uintptr(c.flags) &^ unix.AT_EMPTY_PATH
	if c.op == "statx" {
		size = len(buf)
		_, _, errno = unix.Syscall6(unix.SYS_STATX, uintptr(t.dir), uintptr(unsafe.Pointer(name)), flags, uintptr(c.mode), uintptr(unsafe.Pointer(&buf)), 0)
	} else {
		_, _, errno = unix.Syscall6(uintptr(bpf.Native()["newfstatat"]), uintptr(t.dir), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&buf)), flags, 0, 0)
	}
	if errno != 0 {
		s.listener.fail(c.notification, errno)
		return
	}
	s.put(c, buf[:size])
}

func (s *procServer) replyAccess(c *pathCall, t *target) {
	if err := unix.Faccessat(t.dir, t.name, uint32(c.mode), 0); err != nil {
		s.listener.fail(c.notification, errnoOf(err))
		return
	}
	s.listener.succeed(c.notification, 0)
}
