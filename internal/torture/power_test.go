package torture

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// diskSize is the size of the disk that loses power.
const diskSize = 160 << 20

// TestPowerLoss records what builds write to a disk, and looks at what is left of it when the power goes at random instants:
// builds on that give what they give alone, and a check repairs the rest.
//
// What is simulated: memory is lost, so what the page cache had not written; of what was written since the last flush, any part that
// the disk's cache may have lost, in any order, in units of 4 KiB; another run of the system afterwards. Not simulated: a disk
// that lies about flushes, damage to what was written before.
func TestPowerLoss(t *testing.T) {
	b := newBench(t)
	jobs := b.jobs
	if *crashes < 50 {
		jobs = nil
		for _, j := range b.jobs {
			if j.variant == 0 && j.name != "wide" && j.name != "mounts" {
				jobs = append(jobs, j)
			}
		}
	}
	device := loopDevice(t)
	d := b.recordHere(jobs, device)
	b.cuts(d, jobs, device)
}

// cuts builds on what is left of a disk after the power went at random instants.
func (b *bench) cuts(d *recorder, jobs []job, device string) {
	b.t.Helper()
	b.t.Logf("seed %d; %d writes, %d flushes", *seed, len(d.log)-d.flushes(), d.flushes())
	if len(d.log) < 100 {
		b.t.Fatal("the disk was not used")
	}
	r := rand.New(rand.NewPCG(*seed, 3))
	began, had := time.Now(), 0
	for i := range *crashes {
		n := len(d.log)
		if i > 0 { // first the whole, to see what can be had at best
			n = r.IntN(len(d.log))
		}
		image := b.tmp + "/image"
		must(b.t, d.cut(r, n, image))
		store := b.afterCut(r, jobs, image, device)
		if store {
			had++
		}
		if b.t.Failed() {
			b.t.Fatalf("the power went after %d of %d", n, len(d.log))
		}
		if i == 0 && !store {
			b.t.Fatal("no store was on the disk")
		}
	}
	b.t.Logf("%d cuts, %d with a store, %.0f s", *crashes, had, time.Since(began).Seconds())
}

// newDisk is an empty disk with an ext4.
func (b *bench) newDisk() *recorder {
	b.t.Helper()
	path := b.tmp + "/disk-image"
	must(b.t, os.WriteFile(path, nil, 0o600))
	must(b.t, os.Truncate(path, diskSize))
	if out, err := exec.Command(testenv.Tool(b.t, "mkfs.ext4"), "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", path).CombinedOutput(); err != nil {
		b.t.Fatalf("mkfs: %v: %s", err, out)
	}
	first, err := os.ReadFile(path)
	must(b.t, err)
	must(b.t, os.Remove(path))
	return &recorder{first: first, now: append([]byte(nil), first...)}
}

// recordHere builds on a disk of this machine, as if in an earlier run of the system: everything on a new store, from scratch, beside each other,
// and collections of what that left. It returns the disk. The journal is committed every second, so that more of a build lies between
// two commits than its end, and without the data of the files whose names it has: a file may have its name and its size, and zeros
// or what was there before, as on other file systems than a careful ext4.
func (b *bench) recordHere(jobs []job, device string) *recorder {
	b.t.Helper()
	d := b.newDisk()
	file, dir := b.tmp+"/disk-file", b.tmp+"/disk-here"
	unmount := d.mount(b.t, file)
	must(b.t, os.Mkdir(dir, 0o700))
	mountLoop(b.t, device, file, dir, "commit=1,nodelalloc,data=writeback")
	was := b.world
	b.world = b.with(dir + "/s")
	b.world.boot = b.write(b.tmp, "boot-id", "00000000-0000-4000-8000-000000000001\n") + "/boot-id"
	defer func() { b.world = was }()
	for _, more := range [][]string{nil, {"--no-cache"}} {
		for _, j := range jobs {
			b.recorded(j, b.start(b.args(j.imageArgs(more...)...)...))
		}
	}
	if o := b.command("prune", "--all", "--force"); o.code != 0 {
		b.t.Errorf("prune: exit code %d: %s", o.code, o.text)
	}
	var runs []*run
	for _, j := range jobs {
		runs = append(runs, b.start(b.args(j.imageArgs("--no-cache", "--store-limit", "1MB")...)...))
	}
	for i, j := range jobs {
		b.recorded(j, runs[i])
	}
	b.idle()
	must(b.t, unix.Unmount(dir, 0))
	detached(b.t, device)
	unmount()
	return d
}

// recorded waits for a build.
func (b *bench) recorded(j job, r *run) {
	b.t.Helper()
	if err := b.right(j, r.wait()); err != nil {
		b.t.Errorf("while it is recorded: %v", err)
	}
}

// loopDevice is one that nobody else uses here: its number is beyond those that are given to who asks for any, and of this process.
// The disk has that number when it is recorded and when it is looked at, because markers of unpacked layers name the device.
func loopDevice(t testing.TB) string {
	t.Helper()
	control := int(testenv.Device(t, "/dev/loop-control").Fd())
	n := 64 + os.Getpid()%128
	err := unix.IoctlSetInt(control, unix.LOOP_CTL_ADD, n)
	for ; errors.Is(err, unix.EEXIST); err = unix.IoctlSetInt(control, unix.LOOP_CTL_ADD, n) { // somebody else's
		n++
	}
	must(t, err)
	t.Cleanup(func() { _ = unix.IoctlSetInt(control, unix.LOOP_CTL_REMOVE, n) })
	return fmt.Sprintf("/dev/loop%d", n)
}

func losetup(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("losetup", args...).CombinedOutput(); err != nil {
		t.Fatalf("losetup %q: %v: %s", args, err, out)
	}
}

// mountLoop mounts a file. The loop device gives the file up when it is unmounted, whoever does that.
func mountLoop(t testing.TB, device, file, dir, options string) {
	t.Helper()
	losetup(t, device, file)
	err := unix.Mount(device, dir, "ext4", 0, options)
	losetup(t, "-d", device)
	must(t, err)
}

// detached waits until a loop device has no file. A build that just ended may have it mounted for a moment.
func detached(t testing.TB, device string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat("/sys/block/" + strings.TrimPrefix(device, "/dev/") + "/loop/backing_file"); err != nil {
			return
		}
	}
	t.Fatalf("%s keeps its file", device)
}

// afterCut mounts what a disk holds and builds there. It reports whether there was a store.
func (b *bench) afterCut(r *rand.Rand, jobs []job, image, device string) bool {
	b.t.Helper()
	dir := b.tmp + "/mnt"
	must(b.t, os.MkdirAll(dir, 0o700))
	mountLoop(b.t, device, image, dir, "")
	defer detached(b.t, device)
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			b.t.Errorf("unmount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}()
	c := *b
	c.world = b.with(dir + "/s")
	_, err := os.Stat(c.root + "/version")
	for range 2 {
		c.verify(jobs[r.IntN(len(jobs))], true)
	}
	for _, lie := range c.check(true) {
		c.t.Errorf("not repaired: %s", lie)
	}
	for _, j := range jobs {
		c.verify(j, false)
	}
	c.idle()
	c.sound()
	return err == nil
}
