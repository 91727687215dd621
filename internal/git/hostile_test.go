package git

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// packOf makes a pack. Entries are a kind, a size, what names the base of a delta, and the content before compression.
type packOf struct {
	bytes.Buffer
	n uint32
	z *zlib.Writer
}

func (p *packOf) add(k kind, size int, base []byte, data []byte) int64 {
	if p.Len() == 0 {
		p.WriteString("PACK\x00\x00\x00\x02\x00\x00\x00\x00")
	}
	at := int64(p.Len())
	b := byte(k)<<4 | byte(size&15)
	for size >>= 4; size > 0; size >>= 7 {
		p.WriteByte(b | 0x80)
		b = byte(size & 0x7f)
	}
	p.WriteByte(b)
	p.Write(base)
	if p.z == nil {
		p.z = zlib.NewWriter(p)
	}
	z := p.z
	z.Reset(p)
	_, _ = z.Write(data) // into memory
	_ = z.Close()
	p.n++
	return at
}

// delta adds one that is its base and more.
func (p *packOf) delta(back int64, size int, more string) int64 {
	var d []byte
	d = binary.AppendUvarint(d, uint64(size))
	d = binary.AppendUvarint(d, uint64(size+len(more)))
	for at := 0; at < size; at += 0xffffff {
		n := min(size-at, 0xffffff)
		d = append(d, 0xff, byte(at), byte(at>>8), byte(at>>16), byte(at>>24), byte(n), byte(n>>8), byte(n>>16))
	}
	d = append(append(d, byte(len(more))), more...)
	ofs := []byte{byte(back & 0x7f)}
	for back >>= 7; back > 0; back >>= 7 {
		back--
		ofs = append([]byte{byte(back&0x7f) | 0x80}, ofs...)
	}
	return p.add(ofsDelta, len(d), ofs, d)
}

