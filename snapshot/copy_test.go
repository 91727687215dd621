package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"build/internal/store"
	"build/internal/tree"
)

// memSource is a Source in memory.
type memSource map[string]memFile

type memFile struct {
	tree.Entry
	data string
	ino  string // files with the same one are hard links
}

func (m memSource) with(path string, f memFile) memSource {
	for dir := tree.Parent(path); dir != ""; dir = tree.Parent(dir) {
		if _, ok := m[dir]; !ok {
			m[dir] = memFile{Entry: tree.Entry{Path: dir, Type: tree.Dir, Mode: 0o755, ModTime: srcTime}}
		}
	}
	f.Path, f.Size = path, int64(len(f.data))
	if f.ModTime.IsZero() {
		f.ModTime = srcTime
	}
	m[path] = f
	return m
}

func (m memSource) file(path, data string) memSource {
	return m.with(path, memFile{Entry: tree.Entry{Mode: 0o644}, data: data})
}

func (m memSource) dir(path string, mode uint32, uid uint32) memSource {
	return m.with(path, memFile{Entry: tree.Entry{Type: tree.Dir, Mode: mode, UID: uid, GID: uid}})
}

func (m memSource) link(path, to string) memSource {
	return m.with(path, memFile{Entry: tree.Entry{Type: tree.Symlink, Mode: 0o777, Link: to}})
}

func (m memSource) Lstat(path string) (tree.Entry, bool, error) {
	if path == "" {
		return tree.Entry{Type: tree.Dir, Mode: 0o755, ModTime: srcTime}, true, nil
	}
	f, ok := m[path]
	return f.Entry, ok, nil
}

func (m memSource) ReadDir(path string) ([]tree.Entry, error) {
	var out []tree.Entry
	for _, p := range slices.SortedFunc(maps.Keys(m), tree.Compare) {
		if tree.Parent(p) == path {
			out = append(out, m[p].Entry)
		}
	}
	return out, nil
}

