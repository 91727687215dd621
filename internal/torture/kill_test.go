package torture

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKills kills processes at random instants: a build itself, its holder, all of them at once, a step, whatever else it started,
// the process that keeps the store below a limit, commands that collect, name and repair. After each the next build, of the same
// or of something else, gives what it gives alone.
func TestKills(t *testing.T) {
	b := newBench(t)
	r := rand.New(rand.NewPCG(*seed, 1))
	t.Logf("seed %d", *seed)
	began, tally := time.Now(), map[string]int{}
	for round, done := 1, 0; done < *kills && !t.Failed(); round++ {
		done += b.round(r, tally)
		if round%25 == 0 {
			b.idle() // who trims the store may go on
			b.sound()
			t.Logf("%d kills, %.0f s: %v", done, time.Since(began).Seconds(), tally)
		}
	}
	b.idle()
	b.sound()
	b.swept()
	b.idle()
	b.sound()
	for _, j := range b.jobs { // what all of this left still gives the right thing, in every form
		b.verify(j, true)
	}
	t.Logf("%d kills, %.0f s: %v", *kills, time.Since(began).Seconds(), tally)
}

// victims say who is killed. The first process of a build is its root.
var victims = []struct {
	name   string
	choose func(r *rand.Rand, root int, all []process) []int
}{
	{"trimmer", func(*rand.Rand, int, []process) []int { return nil }}, // see trimmers
	{"build", func(_ *rand.Rand, root int, _ []process) []int { return []int{root} }},
	{"group", func(_ *rand.Rand, root int, _ []process) []int { return []int{-root} }},
	{"holder", func(_ *rand.Rand, _ int, all []process) []int {
		for _, p := range all {
			if strings.HasPrefix(p.name, "build-holder") {
				return []int{p.pid}
			}
		}
		return nil
	}},
	{"any child", func(r *rand.Rand, _ int, all []process) []int {
		if len(all) == 0 {
			return nil
		}
		return []int{all[r.IntN(len(all))].pid}
	}},
	{"all", func(_ *rand.Rand, root int, all []process) []int {
		pids := []int{root}
		for _, p := range all {
			pids = append(pids, p.pid)
		}
		return pids
	}},
}

// round starts a build, sometimes two, kills, and builds again. It returns whether there was somebody to kill: 0 or 1.
func (b *bench) round(r *rand.Rand, tally map[string]int) int {
	b.t.Helper()
	j, how := b.pick(r), b.manner(r)
	b.forget(r, j)
	args := b.args(j.imageArgs(how...)...)
	other, isBuild := b.instead(r, j)
	if !isBuild {
		args = other
	}
	began := time.Now()
	p := b.start(args...)
	var beside *run
	besides := b.pick(r)
	if r.IntN(4) == 0 || !isBuild {
		beside = b.start(b.args(besides.imageArgs()...)...)
	}
	// Most of what can be hit lies in the first quarter second; the product spreads instants over all scales of time.
	after := time.Duration(float64(400*time.Millisecond) * r.Float64() * r.Float64())
	select {
	case <-p.ended:
	case <-time.After(after):
	}
	v := victims[r.IntN(len(victims))]
	prey := v.choose(r, p.Process.Pid, descendants(p.Process.Pid))
	if v.name == "trimmer" {
		prey = b.trimmers()
	}
	hit := kill(prey)
	o := p.wait()
	if isBuild {
		b.afterKill(j, v.name, hit, o, tally)
	} else {
		b.afterCommand(args, v.name, hit, o, tally)
	}
	if beside != nil { // nobody killed it, so it is right, whatever became of the other
		if err := b.right(besides, beside.wait()); err != nil {
			b.t.Errorf("beside a build that was killed (%s) after %v: %v", v.name, after, err)
		}
	}
	if r.IntN(3) == 0 { // something else comes first
		b.verify(b.pick(r), false)
	}
	b.verify(j, r.IntN(8) == 0)
	if b.t.Failed() {
		b.t.Logf("%s%d %q, %s killed after %v (round of %v)", j.name, j.variant, args, v.name, after, time.Since(began))
	}
	return min(hit, 1)
}

// manner is how a build goes about it.
func (b *bench) manner(r *rand.Rand) []string {
	var how []string
	if r.IntN(8) > 0 { // else there is often nothing to do
		how = append(how, "--no-cache")
	}
	switch r.IntN(8) {
	case 0:
		how = append(how, "--isolation", "tree")
	case 1:
		how = append(how, "--isolation", "chroot")
	}
	switch r.IntN(4) {
	case 0:
		how = append(how, "-o", "type=local,dest="+b.tmp+"/killed-tree")
	case 1:
		how = append(how, "-o", "type=oci,dest="+b.tmp+"/killed.tar")
	}
	if r.IntN(4) == 0 { // everything is too much
		how = append(how, "--store-limit", "2MB")
	}
	return how
}

// forget has a job that pulls do so again, half of the times.
func (b *bench) forget(r *rand.Rand, j job) {
	b.t.Helper()
	if j.name != "pull" || r.IntN(2) == 0 {
		return
	}
	for _, args := range [][]string{{"rmi", "pull:1"}, {"rmi", "pull:2"}, {"prune", "--all", "--force"}} {
		// The names need not be there.
		if o := b.command(args...); o.stuck || o.code != 0 && args[0] == "prune" {
			b.t.Errorf("%q: exit code %d, stuck %v: %s", args, o.code, o.stuck, o.text)
		}
	}
}

