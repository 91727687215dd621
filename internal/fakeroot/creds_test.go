package fakeroot

import (
	"testing"

	"golang.org/x/sys/unix"

	"build/internal/bpf"
	"build/internal/owner"
)

// The cases are what the kernel answers to programs that really have these ids.
func TestRulesOfIDs(t *testing.T) {
	mixed := ids{real: 1, effective: 2, saved: 3, fs: 2}
	const no = unchanged
	for _, c := range []struct {
		name  string
		rule  func(ids) (ids, unix.Errno)
		want  ids
		errno unix.Errno
	}{
		{"setuid privileged", func(i ids) (ids, unix.Errno) { return i.set(9, true) }, same(9), 0},
		{"setuid to real", func(i ids) (ids, unix.Errno) { return i.set(1, false) }, ids{1, 1, 3, 1}, 0},
		{"setuid to saved", func(i ids) (ids, unix.Errno) { return i.set(3, false) }, ids{1, 3, 3, 3}, 0},
		{"setuid to effective", func(i ids) (ids, unix.Errno) { return i.set(2, false) }, mixed, unix.EPERM},
		{"setuid -1", func(i ids) (ids, unix.Errno) { return i.set(no, true) }, mixed, unix.EINVAL},
		{"setreuid swaps", func(i ids) (ids, unix.Errno) { return i.setRE(2, 1, false) }, ids{2, 1, 1, 1}, 0},
		{"setreuid effective to real", func(i ids) (ids, unix.Errno) { return i.setRE(no, 1, false) }, ids{1, 1, 3, 1}, 0},
		{"setreuid real to saved", func(i ids) (ids, unix.Errno) { return i.setRE(3, no, false) }, mixed, unix.EPERM},
		{"setreuid nothing", func(i ids) (ids, unix.Errno) { return i.setRE(no, no, false) }, mixed, 0},
		{"setresuid rotates", func(i ids) (ids, unix.Errno) { return i.setRES(3, 1, 2, false) }, ids{3, 1, 2, 1}, 0},
		{"setresuid foreign", func(i ids) (ids, unix.Errno) { return i.setRES(no, no, 4, false) }, mixed, unix.EPERM},
		{"setfsuid foreign", func(i ids) (ids, unix.Errno) { return i.setFS(4, false), 0 }, mixed, 0},
		{"setfsuid", func(i ids) (ids, unix.Errno) { return i.setFS(1, false), 0 }, ids{1, 2, 3, 1}, 0},
		{"execve", func(i ids) (ids, unix.Errno) { return i.executed(no), 0 }, ids{1, 2, 2, 2}, 0},
		{"execve of setuid file", func(i ids) (ids, unix.Errno) { return i.executed(7), 0 }, ids{1, 7, 7, 7}, 0},
	} {
		got, errno := c.rule(mixed)
		if got != c.want || errno != c.errno {
			t.Errorf("%s: %v, %v; want %v, %v", c.name, got, errno, c.want, c.errno)
		}
	}
}

func TestCapabilitiesGoWithTheUser(t *testing.T) {
	root, user, back := same(0), same(1000), ids{real: 0, effective: 1000, saved: 0, fs: 1000}
	c := newCredentials(0, 0, nil).caps
	c.changed(root, back)
	if c.effective != 0 || c.permitted != allCaps {
		t.Errorf("seteuid(1000): %+v", c)
	}
	c.changed(back, root)
	if c.effective != allCaps {
		t.Errorf("seteuid(0): %+v", c)
	}
	kept := c
	kept.keep = true
	kept.changed(root, user)
	if kept.permitted != allCaps || kept.effective != 0 {
		t.Errorf("with PR_SET_KEEPCAPS: %+v", kept)
	}
	c.changed(root, user)
	if c.permitted != 0 || c.effective != 0 {
		t.Errorf("setuid(1000): %+v", c)
	}
	if kept.executed(user); kept.permitted != 0 || kept.keep {
		t.Errorf("after execve: %+v", kept)
	}
}

func TestNumbersOfDevices(t *testing.T) {
	for _, c := range [][2]uint32{{1, 3}, {259, 70000}, {4095, 1<<20 - 1}, {0, 0}} {
		// What the C library passes to mknod: the low half of makedev.
		dev := uint32(unix.Mkdev(c[0], c[1]))
		if got := device32(dev); unix.Major(got) != c[0] || unix.Minor(got) != c[1] {
			t.Errorf("%d:%d is read as %d:%d", c[0], c[1], unix.Major(got), unix.Minor(got))
		}
	}
}

// runFilter runs a program as the kernel does.
func runFilter(t *testing.T, prog []unix.SockFilter, nr, arch uint32, args ...uint32) uint32 {
	t.Helper()
	var acc uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		holds := map[uint16]bool{unix.BPF_JEQ: acc == in.K, unix.BPF_JGT: acc > in.K, unix.BPF_JGE: acc >= in.K}
		switch in.Code & 7 {
		case unix.BPF_LD:
			switch {
			case in.K == bpf.DataNr:
				acc = nr
			case in.K == bpf.DataArch:
				acc = arch
			case in.K%8 == 0:
				acc = args[(in.K-bpf.DataArgs)/8]
			default:
				t.Fatalf("load of %d", in.K)
			}
		case unix.BPF_ALU:
			acc &= in.K
		case unix.BPF_JMP:
			switch op := in.Code & 0xf0; {
			case op == unix.BPF_JA:
				pc += int(in.K)
			case holds[op]:
				pc += int(in.Jt)
			default:
				pc += int(in.Jf)
			}
		case unix.BPF_RET:
			return in.K
		}
	}
	t.Fatal("ran off the end")
	return 0
}

