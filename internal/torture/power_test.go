package torture

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// diskSize is the size of the disk of the virtual machine.
const diskSize = 160 << 20

// powerScript builds in the virtual machine: the workload on a new store, then once more with changes and from scratch, then beside
// each other while the clock jumps by years, there and back (not to before the epoch: what is older than that keeps its time). The disk is seen through a loop device of the same number as here: markers of unpacked
// layers name the device. The journal is committed every second, so that more of a build lies between two commits than its end.
const powerScript = `
mknod /dev/loop%[1]d b 7 %[1]d 2>/dev/null; losetup /dev/loop%[1]d /dev/nvme0n1
mkdir /store; mount -t ext4 -o commit=1 /dev/loop%[1]d /store || exit 1
export SOURCE_DATE_EPOCH=1700000000 BUILD_ROOT=/store/s
b() { name=$1; shift; /files/build build --progress plain --build-context bb=oci-layout:///files/busybox -t $name:1 -o type=image,rewrite-timestamp=true "$@" /files/$name >/tmp/$name.out 2>/tmp/$name.err || cat /tmp/$name.err; echo "== $name $(cat /tmp/$name.out)"; }
for n in %[2]s; do b $n; done
for n in %[2]s; do b $n --no-cache; done
for year in %[3]s; do
  for n in %[2]s; do b $n --no-cache & done; sleep 1; date -s $year-03-01 >/dev/null; wait
  for n in %[2]s; do b $n; done
done
sync; umount /store; echo "== all done"
`

// TestPowerLoss records what a virtual machine writes to its disk while it builds, and looks at what is left when the power goes at
// random instants: builds on that give what they give alone, and a check repairs the rest.
//
// What is simulated: memory is lost, so what the page cache had not written; of what was written since the last flush, any part that
// the disk's cache may have lost, in any order, in units of 4 KiB. Not simulated: a disk that lies about flushes, damage to what was
// written before.
func TestPowerLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	b := newBench(t)
	var jobs []job
	for _, j := range b.jobs {
		few := *crashes < 50 && (j.variant > 0 || j.name != "stages" && j.name != "changed")
		if !few && j.name != "pull" && j.variant < 2 { // the machine has no network
			jobs = append(jobs, b.executable(j))
		}
	}
	device, loop := loopDevice(t, b.tmp)
	years := []string{"2040", "2025"}
	if *crashes < 50 {
		years = years[:1]
	}
	d := b.record(jobs, loop, years)
	var flushes int
	for _, w := range d.log {
		if w.data == nil {
			flushes++
		}
	}
	t.Logf("seed %d; %d writes, %d flushes", *seed, len(d.log)-flushes, flushes)
	r := rand.New(rand.NewPCG(*seed, 3))
	began, made := time.Now(), 0
	for i := range *crashes {
		n := len(d.log)
		if i > 0 { // first the whole, to see what can be had at best
			n = r.IntN(len(d.log))
		}
		image := b.tmp + "/image"
		must(t, d.cut(r, n, image))
		if b.afterCut(r, jobs, image, device) {
			made++
		}
		if t.Failed() {
			t.Fatalf("the power went after %d of %d", n, len(d.log))
		}
	}
	t.Logf("%d cuts, %d with a store, %.0f s", *crashes, made, time.Since(began).Seconds())
}

// executable gives the files of a context the mode and time that files have in the virtual machine, so that keys and layers
// are the same.
func (b *bench) executable(j job) job {
	b.t.Helper()
	must(b.t, filepath.WalkDir(j.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return errs(os.Chmod(path, 0o755), os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0)))
	}))
	solo := b.with(b.tmp + "/alone")
	out := solo.root + ".tree"
	b.good[j.dir] = alone{solo.ok(j.imageArgs("-o", "type=local,dest="+out)...), treeSum(b.t, out)}
	removeTree(out)
	return j
}

// loopDevice is one that nobody else uses here, with a file of no importance on it until it gets another.
func loopDevice(t testing.TB, dir string) (device string, n int) {
	t.Helper()
	file := dir + "/placeholder"
	must(t, os.WriteFile(file, make([]byte, sector), 0o600))
	out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		testenv.Skip(t, "loop devices ("+string(out)+")")
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() { losetup(t, "-d", device) })
	if _, err := fmt.Sscanf(device, "/dev/loop%d", &n); err != nil {
		t.Fatal(err)
	}
	return device, n
}

func losetup(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("losetup", args...).CombinedOutput(); err != nil {
		t.Errorf("losetup %q: %v: %s", args, err, out)
	}
}

// record boots the machine and returns its disk.
func (b *bench) record(jobs []job, loop int, years []string) *recorder {
	b.t.Helper()
	path := b.tmp + "/disk"
	must(b.t, os.WriteFile(path, nil, 0o600))
	must(b.t, os.Truncate(path, diskSize))
	if out, err := exec.Command(testenv.Tool(b.t, "mkfs.ext4"), "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", path).CombinedOutput(); err != nil {
		b.t.Fatalf("mkfs: %v: %s", err, out)
	}
	first, err := os.ReadFile(path)
	must(b.t, err)
	must(b.t, os.Remove(path))
	d := &recorder{first: first, now: slices.Clone(first)}
	socket := b.tmp + "/nbd"
	done := d.serve(b.t, socket)
	files := map[string]string{"build": b.bin, "busybox": testenv.Base(b.t, "busybox")}
	var names []string
	for _, j := range jobs {
		name := fmt.Sprintf("%s%d", j.name, j.variant)
		names = append(names, name)
		files[name] = j.dir
	}
	text := testenv.Boot(b.t, files, fmt.Sprintf(powerScript, loop, strings.Join(names, " "), strings.Join(years, " ")),
		"-drive", "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path="+socket+",if=none,id=disk,cache=writeback",
		"-device", "nvme,drive=disk,serial=torture")
	<-done
	if d.err != nil && !strings.Contains(d.err.Error(), "EOF") {
		b.t.Fatalf("the disk of the virtual machine: %v", d.err)
	}
	for i, j := range jobs {
		said := regexp.MustCompile(`== `+names[i]+` (sha256:[0-9a-f]{64}|.*)`).FindAllStringSubmatch(text, -1)
		if len(said) != 2+2*len(years) {
			b.t.Errorf("%s was built %d times", names[i], len(said))
		}
		for _, s := range said {
			if s[1] != b.good[j.dir].digest {
				b.t.Errorf("%s in the virtual machine: %s, alone %s", names[i], s[1], b.good[j.dir].digest)
			}
		}
	}
	if b.t.Failed() {
		b.t.Fatalf("what the virtual machine said: %.20000s", text)
	}
	return d
}

// afterCut mounts what a disk holds and builds there. It reports whether there was a store.
func (b *bench) afterCut(r *rand.Rand, jobs []job, image, device string) bool {
	b.t.Helper()
	dir := b.tmp + "/mnt"
	must(b.t, os.MkdirAll(dir, 0o700))
	losetup(b.t, "-d", device)
	losetup(b.t, device, image)
	defer func() {
		losetup(b.t, "-d", device)
		losetup(b.t, device, b.tmp+"/placeholder")
	}()
	must(b.t, unix.Mount(device, dir, "ext4", 0, ""))
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
