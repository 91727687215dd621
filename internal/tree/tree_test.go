package tree

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// build writes entries, which must be in order, and opens the result.
func build(t testing.TB, entries []Entry) *Index {
	t.Helper()
	x, err := Open(bytes.NewReader(image(t, entries)), int64(len(image(t, entries))))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func image(t testing.TB, entries []Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for i := range entries {
		if err := w.Add(&entries[i]); err != nil {
			t.Fatal(err)
		}
	}
	w.Keep("etc/passwd", []byte("root:x:0:0\n"))
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// model is a tree as a map: the trivially correct form of a Chain.
type model map[string]Located

func (m model) drop(path string, self bool) {
	for p := range m {
		if Below(p, path) || self && p == path {
			delete(m, p)
		}
	}
}

func (m model) apply(entries []Entry, layer int) {
	for _, e := range entries {
		old, have := m[e.Path]
		switch {
		case e.Type == Whiteout:
			m.drop(e.Path, true)
			continue
		case e.Type != Dir || have && old.Type != Dir || e.Opaque:
			m.drop(e.Path, e.Path != "")
			if e.Opaque {
				have = false
			}
		}
		if e.Implied && have && old.Type == Dir {
			continue
		}
		m[e.Path] = Located{e, layer}
	}
}

func (m model) sorted() []Located {
	var out []Located
	for _, l := range m {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Located) int { return Compare(a.Path, b.Path) })
	return out
}

// plain takes away what the merged view may present differently: opaque marks, and whose a directory nobody describes is.
func plain(l Located) string {
	if l.Implied {
		l.Layer = -1
	}
	return fmt.Sprintf("%d %q %v %o %d:%d %d %q %x @%d", l.Layer, l.Path, l.Type, l.Mode, l.UID, l.GID, l.Size, l.Link, l.Digest[:2], l.ModTime.Unix())
}

// randomLayer makes the entries of a layer, in order, parents included. Names collide often and sort on both sides of '/'.
func randomLayer(r *rand.Rand, n int) []Entry {
	names := []string{"a", "b", "a-b", "a b", "a.c", "ab", "\xff", "b0", "c"}
	made := map[string]Entry{}
	if r.IntN(2) == 0 {
		made[""] = Entry{Type: Dir, Mode: 0o700 + uint32(r.IntN(64)), Offset: -1, ModTime: time.Unix(1, 0).UTC(), Opaque: r.IntN(12) == 0}
	}
	for range n {
		var path string
		for range 1 + r.IntN(4) {
			path = Join(path, names[r.IntN(len(names))])
		}
		e := Entry{Path: path, Offset: -1, Mode: uint32(r.IntN(0o10000)), UID: r.Uint32N(3), GID: r.Uint32N(1 << 31), ModTime: time.Unix(r.Int64N(1<<40)-1<<39, r.Int64N(1e9)).UTC()}
		switch e.Type = Type(r.IntN(int(lastType) + 1)); e.Type {
		case File:
			e.Size, e.Offset, e.Digest = r.Int64N(1<<50), r.Int64N(1<<50), [32]byte{byte(r.IntN(256)), 1}
		case Symlink:
			e.Link = names[r.IntN(len(names))]
		case Char, Block:
			e.Major, e.Minor = r.Uint32(), r.Uint32()
		case Whiteout:
			e.Mode, e.UID, e.GID, e.ModTime = 0, 0, 0, time.Unix(0, 0).UTC()
		}
		if e.Type == Dir {
			e.Opaque = r.IntN(4) == 0
		}
		if r.IntN(5) == 0 && e.Type != Whiteout {
			e.Xattrs = []Xattr{{"user.a", "\x00\xff"}, {"user.b", strings.Repeat("x", r.IntN(300))}}
		}
		if ok := addParents(r, made, path); ok && (e.Type == Dir || !hasBelow(made, path)) {
			made[path] = e
		}
	}
	var out []Entry
	for _, e := range made {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return Compare(a.Path, b.Path) })
	return out
}

func hasBelow(made map[string]Entry, path string) bool {
	for p := range made {
		if Below(p, path) {
			return true
		}
	}
	return false
}

func addParents(r *rand.Rand, made map[string]Entry, path string) bool {
	for dir := Parent(path); dir != ""; dir = Parent(dir) {
		if e, ok := made[dir]; ok && e.Type != Dir {
			return false
		}
	}
	for dir := Parent(path); dir != ""; dir = Parent(dir) {
		if _, ok := made[dir]; !ok {
			implied := r.IntN(2) == 0
			made[dir] = Entry{Path: dir, Type: Dir, Mode: 0o755, Offset: -1, Implied: implied, ModTime: time.Unix(0, 0).UTC()}
		}
	}
	return true
}

func TestIndexRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 15 {
		want := randomLayer(r, r.IntN(3000))
		x := build(t, want)
		var got []Entry
		for e, err := range x.Subtree("") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
		if len(got) != len(want) || x.Summary().Entries != len(want) {
			t.Fatalf("%d entries (summary %d), want %d", len(got), x.Summary().Entries, len(want))
		}
		for i := range want {
			if !reflect.DeepEqual(got[i], want[i]) {
				t.Fatalf("entry %d:\n%+v\n%+v", i, got[i], want[i])
			}
			e, ok, err := x.Lookup(want[i].Path)
			if err != nil || !ok || !reflect.DeepEqual(e, want[i]) {
				t.Fatalf("Lookup(%q) = %+v, %v, %v", want[i].Path, e, ok, err)
			}
			if _, ok, err := x.Lookup(want[i].Path + "/nothing"); ok || err != nil {
				t.Fatalf("found what is not there: %v", err)
			}
		}
		if data, ok := x.Kept("etc/passwd"); !ok || string(data) != "root:x:0:0\n" {
			t.Fatalf("kept %q, %v", data, ok)
		}
		if _, ok := x.Kept("etc/group"); ok {
			t.Fatal("kept a file nobody gave")
		}
	}
}

func TestSubtreeIsWhatLiesBelow(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	entries := randomLayer(r, 2000)
	x := build(t, entries)
	for _, root := range entries {
		var want, got []string
		for _, e := range entries {
			if e.Path == root.Path || Below(e.Path, root.Path) {
				want = append(want, e.Path)
			}
		}
		for e, err := range x.Subtree(root.Path) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Path)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("below %q:\n%q\n%q", root.Path, got, want)
		}
	}
}

func TestChainAgainstModel(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 5))
		m := model{}
		var layers []*Index
		for i := range 1 + r.IntN(8) {
			entries := randomLayer(r, r.IntN(120))
			layers = append(layers, build(t, entries))
			m.apply(entries, i)
		}
		c := NewChain(layers)
		checkAgainst(t, seed, c, m)
	}
}

func checkAgainst(t *testing.T, seed uint64, c *Chain, m model) {
	t.Helper()
	if _, ok := m[""]; !ok {
		m[""] = Located{Entry: defaultDir("")}
	}
	want := m.sorted()
	var got []Located
	for l, err := range c.Walk("") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, l)
	}
	compare(t, fmt.Sprintf("seed %d, walk", seed), got, want)
	for _, l := range want {
		have, ok, err := c.Lstat(l.Path)
		if err != nil || !ok || plain(have) != plain(l) {
			t.Fatalf("seed %d: Lstat(%q) = %v, %v\n%s\n%s", seed, l.Path, ok, err, plain(have), plain(l))
		}
		var below, list []Located
		for _, e := range want {
			if e.Path == l.Path || Below(e.Path, l.Path) {
				below = append(below, e)
			}
			if e.Path != "" && Parent(e.Path) == l.Path {
				list = append(list, e)
			}
		}
		var walked []Located
		for e, err := range c.Walk(l.Path) {
			if err != nil {
				t.Fatal(err)
			}
			walked = append(walked, e)
		}
		compare(t, "walk below", walked, below)
		read, err := c.ReadDir(l.Path)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, fmt.Sprintf("seed %d: ReadDir(%q)", seed, l.Path), read, list)
	}
	for _, x := range c.Layers() {
		for e := range x.Subtree("") {
			_, in := m[e.Path]
			if _, ok, err := c.Lstat(e.Path); ok != in && e.Path != "" || err != nil {
				t.Fatalf("seed %d: Lstat(%q) = %v, %v", seed, e.Path, ok, err)
			}
		}
	}
}

func compare(t *testing.T, what string, got, want []Located) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || plain(got[i]) != plain(want[i]) {
			t.Fatalf("%s: %d entries, want %d; first difference at %d:\n%v\n%v", what, len(got), len(want), i, first(got, i), first(want, i))
		}
	}
}

func TestWalkCanStop(t *testing.T) {
	x := build(t, randomLayer(rand.New(rand.NewPCG(1, 1)), 500))
	n := 0
	for range NewChain([]*Index{x, x}).Walk("") {
		if n++; n == 7 {
			break
		}
	}
	if n != 7 {
		t.Fatal(n)
	}
}