func TestWhatIsStopped(t *testing.T) {
	abis, err := bpf.HostABIs()
	if err != nil {
		t.Fatal(err)
	}
	filter, err := Filter(owner.Single())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(filter))
	eperm := unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	nosys := unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	for _, c := range []struct {
		abi  int
		call string
		args []uint32
		want uint32
	}{
		{0, "fchownat", []uint32{0, 0, 0, 0}, unix.SECCOMP_RET_USER_NOTIF},
		{0, "openat", []uint32{0, 0, unix.O_RDWR | unix.O_TRUNC}, unix.SECCOMP_RET_ALLOW},
		{0, "openat", []uint32{0, 0, unix.O_RDWR | unix.O_CREAT}, unix.SECCOMP_RET_USER_NOTIF},
		{0, "openat", []uint32{0, 0, unix.O_DIRECTORY}, unix.SECCOMP_RET_ALLOW},
		{0, "openat", []uint32{0, 0, unix.O_RDWR | unix.O_TMPFILE}, unix.SECCOMP_RET_USER_NOTIF},
		{0, "openat2", nil, unix.SECCOMP_RET_USER_NOTIF},
		{0, "prctl", []uint32{unix.PR_SET_KEEPCAPS}, unix.SECCOMP_RET_USER_NOTIF},
		{0, "prctl", []uint32{unix.PR_SET_SECUREBITS}, unix.SECCOMP_RET_USER_NOTIF},
		{0, "prctl", []uint32{unix.PR_SET_NAME}, unix.SECCOMP_RET_ALLOW},
		{0, "getsockopt", []uint32{3, unix.SOL_SOCKET, unix.SO_PEERCRED}, unix.SECCOMP_RET_USER_NOTIF},
		{0, "getsockopt", []uint32{3, unix.SOL_SOCKET, unix.SO_TYPE}, unix.SECCOMP_RET_ALLOW},
		{0, "read", nil, unix.SECCOMP_RET_ALLOW},
		{0, "clone", nil, unix.SECCOMP_RET_ALLOW},
		{0, "io_uring_setup", nil, eperm},
		{1, "chown32", nil, unix.SECCOMP_RET_USER_NOTIF},
		{1, "io_uring_setup", nil, eperm},
		{1, "read", nil, unix.SECCOMP_RET_ALLOW},
	} {
		if got := runFilter(t, filter, abis[c.abi].Numbers[c.call], abis[c.abi].Audit, c.args...); got != c.want {
			t.Errorf("%s%v of ABI %d: %#x, want %#x", c.call, c.args, c.abi, got, c.want)
		}
	}
	if got := runFilter(t, filter, 0, 12345); got != nosys {
		t.Errorf("an unknown ABI: %#x", got)
	}
	if abis[0].Limit != 0 {
		if got := runFilter(t, filter, abis[0].Limit|257, abis[0].Audit); got != nosys {
			t.Errorf("x32: %#x", got)
		}
	}
	if f, err := Filter(owner.Map{}); f != nil || err != nil {
		t.Errorf("a filter of %d instructions where every id is mapped: %v", len(f), err)
	}
}

func TestOnlyOutsideOfTheRangeIsStopped(t *testing.T) {
	abis, err := bpf.HostABIs()
	if err != nil {
		t.Fatal(err)
	}
	ids, err := owner.ParseMap("0 1000 1\n1 100000 100\n500 200000 11\n", "0 1000 1\n1 100000 1000\n")
	if err != nil {
		t.Fatal(err)
	}
	filter, err := Filter(ids)
	if err != nil {
		t.Fatal(err)
	}
	const all = unchanged
	for _, c := range []struct {
		uid, gid uint32
		stop     bool
	}{
		{0, 0, false}, {all, all, false}, {100, 999, false}, {101, 0, true}, {499, 0, true}, {500, 0, false}, {509, all, false},
		{510, all, true}, {511, 0, true}, {0, 1000, true}, {0, 1001, true}, {all, 172761424, true}, {4000000000, 0, true},
	} {
		want := uint32(unix.SECCOMP_RET_ALLOW)
		if c.stop {
			want = unix.SECCOMP_RET_USER_NOTIF
		}
		if got := runFilter(t, filter, abis[0].Numbers["fchownat"], abis[0].Audit, 0, 0, c.uid, c.gid); got != want {
			t.Errorf("fchownat to %d:%d: %#x, want %#x", int32(c.uid), int32(c.gid), got, want)
		}
		if got := runFilter(t, filter, abis[0].Numbers["fchown"], abis[0].Audit, 0, c.uid, c.gid); got != want {
			t.Errorf("fchown to %d:%d: %#x, want %#x", int32(c.uid), int32(c.gid), got, want)
		}
	}
	for call, args := range map[string][]uint32{"newfstatat": nil, "getuid": nil, "setuid": {5}, "mknodat": {0, 0, unix.S_IFIFO}} {
		if nr, ok := abis[0].Numbers[call]; ok {
			if got := runFilter(t, filter, nr, abis[0].Audit, args...); got != unix.SECCOMP_RET_ALLOW {
				t.Errorf("%s: %#x", call, got)
			}
		}
	}
	if got := runFilter(t, filter, abis[0].Numbers["mknodat"], abis[0].Audit, 0, 0, unix.S_IFCHR|0o600); got != unix.SECCOMP_RET_USER_NOTIF {
		t.Errorf("mknod of a device: %#x", got)
	}
}
