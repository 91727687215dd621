package torture

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"build/internal/testenv"
)

// powerScript builds in the virtual machine: the workload on a new store, then once more with changes and from scratch, then beside
// each other while the clock jumps by years, there and back (not to before the epoch: what is older than that keeps its time). The disk is seen through a loop device of the same number as here: markers of unpacked
// layers name the device. The journal is committed every second, so that more of a build lies between two commits than its end.
const powerScript = `
mknod /dev/loop%[1]s b 7 %[1]s 2>/dev/null; losetup /dev/loop%[1]s /dev/nvme0n1 || exit 1
mkdir /store; mount -t ext4 -o commit=1 /dev/loop%[1]s /store || exit 1
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

// TestPowerLossMachine is TestPowerLoss with a disk that a virtual machine wrote, whose kernel is another, while its clock was set.
func TestPowerLossMachine(t *testing.T) {
	if !*machine {
		t.Skip("boots a virtual machine, which takes minutes: testdata/torture/run.sh, or -torture.machine")
	}
	b := newBench(t)
	var jobs []job
	for _, j := range b.jobs {
		if j.name != "pull" && j.variant < 2 { // the machine has no network
			jobs = append(jobs, b.executable(j))
		}
	}
	device := loopDevice(t)
	d := b.record(jobs, device, []string{"2040", "2025"})
	b.cuts(d, jobs, device)
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

// record boots the machine and returns its disk.
func (b *bench) record(jobs []job, device string, years []string) *recorder {
	b.t.Helper()
	d := b.newDisk()
	socket := b.tmp + "/nbd"
	done := d.serve(b.t, socket)
	files := map[string]string{"build": b.bin, "busybox": testenv.Base(b.t, "busybox")}
	var names []string
	for _, j := range jobs {
		name := fmt.Sprintf("%s%d", j.name, j.variant)
		names = append(names, name)
		files[name] = j.dir
	}
	text := testenv.Boot(b.t, files, fmt.Sprintf(powerScript, strings.TrimPrefix(device, "/dev/loop"), strings.Join(names, " "), strings.Join(years, " ")),
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
