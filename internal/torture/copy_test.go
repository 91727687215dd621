package torture

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// stocked is a workload and a store in which all of it was built.
func stocked(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	for _, j := range b.jobs {
		b.verify(j, true)
	}
	b.idle()
	b.sound()
	return b
}

// at is the bench with another store.
func (b *bench) at(root string) *bench {
	o := *b
	o.world = b.with(root)
	return &o
}

// shell runs a shell command with the store as $1 and a place for a copy as $2.
func (b *bench) shell(script, to string) {
	b.t.Helper()
	if out, err := exec.Command("/bin/sh", "-ec", script, "sh", b.root, to).CombinedOutput(); err != nil {
		b.t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// allRight builds some jobs in every form, repairs, and builds all of them.
func (b *bench) allRight() {
	b.t.Helper()
	for _, j := range b.jobs[len(b.jobs)-3:] {
		b.verify(j, true)
	}
	for _, lie := range b.check(true) {
		b.t.Errorf("not repaired: %s", lie)
	}
	for _, j := range b.jobs {
		b.verify(j, false)
	}
	b.idle()
	b.sound()
	b.swept()
}

// TestStocked does to one store that has everything in it what does not harm it, and to copies of it what does.
func TestStocked(t *testing.T) {
	b := stocked(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, *bench)
	}{{"strange", strangeStores}, {"copies", copies}, {"half", halfCopies}, {"clock", clock}} {
		t.Run(c.name, func(t *testing.T) {
			o := b.at(b.root)
			o.world.t = t
			c.test(t, o)
		})
	}
}

// copies uses stores that were copied or moved, beside the one they came from.
func copies(t *testing.T, b *bench) {
	onDisk := b.tmp + "/tmpfs"
	must(t, os.Mkdir(onDisk, 0o700))
	if err := unix.Mount("tmpfs", onDisk, "tmpfs", 0, "mode=0700"); err != nil {
		testenv.Skip(t, "the right to mount a tmpfs ("+err.Error()+")")
	}
	t.Cleanup(func() { must(t, unix.Unmount(onDisk, unix.MNT_DETACH)) })
	ways := []struct{ name, script, to string }{
		{"cp -a", `cp -a "$1" "$2"`, b.tmp + "/copy0"},
		{"to another file system", `cp -a "$1" "$2"`, onDisk + "/copy"},
		{"cp -r", `umask 022; cp -r "$1" "$2"`, b.tmp + "/copy1"},
		{"tar", `mkdir -m 700 "$2"; tar -C "$1" -cf - . | tar -C "$2" -xf -`, b.tmp + "/copy2"},
		{"hard links", `cp -al "$1" "$2"`, b.tmp + "/copy4"},
	}
	if *kills < 100 {
		ways = ways[:2]
	}
	for _, c := range ways {
		t.Run(c.name, func(t *testing.T) {
			b.shell(c.script, c.to)
			o := b.at(c.to)
			o.world.t = t
			o.allRight()
		})
	}
	t.Run("moved", func(t *testing.T) {
		o := b.at(b.tmp + "/moved")
		o.world.t = t
		b.shell(`cp -a "$1" "$2.first"; mv "$2.first" "$2"`, o.root)
		o.allRight()
	})
	t.Run("the first", func(t *testing.T) {
		b.world.t = t
		b.allRight()
	})
}

// halfCopies uses stores of which only some of the files, in no order, were copied. Where it is no store any more, the error
// names it and says what to do.
func halfCopies(t *testing.T, b *bench) {
	r := rand.New(rand.NewPCG(*seed, 4))
	t.Logf("seed %d", *seed)
	for i := range 1 + *kills/100 {
		o := b.at(fmt.Sprintf("%s/half%d", b.tmp, i))
		b.shell(`cp -a "$1" "$2"`, o.root)
		lost := r.Float64()
		must(t, filepath.WalkDir(o.root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			// A copy that breaks off has a file or has it not, and the last in part.
			if d.Type().IsRegular() && r.Float64() < lost {
				if r.IntN(8) == 0 {
					return os.Truncate(path, 0)
				}
				return os.Remove(path)
			}
			return nil
		}))
		if run := o.build(b.jobs[0].imageArgs()...); run.code == 6 && strings.Contains(run.text, o.root) && strings.Contains(run.text, "format") {
			must(t, os.Remove(o.root+"/version")) // empty: said so
		}
		o.allRight()
		removeTree(o.root)
	}
}