func (m memSource) Walk(path string) iter.Seq2[tree.Entry, error] {
	return func(yield func(tree.Entry, error) bool) {
		first := map[string]string{}
		if top, ok, _ := m.Lstat(path); !ok || !yield(top, nil) {
			return
		}
		for _, p := range slices.SortedFunc(maps.Keys(m), tree.Compare) {
			f := m[p]
			if !tree.Below(p, path) {
				continue
			}
			e := f.Entry
			if f.ino != "" {
				if to := first[f.ino]; to != "" {
					e.Hardlink = to
				} else {
					first[f.ino] = p
				}
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (m memSource) Digest(_ context.Context, e *tree.Entry) ([32]byte, error) {
	return sha256.Sum256([]byte(m[e.Path].data)), nil
}

func (m memSource) Open(_ context.Context, e *tree.Entry) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(m[e.Path].data)), nil
}

var (
	srcTime  = time.Unix(1000, 0).UTC()
	baseTime = time.Unix(2000, 0).UTC()
	nowTime  = time.Unix(3000, 0).UTC()
)

func testLayers(t testing.TB) *Layers {
	t.Helper()
	st, err := store.Open(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := New(st, Options{IDKind: "root"})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// writeTree writes a layer that is a whole tree.
func writeTree(t testing.TB, l *Layers, m memSource) digest.Digest {
	t.Helper()
	w, err := l.NewWriter(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range m.Walk("") {
		if err == nil && e.Path != "" {
			err = w.Add(&e, strings.NewReader(m[e.Path].data))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	layer, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	return layer.DiffID
}

func chainOf(t testing.TB, l *Layers, ids ...digest.Digest) *tree.Chain {
	t.Helper()
	c, err := l.Chain(context.Background(), ids)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// copyLayer runs a copy and returns its layer.
func copyLayer(t testing.TB, l *Layers, base *tree.Chain, src Source, spec *CopySpec) (digest.Digest, error) {
	t.Helper()
	ctx := context.Background()
	spec.Now = nowTime
	sel, err := Select(ctx, src, spec)
	if err != nil {
		return "", err
	}
	if _, err := sel.Digest(ctx); err != nil {
		return "", err
	}
	w, err := l.NewWriter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	list, checked, checkErr := checkCopy(t, l, base, sel)
	if err := sel.Write(ctx, base, w); err != nil {
		w.Abort()
		if checked && fmt.Sprint(checkErr) != fmt.Sprint(err) {
			t.Errorf("checking the copy says %v, writing it %v", checkErr, err)
		}
		return "", err
	}
	layer, err := w.Commit()
	if err == nil && checked {
		if written := dump(t, l, layer.DiffID); checkErr != nil || list != written {
			t.Errorf("checking the copy lists, with %v,\n%s\nand writing it\n%s", checkErr, list, written)
		}
	}
	return layer.DiffID, err
}

// checkCopy lists what a copy would write; checked is false where only writing it can tell. The list that is kept says the same.
func checkCopy(t testing.TB, l *Layers, base *tree.Chain, sel *Selection) (list string, checked bool, err error) {
	t.Helper()
	name := digest.FromString(fmt.Sprint("check ", checks.Add(1)))
	entries, checked, err := l.CheckCopy(t.Context(), sel, base, name)
	if err != nil || !checked {
		if _, ok := l.KnownIndex(name); ok {
			t.Error("a copy that was not checked, or is wrong, left a list")
		}
		return "", checked || err != nil, err
	}
	var b strings.Builder
	for e := range entries {
		if err := normalise(&e); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, line(&e))
	}
	if kept := dump(t, l, name); kept != b.String() {
		t.Errorf("the list that is kept is\n%s\nnot\n%s", kept, b.String())
	}
	return b.String(), true, nil
}

var checks atomic.Int64

// show lists a layer, one line an entry: path, type, mode, owner if not root, time if not the source's, content.
func show(t testing.TB, l *Layers, id digest.Digest) string {
	t.Helper()
	x, err := l.Index(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	src := l.Source(chainOf(t, l, id), []digest.Digest{id})
	defer src.Close()
	var out []string
	for e, err := range x.Subtree("") {
		if err != nil {
			t.Fatal(err)
		}
		s := e.Path
		if e.Type == tree.Dir {
			s += "/"
		}
		s += fmt.Sprintf(" %o", e.Mode)
		if e.UID != 0 || e.GID != 0 {
			s += fmt.Sprintf(" %d:%d", e.UID, e.GID)
		}
		switch {
		case e.ModTime.Equal(nowTime):
			s += " now"
		case e.ModTime.Equal(baseTime):
			s += " base"
		case !e.ModTime.Equal(srcTime):
			s += fmt.Sprintf(" @%d", e.ModTime.Unix())
		}
		if e.Opaque {
			s += " opaque"
		}
		for _, x := range e.Xattrs {
			s += " " + x.Name
		}
		switch {
		case e.Type == tree.Symlink:
			s += " -> " + e.Link
		case e.Hardlink != "":
			s += " = " + e.Hardlink
		case e.Type == tree.File:
			r, err := src.Open(context.Background(), &e)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			s += " " + string(data)
		case e.Type != tree.Dir:
			s += " " + e.Type.String()
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}

// baseTree is what copies land on.
func baseTree() memSource {
	m := memSource{}
	add := func(path string, f memFile) {
		f.ModTime = baseTime
		m.with(path, f)
	}
	for path, mode := range map[string]uint32{"etc": 0o755, "tmp": 0o1777, "srv": 0o750, "usr": 0o755, "usr/lib": 0o755, "data": 0o700, "data/sub": 0o700} {
		add(path, memFile{Entry: tree.Entry{Type: tree.Dir, Mode: mode, UID: 7, GID: 7}})
	}
	add("etc/passwd", memFile{Entry: tree.Entry{Mode: 0o644}, data: "app:x:100:101::/:/bin/sh\nroot:x:0:0\n1000:x:0:0\n"})
	add("etc/group", memFile{Entry: tree.Entry{Mode: 0o644}, data: "staff:x:50:\n"})
	add("lib", memFile{Entry: tree.Entry{Type: tree.Symlink, Link: "usr/lib"}})
	add("abs", memFile{Entry: tree.Entry{Type: tree.Symlink, Link: "/srv"}})
	add("up", memFile{Entry: tree.Entry{Type: tree.Symlink, Link: "../../../tmp"}})
	add("loop", memFile{Entry: tree.Entry{Type: tree.Symlink, Link: "loop"}})
	add("gone", memFile{Entry: tree.Entry{Type: tree.Symlink, Link: "new/place"}})
	add("data/sub/old", memFile{Entry: tree.Entry{Mode: 0o600}, data: "old"})
	add("data/file", memFile{Entry: tree.Entry{Mode: 0o600}, data: "old"})
	add("data/link", memFile{Entry: tree.Entry{Type: tree.Symlink, Link: "sub"}})
	return m
}

// sourceTree is what is copied.
func sourceTree() memSource {
	m := memSource{}
	m.file("f", "F").file("a.txt", "A").file("b.txt", "B").file("dir/one", "1").file("dir/sub/two", "2")
	m.dir("dir", 0o711, 9).dir("dir/sub", 0o500, 9).link("dir/ln", "one").link("flink", "dir/one").link("dlink", "dir")
	m.link("out", "../../f").link("dangling", "nowhere").file("x/y/z.go", "Z").file("x/y/z.txt", "T").file("x/w/z.go", "W")
	m.with("h/a", memFile{Entry: tree.Entry{Mode: 0o644}, data: "H", ino: "1"})
	m.with("h/b", memFile{Entry: tree.Entry{Mode: 0o644}, data: "H", ino: "1"})
	m.with("h/c", memFile{Entry: tree.Entry{Mode: 0o644}, data: "H", ino: "1"})
	m.file("file/dummy", "").file("empty.tar.gz", "")
	m.with("x/exec", memFile{Entry: tree.Entry{Mode: 0o750}, data: "#!"})
	return m
}

func sources(paths ...string) []CopySource {
	var out []CopySource
	for _, p := range paths {
		out = append(out, CopySource{Path: p})
	}
	return out
}

func TestCopy(t *testing.T) {
	l := testLayers(t)
	base := chainOf(t, l, writeTree(t, l, baseTree()))
	src := sourceTree()
	yes := true
	for name, c := range map[string]struct {
		spec CopySpec
		want string
		err  string
	}{
		"file to new name":           {spec: CopySpec{Sources: sources("f"), Dest: "/g"}, want: "g 644 F"},
		"file into new dir":          {spec: CopySpec{Sources: sources("f"), Dest: "/n/m/"}, want: "n/ 755 now\nn/m/ 755 now\nn/m/f 644 F"},
		"file into new dir by dot":   {spec: CopySpec{Sources: sources("f"), Dest: "/n/."}, want: "n/ 755 now\nn/f 644 F"},
		"file to new path":           {spec: CopySpec{Sources: sources("f"), Dest: "/n/m"}, want: "n/ 755 now\nn/m 644 F"},
		"file into existing dir":     {spec: CopySpec{Sources: sources("f"), Dest: "/srv"}, want: "srv/ 750 7:7 base\nsrv/f 644 F"},
		"file into tmp":              {spec: CopySpec{Sources: sources("f"), Dest: "/tmp/"}, want: "tmp/ 1777 7:7 base\ntmp/f 644 F"},
		"file over file":             {spec: CopySpec{Sources: sources("f"), Dest: "/data/file"}, want: "data/ 700 7:7 base\ndata/file 644 F"},
		"dir to new":                 {spec: CopySpec{Sources: sources("dir"), Dest: "/d"}, want: "d/ 755\nd/ln 777 -> one\nd/one 644 1\nd/sub/ 500 9:9\nd/sub/two 644 2"},
		"dir with slash":             {spec: CopySpec{Sources: sources("dir/"), Dest: "/d"}, want: "d/ 755\nd/ln 777 -> one\nd/one 644 1\nd/sub/ 500 9:9\nd/sub/two 644 2"},
		"dir with dot":               {spec: CopySpec{Sources: sources("dir/."), Dest: "/d/"}, want: "d/ 755 now\nd/ln 777 -> one\nd/one 644 1\nd/sub/ 500 9:9\nd/sub/two 644 2"},
		"dir onto existing":          {spec: CopySpec{Sources: sources("dir"), Dest: "/data"}, want: "data/ 700 7:7 base\ndata/ln 777 -> one\ndata/one 644 1\ndata/sub/ 500 9:9\ndata/sub/two 644 2"},
		"dir onto file":              {spec: CopySpec{Sources: sources("dir"), Dest: "/data/file"}, err: "cannot copy to non-directory: /data/file"},
		"nested dir onto symlink":    {spec: CopySpec{Sources: sources("dir", "x"), Dest: "/data/link/.."}, want: "data/ 700 7:7 base\ndata/exec 750 #!\ndata/ln 777 -> one\ndata/one 644 1\ndata/sub/ 500 9:9\ndata/sub/two 644 2\ndata/w/ 755\ndata/w/z.go 644 W\ndata/y/ 755\ndata/y/z.go 644 Z\ndata/y/z.txt 644 T"},
		"nested file onto dir":       {spec: CopySpec{Sources: sources("f", "file"), Dest: "/n/dummy/"}, want: "n/ 755 now\nn/dummy/ 755 now\nn/dummy/dummy 644 \nn/dummy/f 644 F"},
		"file onto nested dir":       {spec: CopySpec{Sources: []CopySource{{Path: "sub", Inline: true, Data: []byte("x")}}, Dest: "/data/"}, err: "cannot replace to directory /data/sub with file"},
		"parent is file":             {spec: CopySpec{Sources: sources("f"), Dest: "/data/file/x"}, err: "mkdir /data/file: not a directory"},
		"through symlink":            {spec: CopySpec{Sources: sources("f"), Dest: "/lib/x"}, want: "usr/ 755 7:7 base\nusr/lib/ 755 7:7 base\nusr/lib/x 644 F"},
		"into symlink":               {spec: CopySpec{Sources: sources("f"), Dest: "/abs"}, want: "srv/ 750 7:7 base\nsrv/f 644 F"},
		"symlink clamped":            {spec: CopySpec{Sources: sources("f"), Dest: "/up/"}, want: "tmp/ 1777 7:7 base\ntmp/f 644 F"},
		"symlink loop":               {spec: CopySpec{Sources: sources("f"), Dest: "/loop/"}, err: "too many levels of symbolic links"},
		"dangling symlink":           {spec: CopySpec{Sources: sources("f"), Dest: "/gone/"}, want: "new/ 755 now\nnew/place/ 755 now\nnew/place/f 644 F"},
		"dir through symlink":        {spec: CopySpec{Sources: sources("dir/sub"), Dest: "/data/link"}, want: "data/ 700 7:7 base\ndata/sub/ 700 7:7 base\ndata/sub/two 644 2"},
		"link ignores base":          {spec: CopySpec{Sources: sources("f"), Dest: "/lib/x", Link: true}, want: "lib/ 755 now\nlib/x 644 F"},
		"dest dots":                  {spec: CopySpec{Sources: sources("f"), Dest: "/../../srv/../q"}, want: "q 644 F"},
		"root":                       {spec: CopySpec{Sources: sources("dir/sub"), Dest: "/"}, want: "two 644 2"},
		"symlink source":             {spec: CopySpec{Sources: sources("flink"), Dest: "/srv/"}, want: "srv/ 750 7:7 base\nsrv/flink 644 1"},
		"symlinked dir source":       {spec: CopySpec{Sources: sources("dlink/sub"), Dest: "/d/"}, want: "d/ 755 now\nd/two 644 2"},
		"source clamped":             {spec: CopySpec{Sources: sources("../../f", "/a.txt", "out"), Dest: "/d/"}, want: "d/ 755 now\nd/a.txt 644 A\nd/f 644 F\nd/out 644 F"},
		"missing":                    {spec: CopySpec{Sources: sources("f", "nope/x"), Dest: "/d/"}, err: `"/nope/x": not found`},
		"dangling source":            {spec: CopySpec{Sources: sources("dangling"), Dest: "/d/"}, err: `"/dangling": not found`},
		"wildcard":                   {spec: CopySpec{Sources: sources("*.txt", "nomatch*"), Dest: "/d/"}, want: "d/ 755 now\nd/a.txt 644 A\nd/b.txt 644 B"},
		"wildcard, nothing":          {spec: CopySpec{Sources: sources("nomatch*"), Dest: "/d/"}, want: ""},
		"wildcard in missing":        {spec: CopySpec{Sources: sources("nope/*"), Dest: "/d/"}, err: `"/nope": not found`},
		"wildcard follows":           {spec: CopySpec{Sources: sources("fl?nk"), Dest: "/d/"}, want: "d/ 755 now\nd/flink 644 1"},
		"wildcard matches dir":       {spec: CopySpec{Sources: sources("di[r]"), Dest: "/d"}, want: "d/ 755\nd/ln 777 -> one\nd/one 644 1\nd/sub/ 500 9:9\nd/sub/two 644 2"},
		"wildcard in the middle":     {spec: CopySpec{Sources: sources("x/*/z.go"), Dest: "/d"}, want: "d 644 Z"},
		"bad wildcard":               {spec: CopySpec{Sources: sources("[a"), Dest: "/d"}, err: `invalid source pattern "[a" (a bracket that is part of a name is written [[])`},
		"later wins":                 {spec: CopySpec{Sources: sources("x/w", "x/y"), Dest: "/d"}, want: "d/ 755\nd/z.go 644 Z\nd/z.txt 644 T"},
		"chown":                      {spec: CopySpec{Sources: sources("dir"), Dest: "/n/d/", Owner: &Owner{5, 6}}, want: "n/ 755 5:6 now\nn/d/ 755 5:6 now\nn/d/ln 777 5:6 -> one\nn/d/one 644 5:6 1\nn/d/sub/ 500 5:6\nn/d/sub/two 644 5:6 2"},
		"chown keeps existing":       {spec: CopySpec{Sources: sources("f"), Dest: "/srv/", Owner: &Owner{5, 6}}, want: "srv/ 750 7:7 base\nsrv/f 644 5:6 F"},
		"chmod":                      {spec: CopySpec{Sources: sources("dir"), Dest: "/n/", Chmod: "4701"}, want: "n/ 701 now\nn/ln 777 -> one\nn/one 4701 1\nn/sub/ 4701 9:9\nn/sub/two 4701 2"},
		"chmod keeps existing":       {spec: CopySpec{Sources: sources("f"), Dest: "/srv/", Chmod: "0600"}, want: "srv/ 750 7:7 base\nsrv/f 600 F"},
		"symbolic chmod":             {spec: CopySpec{Sources: sources("x"), Dest: "/n/", Chmod: "go=u-w,a+X"}, want: "n/ 755 now\nn/exec 755 #!\nn/w/ 755\nn/w/z.go 644 W\nn/y/ 755\nn/y/z.go 644 Z\nn/y/z.txt 644 T"},
		"bad exclude of a file":      {spec: CopySpec{Sources: sources("f"), Dest: "/n", Exclude: []string{"["}}, err: "invalid exclude pattern"},
		"bad chmod":                  {spec: CopySpec{Sources: sources("f"), Dest: "/n/", Chmod: "0888"}, err: "invalid chmod parameter: '0888'. it should be octal string and between 0 and 07777"},
		"hard links":                 {spec: CopySpec{Sources: sources("h"), Dest: "/n"}, want: "n/ 755\nn/a 644 H\nn/b 644 = n/a\nn/c 644 = n/a"},
		"hard links, first replaced": {spec: CopySpec{Sources: append(sources("h"), CopySource{Path: "a", Inline: true}), Dest: "/n/"}, want: "n/ 755 now\nn/a 644 now \nn/b 644 H\nn/c 644 = n/b"},
		"hard links, first excluded": {spec: CopySpec{Sources: sources("h"), Dest: "/n", Exclude: []string{"a"}}, want: "n/ 755\nn/b 644 H\nn/c 644 = n/b"},
		"hard link copied alone":     {spec: CopySpec{Sources: sources("h/b"), Dest: "/n"}, want: "n 644 H"},
		"inline":                     {spec: CopySpec{Sources: []CopySource{{Path: "EOF", Inline: true, Data: []byte("hi")}}, Dest: "/srv/"}, want: "srv/ 750 7:7 base\nsrv/EOF 644 now hi"},
		"inline to a name":           {spec: CopySpec{Sources: []CopySource{{Path: "EOF", Inline: true, Data: []byte("hi")}}, Dest: "/etc/conf", Chmod: "755"}, want: "etc/ 755 7:7 base\netc/conf 755 now hi"},
		"exclude":                    {spec: CopySpec{Sources: sources("x"), Dest: "/n", Exclude: []string{"**/*.go"}}, want: "n/ 755\nn/exec 750 #!\nn/w/ 755\nn/y/ 755\nn/y/z.txt 644 T"},
		"exclude dir":                {spec: CopySpec{Sources: sources("x"), Dest: "/n", Exclude: []string{"y", "w"}}, want: "n/ 755\nn/exec 750 #!"},
		"exclude with exception":     {spec: CopySpec{Sources: sources("x"), Dest: "/n", Exclude: []string{"*", "!y/*.go"}}, want: "n/ 755\nn/y/ 755\nn/y/z.go 644 Z"},
		"exclude is not for files":   {spec: CopySpec{Sources: sources("f"), Dest: "/n", Exclude: []string{"f"}}, want: "n 644 F"},
		"parents":                    {spec: CopySpec{Sources: sources("x/y/z.go"), Dest: "/n/", Parents: true}, want: "n/ 755 now\nn/x/ 755\nn/x/y/ 755\nn/x/y/z.go 644 Z"},
		"parents, dir":               {spec: CopySpec{Sources: sources("dir/sub"), Dest: "/n", Parents: true}, want: "n/ 755\nn/dir/ 711 9:9\nn/dir/sub/ 500 9:9\nn/dir/sub/two 644 2"},
		"parents, pivot":             {spec: CopySpec{Sources: sources("/x/./y/./z.go"), Dest: "/out/", Parents: true}, want: "out/ 755 now\nout/y/ 755\nout/y/z.go 644 Z"},
		"parents, no pivot at end":   {spec: CopySpec{Sources: sources("x/w/."), Dest: "/out/", Parents: true}, want: "out/ 755 now\nout/x/ 755\nout/x/w/ 755\nout/x/w/z.go 644 W"},
		"parents, wildcard":          {spec: CopySpec{Sources: sources("x/*/z.go"), Dest: "/out/", Parents: true}, want: "out/ 755 now\nout/x/ 755\nout/x/w/ 755\nout/x/w/z.go 644 W\nout/x/y/ 755\nout/x/y/z.go 644 Z"},
		"parents, missing":           {spec: CopySpec{Sources: sources("x/q"), Dest: "/out/", Parents: true}, err: `"/x/q": not found`},
		"parents, everything":        {spec: CopySpec{Sources: sources("."), Dest: "/out/", Parents: true}, err: `"." names a whole directory`},
		"parents, empty after pivot": {spec: CopySpec{Sources: sources("x/./"), Dest: "/out/", Parents: true}, err: `"x/./" names a whole directory`},
		"parents, wildcard missing":  {spec: CopySpec{Sources: sources("x/q*"), Dest: "/out/", Parents: true}, want: "out/ 755 now"},
		"parents onto existing":      {spec: CopySpec{Sources: sources("data/file"), Dest: "/", Parents: true}, want: "data/ 755 7:7 base\ndata/file 644 new"},
		"add of plain file":          {spec: CopySpec{Add: true, Sources: sources("f", "empty.tar.gz"), Dest: "/n/"}, want: "n/ 755 now\nn/empty.tar.gz 644 \nn/f 644 F"},
		"unpack of plain file":       {spec: CopySpec{Unpack: &yes, Sources: sources("f"), Dest: "/n/"}, want: "n/ 755 now\nn/f 644 F"},
	} {
		t.Run(name, func(t *testing.T) {
			from := Source(src)
			if strings.Contains(name, "parents onto") {
				from = memSource{}.file("data/file", "new").dir("data", 0o755, 9)
			}
			id, err := copyLayer(t, l, base, from, &c.spec)
			if c.err != "" {
				var nf *NotFoundError
				var ce *CopyError
				if err == nil || !strings.Contains(err.Error(), c.err) || !errors.As(err, &nf) && !errors.As(err, &ce) {
					t.Fatalf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := show(t, l, id); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

func TestCopyNestedConflicts(t *testing.T) {
	l := testLayers(t)
	base := chainOf(t, l, writeTree(t, l, baseTree()))
	for name, c := range map[string]struct {
		src  memSource
		want string
	}{
		"directory onto file":    {memSource{}.file("d/file/x", ""), "cannot copy to non-directory: /data/file"},
		"directory onto symlink": {memSource{}.file("d/link/x", ""), "cannot copy to non-directory: /data/link"},
		"file onto directory":    {memSource{}.file("d/sub", ""), "cannot replace to directory /data/sub with file"},
		"symlink onto directory": {memSource{}.link("d/sub", "x"), "cannot replace to directory /data/sub with file"},
	} {
		_, err := copyLayer(t, l, base, c.src, &CopySpec{Sources: sources("d"), Dest: "/data"})
		var ce *CopyError
		if !errors.As(err, &ce) || ce.Msg != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	id, err := copyLayer(t, l, base, memSource{}.file("d/link", "new"), &CopySpec{Sources: sources("d"), Dest: "/data"})
	if err != nil || show(t, l, id) != "data/ 700 7:7 base\ndata/link 644 new" {
		t.Errorf("a file replaces a symlink: %v\n%s", err, show(t, l, id))
	}
}

// TestCopyIntoLargeDirectory crosses the point where the base's directory is read at once.
func TestCopyIntoLargeDirectory(t *testing.T) {
	l := testLayers(t)
	base, src := memSource{}, memSource{}
	for i := range 60 {
		base.file(fmt.Sprintf("d/f%02d", i), "old").dir(fmt.Sprintf("d/k%02d", i), 0o700, 3)
		src.file(fmt.Sprintf("d/f%02d", i), "new").file(fmt.Sprintf("d/k%02d/x", i), "new")
	}
	id, err := copyLayer(t, l, chainOf(t, l, writeTree(t, l, base)), src, &CopySpec{Sources: sources("d"), Dest: "/d"})
	if err != nil {
		t.Fatal(err)
	}
	got := show(t, l, id)
	if n := strings.Count(got, "new"); n != 120 {
		t.Errorf("%d files", n)
	}
	src.file("d/k59", "")
	delete(src, "d/k59/x")
	if _, err := copyLayer(t, l, chainOf(t, l, writeTree(t, l, base)), src, &CopySpec{Sources: sources("d"), Dest: "/d"}); err == nil {
		t.Error("a file replaced a directory")
	}
}

func TestSelectionDigest(t *testing.T) {
	ctx := context.Background()
	sum := func(src Source, change func(*CopySpec)) [32]byte {
		t.Helper()
		spec := &CopySpec{Sources: sources("dir", "f", "h", "*.txt"), Dest: "/d/", Now: nowTime}
		if change != nil {
			change(spec)
		}
		sel, err := Select(ctx, src, spec)
		if err != nil {
			t.Fatal(err)
		}
		d, err := sel.Digest(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	same := sum(sourceTree(), nil)
	touched := sourceTree()
	for p, f := range touched {
		f.ModTime = f.ModTime.Add(time.Hour)
		touched[p] = f
	}
	for name, src := range map[string]memSource{
		"times":                touched,
		"a file not selected":  sourceTree().file("other", "x"),
		"metadata of the top":  sourceTree().dir("dir", 0o700, 1),
		"a symlink's mode":     sourceTree().with("dir/ln", memFile{Entry: tree.Entry{Type: tree.Symlink, Link: "one", Mode: 0o700}}),
		"the time of a copy":   sourceTree(),
		"a link to the file f": sourceTree().link("other", "f"),
	} {
		if sum(src, nil) != same {
			t.Errorf("%s changes the digest", name)
		}
	}
	for name, src := range map[string]memSource{
		"content":   sourceTree().file("f", "G"),
		"nested":    sourceTree().file("dir/sub/two", "3"),
		"new file":  sourceTree().file("dir/sub/three", "3"),
		"new match": sourceTree().file("c.txt", "3"),
		"mode":      sourceTree().with("f", memFile{Entry: tree.Entry{Mode: 0o755}, data: "F"}),
		"owner":     sourceTree().dir("dir/sub", 0o500, 10),
		"link":      sourceTree().link("dir/ln", "two"),
		"links":     sourceTree().file("h/b", "H"),
	} {
		if sum(src, nil) == same {
			t.Errorf("%s does not change the digest", name)
		}
	}
	if sum(sourceTree(), func(s *CopySpec) { s.Exclude = []string{"one"} }) == same {
		t.Error("an exclude pattern does not change the digest")
	}
	if sum(sourceTree(), func(s *CopySpec) { s.Sources = append(s.Sources, CopySource{Path: "E", Inline: true}) }) == same {
		t.Error("an inline document does not change the digest")
	}
}

// TestCopyNoticesChange changes a file between hashing and writing.
func TestCopyNoticesChange(t *testing.T) {
	ctx := context.Background()
	l := testLayers(t)
	src := sourceTree()
	sel, err := Select(ctx, src, &CopySpec{Sources: sources("dir"), Dest: "/d"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sel.Digest(ctx); err != nil {
		t.Fatal(err)
	}
	src.file("dir/sub/two", "3")
	w, err := l.NewWriter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var changed *ChangedError
	if err := sel.Write(ctx, tree.NewChain(nil), w); !errors.As(err, &changed) {
		t.Fatalf("%v", err)
	}
}

func TestCopyFromLayers(t *testing.T) {
	l := testLayers(t)
	lower := sourceTree().with("cap", memFile{Entry: tree.Entry{Mode: 0o755, Xattrs: []tree.Xattr{{Name: "user.a", Value: "v"}}}, data: "C"})
	lower.with("dev/null", memFile{Entry: tree.Entry{Type: tree.Char, Mode: 0o666, Major: 1, Minor: 3}})
	first := writeTree(t, l, lower)
	second := writeTree(t, l, memSource{}.file("h/a", "new").file("dir/one", "over"))
	ids := []digest.Digest{first, second}
	src := l.Source(chainOf(t, l, ids...), ids)
	defer src.Close()
	id, err := copyLayer(t, l, nil, src, &CopySpec{Sources: sources("/"), Dest: "/", Exclude: []string{"x", "file", "*.txt", "empty*"}})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"cap 755 user.a C", "dangling 777 -> nowhere", "dev/ 755", "dev/null 666 character device", "dir/ 755", "dir/ln 777 -> one",
		"dir/one 644 over", "dir/sub/ 500 9:9", "dir/sub/two 644 2", "dlink 777 -> dir", "f 644 F", "flink 777 -> dir/one",
		"h/ 755", "h/a 644 new", "h/b 644 H", "h/c 644 = h/b", "out 777 -> ../../f",
	}, "\n")
	if got := show(t, l, id); got != want {
		t.Errorf("got:\n%s", got)
	}
}

func TestMkdir(t *testing.T) {
	ctx := context.Background()
	l := testLayers(t)
	base := chainOf(t, l, writeTree(t, l, baseTree()))
	for path, want := range map[string]string{
		"srv":          "",
		"":             "",
		"lib":          "",
		"srv/a/b":      "srv/ 750 7:7 base\nsrv/a/ 755 3:4 now\nsrv/a/b/ 755 3:4 now",
		"/abs/x":       "srv/ 750 7:7 base\nsrv/x/ 755 3:4 now",
		"gone":         "new/ 755 3:4 now\nnew/place/ 755 3:4 now",
		"data/file/x":  "error",
		"data/file":    "error",
		"../../../tmp": "",
	} {
		w, err := l.NewWriter(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got := "error"
		if err := Mkdir(ctx, base, path, Owner{3, 4}, nowTime, w); err == nil {
			layer, err := w.Commit()
			if err != nil {
				t.Fatal(err)
			}
			got = show(t, l, layer.DiffID)
		} else {
			w.Abort()
		}
		if got != want {
			t.Errorf("%q: got:\n%s\nwant:\n%s", path, got, want)
		}
	}
}