// instead is, sometimes, something else to do than to build.
func (b *bench) instead(r *rand.Rand, j job) (args []string, build bool) {
	b.t.Helper()
	switch r.IntN(24) {
	case 0:
		return []string{"prune", "--all", "--force"}, false
	case 1:
		return []string{"prune", "--force", "--keep-storage", "1MB"}, false
	case 2:
		return []string{"tag", j.name + ":1", j.name + ":2"}, false
	case 3:
		return []string{"rmi", j.name + ":1"}, false
	case 4:
		return []string{"store", "check", "--repair"}, false
	case 5:
		return b.args("--no-cache", b.failing()), false
	}
	return nil, true
}

// trimmers are the processes that keep the store below its limit.
func (b *bench) trimmers() []int {
	var pids []int
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, l := range lines {
		if cmd, err := os.ReadFile(l); err == nil && bytes.HasPrefix(cmd, []byte("build-trim\x00"+b.root+"\x00")) {
			pid, _ := strconv.Atoi(strings.Split(l, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// afterCommand looks at how something that is no build ended. It may have failed by itself, for want of a name or on purpose, but
// not without a word.
func (b *bench) afterCommand(args []string, victim string, hit int, o outcome, tally map[string]int) {
	b.t.Helper()
	if hit == 0 {
		tally["too late"]++
	} else {
		tally[victim+" of "+args[0]]++
	}
	if o.stuck || !o.killed && o.code != 0 && !strings.Contains(o.text, "ERROR:") {
		b.t.Errorf("%q, whose %s was killed: exit code %d, stuck %v: %s", args, victim, o.code, o.stuck, o.text)
	}
	if hit == 0 && o.code != 0 && args[0] != "tag" && args[0] != "rmi" && o.code != 3 {
		b.t.Errorf("%q failed without a kill: exit code %d: %s", args, o.code, o.text)
	}
}

// afterKill looks at how the build ended. It may have been done, or able to do without whom it lost.
func (b *bench) afterKill(j job, victim string, hit int, o outcome, tally map[string]int) {
	b.t.Helper()
	switch {
	case o.stuck:
		b.t.Errorf("%s%d does not end after its %s was killed: %s", j.name, j.variant, victim, o.text)
	case hit == 0:
		tally["too late"]++
	default:
		tally[victim]++
	}
	switch {
	case o.killed, o.stuck:
	case o.code == 0:
		if o.digest != b.good[j.dir].digest {
			b.t.Errorf("%s%d: its %s was killed, and it ends well with %s, alone %s", j.name, j.variant, victim, o.digest, b.good[j.dir].digest)
		}
	case hit == 0:
		b.t.Errorf("%s%d failed without a kill: exit code %d: %s", j.name, j.variant, o.code, o.text)
	case !strings.Contains(o.text, "ERROR:"):
		b.t.Errorf("%s%d: its %s was killed; exit code %d and no word of it: %s", j.name, j.variant, victim, o.code, o.text)
	}
}

// verify builds to the end; with files, in every form.
func (b *bench) verify(j job, files bool) {
	b.t.Helper()
	var more []string
	tree, archive := b.tmp+"/tree", b.tmp+"/image.tar"
	if files {
		more = []string{"-o", "type=local,dest=" + tree, "-o", "type=oci,rewrite-timestamp=true,dest=" + archive}
		defer removeTree(tree)
	}
	if err := b.right(j, b.build(j.imageArgs(more...)...)); err != nil {
		b.t.Error(err)
		return
	}
	if !files {
		return
	}
	if sum := treeSum(b.t, tree); sum != b.good[j.dir].tree {
		b.t.Errorf("%s%d: another tree than alone", j.name, j.variant)
	}
	if d, err := archiveDigest(archive); err != nil || d != b.good[j.dir].digest {
		b.t.Errorf("%s%d: archive of %s, alone %s: %v", j.name, j.variant, d, b.good[j.dir].digest, err)
	}
}

// process is one that a build started.
type process struct {
	pid  int
	name string // its command line
}

// descendants are the processes below a process.
func descendants(root int) []process {
	below := map[int]bool{root: true}
	parents := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range stats {
		data, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(s, "/")[2])
		// The name, in parentheses, may hold anything; the state and the parent follow its end.
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(fields) > 1 {
			parents[pid], _ = strconv.Atoi(fields[1])
		}
	}
	var out []process
	for more := true; more; {
		more = false
		for pid, parent := range parents {
			if below[parent] && !below[pid] {
				below[pid], more = true, true
				cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				out = append(out, process{pid, strings.ReplaceAll(string(cmd), "\x00", " ")})
			}
		}
	}
	slices.SortFunc(out, func(a, b process) int { return a.pid - b.pid })
	return out
}

// kill kills processes, a group if negative, and returns how many there were.
func kill(pids []int) int {
	n := 0
	for _, pid := range pids {
		if pid != 0 && pid != 1 && pid != -1 && syscall.Kill(pid, syscall.SIGKILL) == nil {
			n++
		}
	}
	return n
}
