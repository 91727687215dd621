package fakeroot_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/executor"
	"build/internal/testenv"
	"build/internal/userns"
)

func expect(t *testing.T, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestOwnersAreShownAndRecorded(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	must(t, os.Symlink("x", r.lower+"/below"))
	must(t, os.WriteFile(r.lower+"/etc/conf", []byte("text"), 0o644))
	expect(t, r.sh(t, `
cd /tmp && umask 022
echo hi > f; chmod 6755 f; chown 33:44 f; stat -c '%u:%g %a' f
chown 4000000000 f; stat -c '%u:%g' f; chgrp 7 f; stat -c '%u:%g' f
mkdir d; chown 5:6 d; stat -c '%u:%g %F' d
ln -s nowhere l; chown -h 7:8 l; stat -c '%u:%g %F' l
chown -h 9:10 /below; stat -c '%u:%g' /below
mkfifo p; chown 1:2 p; stat -c '%u:%g %F' p
mknod c c 1 3; mknod b b 259 70000; chown 0:6 b; stat -c '%u:%g %t:%T %F' c b
chown 55 /etc/conf; stat -c '%u:%g' /etc/conf; cat /etc/conf; echo
ln f hard; chown 12:13 hard; stat -c '%u:%g %h' f
mv f moved; stat -c '%u:%g' moved; chown 0:0 moved; stat -c '%u:%g' moved
/bin/calls owner d l c
`), `
33:44 755
4000000000:44
4000000000:7
5:6 directory
7:8 symbolic link
9:10
1:2 fifo
0:0 1:3 character special file
0:6 103:11170 block special file
55:0
text
12:13 2
12:13
0:0
5:6 40755
7:8 120777
0:0 20644`)
	for name, want := range map[string]string{
		"tmp/d": "5 6 0:0 true", "tmp/l": "7 8 0:0 true", "below": "9 10 0:0 true", "tmp/p": "1 2 0:0 true",
		"tmp/c": "0 0 c 1 3 0:0 true", "tmp/b": "0 6 b 259 70000 0:0 true", "etc/conf": "55 0 0:0 true", "tmp/moved": "0 0 0:0 false",
	} {
		if got := r.record(t, name); got != want {
			t.Errorf("%s: recorded %q, want %q", name, got, want)
		}
	}
	expect(t, r.again(t, "stat -c %u:%g /tmp/d /tmp/l /below /tmp/p /tmp/c /etc/conf"), "5:6\n7:8\n9:10\n1:2\n0:0\n55:0")
}

func TestNewFilesAreTheirMakers(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	expect(t, r.sh(t, `cd /tmp; umask 022; calls create /tmp; stat -c '%n %u:%g %a %s' open excl creat dangling target dir fifo how; id; calls ids`, as("app")), `
unnamed 1000:1001
open 1000:1001 640 0
excl 1000:1001 400 1
creat 1000:1001 644 0
dangling 1000:1001 777 6
target 1000:1001 600 7
dir 1000:1001 755 4096
fifo 1000:1001 600 0
how 1000:1001 604 0
uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)
1000 1000 1001 1001 [1001 2000]`)
}

func TestSetgidDirectories(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	expect(t, r.sh(t, `
mkdir /tmp/s; chown 3:50 /tmp/s; chmod 2777 /tmp/s; cd /tmp/s
echo > f; mkdir d; echo > d/g; ln -s x l; mkfifo p
calls become 1000 1001 /bin/sh -c 'echo > h; mkdir e; echo > e/i'
stat -c '%n %u:%g %A' f d d/g l p h e e/i`), `
f 0:50 -rw-r--r--
d 0:50 drwxr-sr-x
d/g 0:50 -rw-r--r--
l 0:50 lrwxrwxrwx
p 0:50 prw-r--r--
h 1000:50 -rw-r--r--
e 1000:50 drwxr-sr-x
e/i 1000:50 -rw-r--r--`)
}

func TestRulesOfOwnership(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	expect(t, r.sh(t, `
cd /tmp; echo > mine; echo > /tmp/other
chown 1 mine 2>/dev/null || echo no gift
chgrp 2000 mine && stat -c %u:%g mine
chgrp 5 mine 2>/dev/null || echo no such group of mine
chown 1000 mine && echo same
chown 1000 /bin/busybox 2>/dev/null || echo not mine
mknod n c 1 3 2>/dev/null || echo no device
`, as("app")), `
no gift
1000:2000
no such group of mine
same
not mine
no device`)
}

func TestCredentials(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	expect(t, r.sh(t, `
calls seteuid 77
calls become 1000 1001 /bin/calls ids
calls become 1000 1001 /bin/calls become 0 0 /bin/true 2>&1
calls threads /bin/id -u
su app -c id
mkfifo /tmp/go
# A child that is silent until its parent has become another user is still root.
(read x < /tmp/go; id -u > /tmp/silent; echo > /tmp/go) &
calls become 1000 1001 /bin/sh -c 'echo > /tmp/go; read x < /tmp/go; cat /tmp/silent; id -u'
# One whose parent has ended is what its parent was.
calls become 1000 1001 /bin/sh -c '(read x < /tmp/go; id -u > /tmp/orphan; echo > /tmp/go) & exit'
echo > /tmp/go; read x < /tmp/go; cat /tmp/orphan
`), `
0 77 operation not permitted
0 0
1000 1000 1001 1001 []
calls: operation not permitted
this 4242 4242
other 0 0
uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)
0
1000
1000`)
}

func TestSetuidPrograms(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	expect(t, r.sh(t, `
cp /bin/calls /tmp/suid; chown 7:8 /tmp/suid; chmod 6755 /tmp/suid; cp /bin/calls /tmp/root; chmod 4755 /tmp/root
printf '#!/bin/calls ids\n' > /tmp/script; chown 9 /tmp/script; chmod 4755 /tmp/script
calls become 1000 1001 /tmp/suid ids
calls become 1000 1001 /tmp/root become 5 6 /bin/calls ids
calls become 1000 1001 /tmp/script
calls become 1000 1001 /bin/sh -c '/tmp/nothing; /tmp/suid ids; calls ids' 2>/dev/null`), `
1000 7 1001 8 []
5 5 6 6 []
1000 1000 1001 1001 []
1000 7 1001 8 []
1000 1000 1001 1001 []`)
}

func TestUserOfStep(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	expect(t, r.sh(t, "calls ids; pwd; stat -c %u:%g . ; echo x > f; stat -c %u:%g f", as("3000000:7"), func(s *executor.Spec) { s.Dir = "/made/here" }), `
3000000 3000000 7 7 [7]
/made/here
3000000:7
3000000:7`)
	expect(t, r.record(t, "made"), "3000000 7 0:0 true")
	file := executor.File{Data: []byte("secret"), Mode: 0o400, UID: 1000, GID: 5}
	expect(t, r.sh(t, "stat -c '%u:%g %a' /run/f; cat /run/f", func(s *executor.Spec) {
		s.Mounts = []executor.Mount{{Target: "/run/f", Source: file}}
	}), "1000:5 400\nsecret")
	expect(t, r.sh(t, "cd /dev/shm; echo > f; ln -s x l; chown -h 5:6 f l; stat -c %u:%g f l; chown 7 /dev/stdout /proc/self/fd/2 && echo done"), "5:6\n5:6\ndone")
}

func TestChrootWithin(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	expect(t, r.sh(t, `
mkdir -p /tmp/in/bin /tmp/in/etc /tmp/in/sub; cp /bin/calls /tmp/in/bin; echo > /tmp/in/etc/f; echo > /etc/f; ln -s /etc/f /tmp/in/sub/l
cp /bin/busybox /tmp/in/bin/sh; cp /bin/busybox /tmp/in/bin/chown
busybox chroot /tmp/in /bin/sh -c 'chown 5:6 /etc/f; cd sub; chown 7:8 l; calls owner /etc/f; chown 9:8 ../../../etc/f; calls owner /etc/f'
stat -c %u:%g /tmp/in/etc/f /etc/f`), `
7:8 100644
9:8 100644
9:8
0:0`)
}

func TestOwnAttributeIsHidden(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	setfattr := buildXattr(t, r)
	expect(t, r.sh(t, "echo > /tmp/f; chown 5:6 /tmp/f; "+setfattr+" /tmp/f; stat -c %u:%g /tmp/f"), `
[user.other]
5:6`)
}

func Test32Bit(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	copyProgram(t, calls(t, "386"), r.lower+"/bin/calls32")
	spec := r.spec("calls32 ids; calls32 become 70000 80000 /bin/calls32 ids; echo > /tmp/f; calls32 chown 70000 5 /tmp/f; calls32 owner /tmp/f; stat -c %u:%g /tmp/f; calls32 become 1000 1001 /bin/calls32 create /tmp")
	out, err := r.run(t, t.Context(), spec)
	if err != nil && strings.Contains(out, "not found") || strings.Contains(out, "xec format error") {
		t.Skip("this kernel runs no 32-bit programs")
	}
	must(t, err)
	expect(t, out, `
0 0 0 0 [0]
70000 70000 80000 80000 []
70000:5 100644
70000:5
unnamed 1000:1001`)
}

// What the range of ids has goes past the supervisor, and what it has not is recorded.
func TestOutsideOfRange(t *testing.T) {
	testenv.NotRoot(t)
	r := newRoot(t, userns.IDsRange)
	out := r.sh(t, `
cd /tmp; echo > a; echo > b; echo > c; mkdir d; ln -s x l
chown 172761424:172761424 a && chown 172761424:5 b && chown 172761424 c d && chown 33 c && chown -h 4000000000 l && mknod n c 1 3 && echo done
stat -c %u:%g c
su app -c 'chown 172761424 /tmp/a' 2>/dev/null || echo not allowed`)
	expect(t, out, "done\n33:0\nnot allowed")
	for name, want := range map[string]string{
		"tmp/a": "172761424 172761424 ", "tmp/b": "172761424 5 ", "tmp/d": "172761424 0 ", "tmp/l": "4000000000 0 ", "tmp/n": "0 0 c 1 3 ",
	} {
		if got := r.record(t, name); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "true") {
			t.Errorf("%s: recorded %q, want %q", name, got, want)
		}
	}
}