func (p *packOf) open(t *testing.T, trailing string) (*pack, error) {
	t.Helper()
	p.WriteString(trailing)
	data := p.Bytes()
	binary.BigEndian.PutUint32(data[8:], p.n)
	h := newHash(40)
	_, _ = h.Write(data)
	path := filepath.Join(t.TempDir(), "pack")
	if err := os.WriteFile(path, h.Sum(data), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return openPack(context.Background(), f, 40)
}

// Deltas of deltas, and many against one, are each unfolded once, whatever the size: the base is always at hand.
func TestDeltaShapes(t *testing.T) {
	const size, n = maxDeltaCache/4 + 1, 4 // larger than what is kept for longer
	chain, wide := &packOf{}, &packOf{}
	at := chain.add(blobKind, size, nil, make([]byte, size))
	root := wide.add(blobKind, size, nil, make([]byte, size))
	for i := range n {
		at = chain.delta(int64(chain.Len())-at, size+i, "x")
		wide.delta(int64(wide.Len())-root, size, string(rune('a'+i)))
	}
	for name, p := range map[string]*packOf{"chain": chain, "wide": wide} {
		got, err := p.open(t, "")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		seen := map[rawID]bool{}
		for _, o := range got.objs {
			seen[o.id] = true
		}
		if len(got.objs) != n+1 || len(seen) != n+1 {
			t.Errorf("%s: %d objects, %d names", name, len(got.objs), len(seen))
		}
		if got.recent != nil || len(got.cache) != 0 {
			t.Errorf("%s: large objects stay in memory", name)
		}
	}
}

func TestDamagedPacks(t *testing.T) {
	deep := &packOf{}
	at := deep.add(blobKind, 1, nil, []byte("x"))
	for i := range maxDeltaDepth + 1 {
		at = deep.delta(int64(deep.Len())-at, 1+i, "y")
	}
	for name, c := range map[string]struct {
		p        *packOf
		trailing string
		build    func(*packOf)
	}{
		"too deep":        {p: deep},
		"trailing bytes":  {trailing: "x", build: func(p *packOf) { p.add(blobKind, 1, nil, []byte("x")) }},
		"size too small":  {build: func(p *packOf) { p.add(blobKind, 1, nil, []byte("xy")) }},
		"size too large":  {build: func(p *packOf) { p.add(blobKind, 3, nil, []byte("xy")) }},
		"base not there":  {build: func(p *packOf) { p.add(blobKind, 1, nil, []byte("x")); p.delta(3, 1, "y") }},
		"base of no name": {build: func(p *packOf) { p.add(refDelta, 4, make([]byte, 20), []byte("\x01\x01\x01x")) }},
		"no such kind":    {build: func(p *packOf) { p.add(5, 1, nil, []byte("x")) }},
		"wrong base size": {build: func(p *packOf) {
			at := p.add(blobKind, 1, nil, []byte("x"))
			p.delta(int64(p.Len())-at, 2, "y")
		}},
	} {
		if c.p == nil {
			c.p = &packOf{}
			c.build(c.p)
		}
		if _, err := c.p.open(t, c.trailing); !errors.Is(err, errPack) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A base that comes after what is made of it, named rather than pointed at, and a delta itself.
func TestBaseComesLater(t *testing.T) {
	id := func(text string) []byte {
		h := objectHash(40, blobKind, int64(len(text)))
		_, _ = io.WriteString(h, text)
		raw, err := sum(h)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	p := &packOf{}
	d := []byte("\x02\x03\x90\x02\x01c") // "ab" and c
	p.add(refDelta, len(d), id("ab"), d)
	d = []byte("\x01\x02\x90\x01\x01b") // "a" and b
	p.add(refDelta, len(d), id("a"), d)
	p.add(blobKind, 1, nil, []byte("a"))
	got, err := p.open(t, "")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"abc", "ab", "a"} {
		if data, err := got.bytes(int32(i)); err != nil || string(data) != want {
			t.Errorf("%d: %q %v", i, data, err)
		}
	}
}

// A loose object whose header never ends is given up at once, not read into memory.
func TestLooseHeaderWithoutEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	_, _ = z.Write(bytes.Repeat([]byte("x"), 1<<20))
	_ = z.Close()
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := openLoose(f, strings.Repeat("0", 40)); err == nil {
		t.Error("accepted")
	}
}

// Credentials are for one host and port: whoever that sends us to gets none, at any request.
func TestCredentialsStayAtHome(t *testing.T) {
	var got []string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
		http.NotFound(w, r)
	}))
	defer elsewhere.Close()
	home := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer tok" {
			t.Errorf("not sent to its own host: %v", r.Header)
		}
		http.Redirect(w, r, elsewhere.URL+r.URL.RequestURI(), http.StatusFound)
	}))
	defer home.Close()
	_, _, err := get(t, home.URL+"/r.git", Query{}, CheckoutOptions{}, Config{Authorization: func(*url.URL) string { return "Bearer tok" }})
	if err == nil || len(got) != 1 || got[0] != "" {
		t.Errorf("%q %v", got, err)
	}
}

// What a server says appears in messages, and must not reach a terminal as it is.
func TestServersDoNotDriveTerminals(t *testing.T) {
	_, err := readPacket(bufio.NewReader(strings.NewReader(packet("ERR no \x1b]0;title\x07\r\n"))), make([]byte, maxPacket))
	if err == nil || err.Error() != "the server says: no ·]0;title·" {
		t.Errorf("%q", err)
	}
	if got := plainText(strings.Repeat("x", 5000)); len(got) > 1100 {
		t.Errorf("%d bytes", len(got))
	}
}