func TestWriterRefuses(t *testing.T) {
	dir := Entry{Path: "d", Type: Dir, Offset: -1}
	file := func(p string) Entry { return Entry{Path: p, Offset: -1} }
	for name, entries := range map[string][]Entry{
		"disorder":        {file("b"), file("a")},
		"twice":           {file("a"), file("a")},
		"no parent":       {file("a/b")},
		"parent is file":  {file("a"), file("a/b")},
		"left the parent": {dir, file("d-e"), file("d/f")},
		"absolute":        {file("/a")},
		"dots":            {dir, file("d/..")},
		"dot":             {file(".")},
		"slash at end":    {dir, file("d/")},
		"NUL":             {file("a\x00b")},
		"long name":       {file(strings.Repeat("x", 256))},
		"long path":       {file(strings.Repeat("x/", 2100) + "x")},
		"root is file":    {file("")},
		"type":            {{Path: "a", Type: 9}},
		"size":            {{Path: "a", Size: -1}},
		"opaque file":     {{Path: "a", Opaque: true}},
		"link to later":   {{Path: "a", Hardlink: "b"}},
		"linked dir":      {{Path: "b", Type: Dir, Hardlink: "a"}},
	} {
		w := NewWriter(&bytes.Buffer{})
		var err error
		for i := range entries {
			err = w.Add(&entries[i])
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if _, closed := w.Close(); closed == nil {
			t.Errorf("%s: closed without error after %v", name, err)
		}
	}
}

func TestContentIgnoresTimesOnly(t *testing.T) {
	base := []Entry{{Path: "d", Type: Dir, Mode: 0o755, Offset: -1}, {Path: "d/f", Mode: 0o644, Size: 3, Digest: [32]byte{7}, Offset: -1}}
	sum := func(change func(e []Entry)) [32]byte {
		e := slices.Clone(base)
		change(e)
		return build(t, e).Summary().Content
	}
	same := sum(func([]Entry) {})
	if sum(func(e []Entry) { e[1].ModTime, e[1].Offset = time.Unix(9, 9), 512 }) != same {
		t.Error("time or offset changes the content")
	}
	for name, change := range map[string]func(e []Entry){
		"mode":    func(e []Entry) { e[1].Mode = 0o600 },
		"uid":     func(e []Entry) { e[1].UID = 1 },
		"gid":     func(e []Entry) { e[0].GID = 1 },
		"digest":  func(e []Entry) { e[1].Digest[5] = 1 },
		"size":    func(e []Entry) { e[1].Size = 4 },
		"name":    func(e []Entry) { e[1].Path = "d/g" },
		"type":    func(e []Entry) { e[1].Type = Fifo },
		"xattr":   func(e []Entry) { e[1].Xattrs = []Xattr{{"user.a", ""}} },
		"opaque":  func(e []Entry) { e[0].Opaque = true },
		"implied": func(e []Entry) { e[0].Implied = true },
		"link":    func(e []Entry) { e[1].Type, e[1].Link = Symlink, "x" },
	} {
		if sum(change) == same {
			t.Errorf("%s does not change the content", name)
		}
	}
}

func TestNewest(t *testing.T) {
	x := build(t, []Entry{
		{Path: "d", Type: Dir, Implied: true, ModTime: time.Unix(500, 0), Offset: -1},
		{Path: "d/f", ModTime: time.Unix(-20, 5), Offset: -1},
		{Path: "d/g", ModTime: time.Unix(-30, 0), Offset: -1},
	})
	if s := x.Summary(); !s.Newest.Equal(time.Unix(-20, 5)) || s.Implied != 1 {
		t.Fatalf("%+v", s)
	}
	if s := build(t, nil).Summary(); !s.Newest.IsZero() || s.Entries != 0 {
		t.Fatalf("empty: %+v", s)
	}
}

// TestDamage flips every bit of every byte, and cuts at every length: what is read is either right or ErrCorrupt.
func TestDamage(t *testing.T) {
	entries := randomLayer(rand.New(rand.NewPCG(8, 8)), 10)
	whole := image(t, entries)
	try := func(data []byte) {
		x, err := Open(bytes.NewReader(data), int64(len(data)))
		var got []Entry
		if err == nil {
			for e, walkErr := range x.Subtree("") {
				if err = walkErr; err == nil {
					got = append(got, e)
				}
			}
			x.Kept("etc/passwd")
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%v is not ErrCorrupt", err)
		}
		if err == nil && !reflect.DeepEqual(got, entries) {
			t.Fatal("damage was not noticed")
		}
	}
	for i := range whole {
		try(whole[:i])
		for bit := range 8 {
			data := slices.Clone(whole)
			data[i] ^= 1 << bit
			try(data)
		}
	}
}

func first(list []Located, i int) string {
	if i >= len(list) {
		return "nothing"
	}
	return plain(list[i])
}