func TestNothingStaysOpen(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	open := func() (n int) {
		r.sh(t, "for i in 1 2 3 4 5; do cp /bin/calls /tmp/f$i; chown $i /tmp/f$i; stat /tmp/f$i; calls become $i $i /bin/calls ids; done")
		must(t, r.h.Call(t.Context(), "open", nil, &n))
		return n
	}
	open()
	before := open()
	for range 3 {
		open()
	}
	if after := open(); after > before {
		t.Errorf("%d files are open in the holder, %d were before some steps", after, before)
	}
}

// D9: other threads change the paths of calls between ways out and a file inside, and directories on the way to links.
func TestRacingPathsStayInside(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	canary := "/tmp/canary"
	if err := os.Mkdir(canary, 0o777); err != nil {
		t.Skipf("another test uses %s: %v", canary, err)
	}
	defer os.RemoveAll(canary)
	must(t, os.Chmod(canary, 0o777))
	must(t, os.WriteFile(canary+"/f", []byte("here"), 0o666))
	var before, after unix.Stat_t
	must(t, unix.Stat(canary+"/f", &before))
	rounds := "10000"
	if testing.Short() {
		rounds = "1000"
	}
	out := r.sh(t, "calls race /tmp/work "+rounds+" && ls /tmp/canary 2>&1; echo over")
	if !strings.HasSuffix(out, "over\n") {
		t.Errorf("%s", out)
	}
	must(t, unix.Stat(canary+"/f", &after))
	if before != after {
		t.Errorf("the canary changed: %+v, was %+v", after, before)
	}
	if n, err := unix.Listxattr(canary+"/f", nil); err == nil && n > 0 {
		t.Error("the canary has attributes")
	}
	entries, err := os.ReadDir(canary)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("files next to the canary: %v", entries)
	}
}

// D10: callers that are interrupted and killed.
func TestKilledCallersNeverHang(t *testing.T) {
	r := newRoot(t, userns.IDsSingle)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := r.run(t, ctx, r.spec("calls storm /tmp 20"))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	expect(t, out, "quiet")
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	if _, err := r.run(t, ctx, r.spec("calls storm - 0")); err == nil {
		t.Error("a cancelled step succeeded")
	}
}