// strangeStores opens stores that cannot be used: the error says why and what to do, and nothing is changed.
func strangeStores(t *testing.T, b *bench) {
	before := treeSum(t, b.root)
	cred, _ := testenv.Credential(t, testenv.UserWithRange)
	must(t, os.Chmod(b.tmp, 0o755))
	r := b.as(cred, b.jobs[0])
	if r.code != 6 || !strings.Contains(r.text, b.root) || !strings.Contains(r.text, "--root") {
		t.Errorf("somebody else's store: exit code %d: %s", r.code, r.text)
	}
	ro := b.tmp + "/ro"
	must(t, os.Mkdir(ro, 0o700))
	must(t, unix.Mount(b.root, ro, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(ro, unix.MNT_DETACH)) })
	must(t, unix.Mount("", ro, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	for _, args := range [][]string{b.args(b.jobs[0].imageArgs()...), {"images"}, {"tag", "stages:1", "stages:2"}, {"rmi", "stages:1"}} {
		o := b.at(ro).command(args...)
		if args[0] == "images" && o.code == 0 {
			continue
		}
		if o.code != 6 || !strings.Contains(o.text, ro) || !strings.Contains(o.text, "read-only") {
			t.Errorf("%q on a read-only store: exit code %d: %s", args[0], o.code, o.text)
		}
	}
	if treeSum(t, b.root) != before {
		t.Error("the store was changed")
	}
}

// as is a build as another user.
func (b *bench) as(cred *syscall.Credential, j job) outcome {
	b.t.Helper()
	bin := b.tmp + "/build"
	data, err := os.ReadFile(b.bin)
	must(b.t, err)
	must(b.t, os.WriteFile(bin, data, 0o755))
	must(b.t, os.Chmod(bin, 0o755))
	cmd := exec.Command(bin, b.args(j.imageArgs()...)...)
	cmd.Env = []string{"BUILD_ROOT=" + b.root, "PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	out, _ := cmd.CombinedOutput()
	return outcome{code: cmd.ProcessState.ExitCode(), text: string(out)}
}

// clock gives every file of the store and of the contexts a time years away, as files have when the clock was set, there and
// back: what is used stays, nothing waits, and a file that changed is read again.
func clock(t *testing.T, b *bench) {
	j := b.job(task{name: "clock", df: "FROM bb\nCOPY f /f\nRUN cat /f > /g\n", files: []string{"f", "0000"}}, 0)
	for i, years := range []int{10, -10, 40, -26, 0} {
		when := time.Now().AddDate(years, 0, 0)
		for _, root := range []string{b.root, b.tmp + "/ctx"} {
			must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				if d.IsDir() && d.Name() == "fs" {
					return fs.SkipDir // times of layers are data
				}
				return os.Chtimes(path, when, when)
			}))
		}
		// Same size, same time: only the change time tells.
		content := fmt.Sprintf("%04d", i)
		must(t, os.WriteFile(j.dir+"/f", []byte(content), 0o644))
		must(t, os.Chtimes(j.dir+"/f", when, when))
		out := b.tmp + "/clock-tree"
		b.ok(j.imageArgs("-o", "type=local,dest="+out)...)
		if got, _ := os.ReadFile(out + "/g"); string(got) != content {
			t.Errorf("%d years: the image has %q instead of %q", years, got, content)
		}
		removeTree(out)
		for _, j := range b.jobs[:3] {
			o := b.build(j.imageArgs()...)
			if err := b.right(j, o); err != nil && years >= 0 { // files older than the epoch keep their time
				t.Errorf("%d years: %v", years, err)
			}
			if years == 10 && strings.Contains(o.text, "RUN") && !strings.Contains(o.text, "CACHED") {
				t.Errorf("%d years: nothing is cached any more: %s", years, o.text)
			}
		}
		b.swept()
		b.sound()
	}
}