func TestDeepTree(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(s.dir, "deep")
	run(t, s.dir, "init", "-q", "-b", "main", "deep")
	write(t, dir+"/f", "x", 0o644)
	run(t, dir, "add", "f")
	tree := run(t, dir, "write-tree")
	for range 40 {
		write(t, s.dir+"/tree", "40000 "+strings.Repeat("d", 200)+"\x00"+unhex(t, tree), 0o600)
		tree = run(t, dir, "hash-object", "-t", "tree", "-w", s.dir+"/tree")
	}
	run(t, dir, "update-ref", "refs/heads/main", run(t, dir, "commit-tree", "-m", "x", tree))
	if _, _, err := get(t, s.smart+"/deep/.git", Query{Ref: "main"}, CheckoutOptions{}, Config{}); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("%v", err)
	}
}

func unhex(t *testing.T, s string) string {
	t.Helper()
	var n rawID
	for i := range len(s) / 2 {
		n[i] = unhexDigit(s[2*i])<<4 | unhexDigit(s[2*i+1])
	}
	return string(n[:len(s)/2])
}

func unhexDigit(c byte) byte {
	return byte(strings.IndexByte("0123456789abcdef", c))
}

// What a server says, up to the pack.
func FuzzProtocol(f *testing.F) {
	id := strings.Repeat("0", 40)
	list := packet(id+" HEAD\x00symref=HEAD:refs/heads/main side-band-64k shallow\n") + packet(id+" refs/heads/main\n") + flushPacket
	f.Add([]byte(list + packet("shallow "+id) + flushPacket + packet("NAK\n") + packet("\x02working") + packet("\x01PACK") + packet("\x03no") + flushPacket))
	f.Add([]byte(list + packet("ERR no\n")))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReader(bytes.NewReader(data))
		a, err := readAdvert(r)
		if err != nil {
			return
		}
		for ref, id := range a.refs {
			if len(id) != 40 && len(id) != 64 {
				t.Errorf("%q is %q", ref, id)
			}
		}
		var pack bytes.Buffer
		if err := a.readAnswer(context.Background(), r, &pack, a.caps["shallow"]); err == nil && pack.Len() > len(data) {
			t.Error("more came out than went in")
		}
	})
}

// Objects that are read into memory, and the files that say something about others.
func FuzzObjects(f *testing.F) {
	f.Add(byte(treeKind), []byte("100644 f\x00"+strings.Repeat("i", 20)+"40000 d\x00"+strings.Repeat("j", 20)))
	f.Add(byte(commitKind), []byte("tree "+strings.Repeat("0", 40)+"\ncommitter a <b> 1700000000 +0100\n\nx"))
	f.Add(byte(tagKind), []byte("object "+strings.Repeat("0", 40)+"\ntype commit\n\nx"))
	f.Add(byte(blobKind), []byte("[submodule \"a\"]\n\tpath = \"b\\tc\" ; x\n\turl = ../c\n"))
	f.Fuzz(func(t *testing.T, k byte, data []byte) {
		p := &packOf{}
		p.add(kind(k&3+1), len(data), nil, data)
		got, err := p.open(t, "")
		if err != nil {
			t.Fatal(err)
		}
		o := &objects{hexLen: 40, packs: []*pack{got}}
		id := hex.EncodeToString(got.objs[0].id[:20])
		if entries, err := o.tree(context.Background(), id); err == nil {
			for _, e := range entries {
				if e.name == "" || e.name == "." || e.name == ".." || strings.ContainsAny(e.name, "/\x00") {
					t.Errorf("an entry is called %q", e.name)
				}
			}
		}
		if c, err := o.peel(context.Background(), id); err == nil && len(c.tree) != 40 {
			t.Errorf("%+v", c)
		}
		for path, m := range parseModules(string(data)) {
			if r, err := Open("https://host/a/b.git", Config{}); err != nil {
				t.Fatal(err)
			} else if raw, err := r.relative(m.url); err == nil && strings.HasPrefix(m.url, ".") && !strings.HasPrefix(raw, "https://host/") {
				t.Errorf("%q: %q becomes %q", path, m.url, raw)
			}
		}
	})
}
