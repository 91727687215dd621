package testenv

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// bootTime bounds a virtual machine, which without KVM is some twenty times slower than the one it runs on.
const bootTime = 5 * time.Minute

// initScript is what a booted machine runs before and after the script of the test. Its root is a tmpfs, so that what
// changes the root of a process meets the usual case; busybox has all the programs.
const initScript = `#!/bin/busybox sh
busybox mkdir -p /r && busybox mount -t tmpfs -o size=90% none /r && busybox mv /bin /files /r/ 2>/dev/null
cd /r && /r/bin/busybox mkdir -p dev proc sys tmp etc root
exec /r/bin/busybox switch_root /r /bin/busybox sh /files/start
`

const startScript = `
set -e
/bin/busybox --install -s /bin; export PATH=/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/shm; mount -t cgroup2 cgroup /sys/fs/cgroup; insmod /files/overlay.ko; insmod /files/loop.ko; ip link set lo up
mkdir /disk; truncate -s 300M /tmp/disk; mke2fs -F /tmp/disk >/dev/null; mount -t ext4 -o loop /tmp/disk /disk
echo root:x:0:0:root:/root:/bin/sh >/etc/passwd; echo root:x:0: >/etc/group
set +e
sh /files/script 2>&1
echo "== end of script: $?"
poweroff -f
`

// Boot runs a shell script as root in a virtual machine with the kernel that testdata/setup/kernel.sh got (Linux 6.1, whose groups
// are those of cgroup v2), busybox, an ext4 on /disk, and the given files and directories (name in /files: place here), and returns what it printed.
// More are further arguments of qemu, such as disks.
func Boot(t testing.TB, files map[string]string, script string, more ...string) string {
	t.Helper()
	qemu := Tool(t, "qemu-system-x86_64")
	kernel := filepath.Join(CacheDir(), "kernel", "vmlinuz")
	if _, err := os.Stat(kernel); err != nil {
		Skip(t, "kernel "+kernel)
	}
	var image archive
	image.dir("dev")
	image.dir("files")
	image.text("init", initScript)
	image.text("files/start", startScript)
	image.text("files/script", script)
	image.file("bin/busybox", Tool(t, "busybox"))
	for _, module := range []string{"overlay.ko", "loop.ko"} {
		image.file("files/"+module, filepath.Join(CacheDir(), "kernel", module))
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		image.tree("files/"+name, files[name])
	}
	if image.err != nil {
		t.Fatal(image.err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, image.end(), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), bootTime)
	defer stop()
	args := append([]string{"-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1536",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all",
		"-nographic", "-no-reboot", "-nic", "none"}, more...)
	out, err := exec.CommandContext(ctx, qemu, args...).CombinedOutput()
	text := strings.ReplaceAll(string(out), "\r", "")
	if err != nil || !strings.Contains(text, "== end of script: ") {
		t.Fatalf("the virtual machine: %v\n%s", err, text)
	}
	return escapes.ReplaceAllString(text, "")
}

// escapes are what the firmware does to the screen.
var escapes = regexp.MustCompile("\x1b[\\[(][0-9;?=]*[A-Za-z]|\x1bc")

// archive is an initramfs in the making: cpio, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	buf  bytes.Buffer
	made []string
	ino  int
	err  error
}

func (a *archive) entry(name string, mode uint32, data []byte) {
	if dir := path.Dir(name); dir != "." {
		a.dir(dir)
	}
	a.ino++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *archive) dir(name string) {
	if !slices.Contains(a.made, name) {
		a.made = append(a.made, name)
		a.entry(name, 0o040755, nil)
	}
}

func (a *archive) text(name, data string) { a.entry(name, 0o100755, []byte(data)) }

func (a *archive) file(name, from string) {
	data, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.entry(name, 0o100755, data)
}

func (a *archive) tree(name, from string) {
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			a.dir(path.Join(name, rel))
		} else {
			a.file(path.Join(name, rel), p)
		}
		return nil
	})
	if err != nil && a.err == nil {
		a.err = err
	}
}

func (a *archive) end() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}
