package torture

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// disk is a file system of a size that can be changed, with the store on it.
type disk struct {
	*bench
	dir string
}

func (b *bench) disk() *disk {
	b.t.Helper()
	d := &disk{bench: b, dir: b.tmp + "/disk"}
	must(b.t, os.Mkdir(d.dir, 0o700))
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, "mode=0700,size=64m"); err != nil {
		testenv.Skip(b.t, "the right to mount a tmpfs ("+err.Error()+")")
	}
	b.t.Cleanup(func() {
		if err := unix.Unmount(d.dir, 0); err != nil { // busy: something was left that uses it
			b.t.Errorf("unmount: %v", err)
			_ = unix.Unmount(d.dir, unix.MNT_DETACH)
		}
	})
	d.world = b.with(d.dir + "/store")
	return d
}

// limit makes the disk as large as what it holds and so many pages and inodes more.
func (d *disk) limit(pages, inodes uint64) {
	d.t.Helper()
	var st unix.Statfs_t
	must(d.t, unix.Statfs(d.dir, &st))
	size, files := max(1, st.Blocks-st.Bfree+pages)*uint64(st.Bsize), st.Files-st.Ffree+inodes // 0 would be no limit
	must(d.t, unix.Mount("tmpfs", d.dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("mode=0700,size=%d,nr_inodes=%d", size, files)))
}

const plenty = 1 << 16

// fails builds while there is not enough room, and reports whether there was enough after all. The failure is one of the
// machine, or of a step that the store's disk is to blame for, and says so.
func (d *disk) fails(j job, room string) (enough bool) {
	d.t.Helper()
	o := d.build(j.imageArgs("--no-cache")...)
	full := strings.Contains(o.text, "no space left") || strings.Contains(o.text, "is full (")
	switch {
	case o.code == 0:
		if o.digest != d.good[j.dir].digest {
			d.t.Errorf("%s, %s: image %s, alone %s", j.name, room, o.digest, d.good[j.dir].digest)
		}
		return true
	case o.stuck || o.code != 6 && (o.code != 3 || !strings.Contains(o.text, "is full (")):
		d.t.Errorf("%s, %s: stuck %v, exit code %d: %s", j.name, room, o.stuck, o.code, o.text)
	case !full:
		d.t.Errorf("%s, %s: the message does not say that the disk is full: %s", j.name, room, o.text)
	}
	return false
}

// TestDiskFull builds on disks that have from no room at all to enough, in steps: of bytes, then of inodes. Each failure says
// that there is no room, and as soon as there is, the same store gives what it has to.
func TestDiskFull(t *testing.T) {
	b := newBench(t)
	d := b.disk()
	for _, j := range b.jobs {
		if few := *pages < 16 && j.name != "caches" && j.name != "pull"; few || j.variant > 0 {
			continue
		}
		for what, limit := range map[string]func(n uint64){
			"pages":  func(n uint64) { d.limit(n, plenty) },
			"inodes": func(n uint64) { d.limit(plenty, n) },
		} {
			d.limit(plenty, plenty)
			must(t, os.RemoveAll(d.root))
			failed, steps := 0, uint64(*pages)
			// Small steps first: the first writes are the smallest. The last is beyond what any of them takes.
			for i := range steps {
				n := i + i*i*i*plenty/16/(steps*steps*steps)
				limit(n)
				if !d.fails(j, fmt.Sprintf("%d %s", n, what)) {
					failed++
				}
				limit(plenty)
				d.idle()
				if i%4 == 3 {
					d.sound()
					d.verify(j, true)
					must(t, os.RemoveAll(d.root))
				}
			}
			d.verify(j, true)
			d.swept()
			d.sound()
			t.Logf("%s: %d of %d builds had too few %s", j.name, failed, steps, what)
			if failed == 0 || failed == int(steps) {
				t.Errorf("the %s were too many or too few each time", what)
			}
		}
	}
}
