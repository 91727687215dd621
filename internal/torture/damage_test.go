package torture

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// everything is a task that leaves a file of every kind in the store.
func everything(registry string) task {
	return task{name: "everything", df: `FROM ` + registry + `/base:1 AS a
ADD http://` + registry + `/file /file
COPY f /f
RUN --mount=type=cache,target=/c cat /f > /copy; echo one > /one
RUN --mount=type=secret,id=s cat /f /file > /two <<EOT
text
EOT
FROM bb
COPY --from=a /copy /two /c/
WORKDIR /w
RUN cat /c/copy /c/two > /d; chown 3:4 /d
COPY --link g many /g/
`, files: append(manyFiles(400), "f", strings.Repeat("f", 5000), "g", "g", "../secret", "the secret of this build, long enough")}
}

// damages are what may happen to a file. What is under a name may also become something that no disk makes of a file: then an
// error that names it will do.
var damages = []struct {
	name string
	do   func(r *rand.Rand, path string, data []byte, other []byte) error
}{
	{"removed", func(_ *rand.Rand, path string, _, _ []byte) error { return os.Remove(path) }},
	{"empty", func(_ *rand.Rand, path string, _, _ []byte) error { return os.WriteFile(path, nil, 0o600) }},
	{"truncated", func(r *rand.Rand, path string, data, _ []byte) error {
		return os.WriteFile(path, data[:r.IntN(len(data))], 0o600)
	}},
	{"bit flipped", func(r *rand.Rand, path string, data, _ []byte) error {
		b := bytes.Clone(data)
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		return os.WriteFile(path, b, 0o600)
	}},
	{"zeros", func(_ *rand.Rand, path string, data, _ []byte) error {
		return os.WriteFile(path, make([]byte, len(data)), 0o600)
	}},
	{"longer", func(_ *rand.Rand, path string, data, _ []byte) error {
		return os.WriteFile(path, append(bytes.Clone(data), "more"...), 0o600)
	}},
	{"swapped", func(_ *rand.Rand, path string, _, other []byte) error { return os.WriteFile(path, other, 0o600) }},
	{"a directory", func(_ *rand.Rand, path string, _, _ []byte) error {
		return errs(os.Remove(path), os.Mkdir(path, 0o700))
	}},
	{"a full directory", func(_ *rand.Rand, path string, data, _ []byte) error {
		return errs(os.Remove(path), os.Mkdir(path, 0o700), os.WriteFile(path+"/x", data, 0o600))
	}},
	{"a link to nothing", func(_ *rand.Rand, path string, _, _ []byte) error {
		return errs(os.Remove(path), os.Symlink("/nothing/here", path))
	}},
	{"unreadable", func(_ *rand.Rand, path string, _, _ []byte) error { return os.Chmod(path, 0) }},
}

// odd are the damages that leave no file.
var odd = []string{"a directory", "a full directory", "a link to nothing"}

func errs(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// fileKinds are the kinds of files of a store, each a pattern. Unless it is one of the store's own, a build gives the right
// thing whatever happened to it.
var fileKinds = []struct {
	pattern string
	own     bool // without it, what is there is no store of ours: a clear error will do
}{
	{"blobs/sha256/*", false}, {"index/*/*", false}, {"layer/*/*", false}, {"record/*/*", false}, {"link/*/*", false},
	{"text/*/*", false}, {"name/*/*", false}, {"context/*", false}, {"local/*/dir/*/marker", false}, {"boot/*/*", false},
	{"http/sha256-*", false}, {"http/url-*", false}, {"secret-key", false}, {"index.json", false}, {"lock/*", false},
	{"oci-layout", false}, {"usage", false}, {"trimmed", false}, {"local/*/cache-info/*", false}, {"log/*", false}, {"partial/*", false}, {"version", true},
}

// TestDamage damages files of a store that holds everything, one at a time, every kind in every way, and builds. What comes out
// is right; a check then finds and repairs what the build had no reason to look at.
func TestDamage(t *testing.T) {
	w := newWorld(t)
	b := &bench{world: w, good: map[string]alone{}}
	j := b.job(everything(newRegistry(t, w)), 0)
	j.args = []string{"--pull", "--secret", "id=s,src=" + w.tmp + "/ctx/secret"}
	solo := w.with(w.tmp + "/alone")
	tree := solo.root + ".tree"
	b.good[j.dir] = alone{solo.ok(j.imageArgs("-o", "type=local,dest="+tree)...), treeSum(t, tree)}
	b.renew(j)
	r := rand.New(rand.NewPCG(*seed, 2))
	t.Logf("seed %d", *seed)
	trials := 0
	for _, kind := range fileKinds {
		ways := slices.Clone(damages)
		if *each == 0 {
			r.Shuffle(len(ways), func(i, k int) { ways[i], ways[k] = ways[k], ways[i] })
			ways = ways[:2]
		}
		for _, damage := range ways {
			for _, path := range b.sample(r, j, kind.pattern) {
				trials++
				b.damage(r, j, path, kind.own, damage.name, damage.do)
			}
		}
	}
	b.idle()
	b.sound()
	b.swept()
	t.Logf("%d times damaged", trials)
}

// sample picks files of a kind: one, or all of them in a long run.
func (b *bench) sample(r *rand.Rand, j job, pattern string) []string {
	b.t.Helper()
	if pattern == "partial/*" {
		b.interrupt()
	}
	files, err := filepath.Glob(b.root + "/" + pattern)
	must(b.t, err)
	if len(files) == 0 { // nobody makes it again before there is a reason
		b.renew(j)
		files, _ = filepath.Glob(b.root + "/" + pattern)
	}
	if len(files) == 0 && !strings.HasPrefix(pattern, "text") { // only very long texts are kept apart
		b.t.Errorf("there is no %s", pattern)
	}
	r.Shuffle(len(files), func(i, k int) { files[i], files[k] = files[k], files[i] })
	return files[:min(len(files), max(1, *each))]
}

// damage does harm to one file, builds, repairs, and builds again.
func (b *bench) damage(r *rand.Rand, j job, path string, own bool, name string, do func(*rand.Rand, string, []byte, []byte) error) {
	b.t.Helper()
	fi, err := os.Lstat(path)
	if err != nil || !fi.Mode().IsRegular() {
		return // gone with an earlier repair
	}
	if strings.Contains(path, "/lock/") && slices.Contains(odd, name) {
		return // what is no file cannot be locked, which every command says
	}
	data, err := os.ReadFile(path)
	must(b.t, err)
	if len(data) == 0 {
		data = []byte("\n") // so that there is something to change
	}
	what := fmt.Sprintf("%s %s", strings.TrimPrefix(path, b.root+"/"), name)
	must(b.t, os.Chmod(path, 0o600))
	must(b.t, do(r, path, data, b.other(r, path)))
	if fi2, err := os.Lstat(path); err == nil && fi2.Mode().IsRegular() && name != "unreadable" {
		must(b.t, os.Chmod(path, fi.Mode()))
	}
	lenient := own || slices.Contains(odd, name)
	o := b.build(j.imageArgs("-o", "type=local,dest="+b.tmp+"/tree", "-o", "type=oci,rewrite-timestamp=true,dest="+b.tmp+"/image.tar")...)
	if lenient && o.code != 0 && !o.stuck && strings.Contains(o.text, path) {
		must(b.t, os.RemoveAll(path))
		must(b.t, os.WriteFile(path, data, fi.Mode()))
	} else if err := b.right(j, o); err != nil {
		b.t.Errorf("%s: %v", what, err)
	} else if sum := treeSum(b.t, b.tmp+"/tree"); sum != b.good[j.dir].tree {
		b.t.Errorf("%s: another tree", what)
	} else if d, err := archiveDigest(b.tmp + "/image.tar"); err != nil || d != o.digest {
		b.t.Errorf("%s: archive of %s: %v", what, d, err)
	}
	removeTree(b.tmp + "/tree")
	if o := b.command("store", "check", "--repair"); o.code != 0 {
		b.t.Errorf("%s: not repaired: exit code %d: %s%s", what, o.code, o.digest, o.text)
	}
	if err := b.right(j, b.build(j.imageArgs()...)); err != nil {
		b.t.Errorf("%s, after a repair: %v", what, err)
		b.renew(j) // so that the next damage is looked at by itself
	}
}

// renew makes the store anew.
func (b *bench) renew(j job) {
	b.t.Helper()
	must(b.t, os.RemoveAll(b.root))
	b.verify(j, true)
	b.verify(j, true) // files that were only just written are not remembered at their first reading
	b.build("--store-limit", "1MB", b.failing())
	b.idle()
	b.build(b.failing()) // its log stays: nothing is too much
	b.verify(j, true)
}

// interrupt makes the store what it is after a download of its largest blob, that of the base image, was killed.
func (b *bench) interrupt() {
	b.t.Helper()
	blobs, _ := filepath.Glob(b.root + "/blobs/sha256/*")
	size := func(path string) int64 {
		fi, err := os.Stat(path)
		must(b.t, err)
		return fi.Size()
	}
	largest := slices.MaxFunc(blobs, func(x, y string) int { return int(size(x) - size(y)) })
	to := b.root + "/partial/" + filepath.Base(largest)
	must(b.t, os.MkdirAll(filepath.Dir(to), 0o700))
	must(b.t, os.Rename(largest, to))
	must(b.t, errs(os.Chmod(to, 0o600), os.Truncate(to, size(to)/2)))
}

// other is what another file of the same kind holds.
func (b *bench) other(r *rand.Rand, path string) []byte {
	dir := filepath.Dir(path)
	if kind := strings.SplitN(strings.TrimPrefix(path, b.root+"/"), "/", 2)[0]; kind != filepath.Base(path) {
		dir = filepath.Join(b.root, kind)
	}
	var files []string
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "fs":
			return fs.SkipDir
		case d.Type().IsRegular() && p != path:
			files = append(files, p)
		}
		return nil
	})
	if len(files) == 0 {
		return []byte("nothing like it")
	}
	data, err := os.ReadFile(files[r.IntN(len(files))])
	must(b.t, err)
	return data
}
