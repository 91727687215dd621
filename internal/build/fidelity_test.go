package build

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// lister is what a step prints about the tree below a directory, by names in hex, as names are any bytes.
const lister = `find /t | wc -l > /dev/null; find /t -print0 | xargs -0 -n 1 sh -c '
n=$(printf %s "$1" | xxd -p | tr -d "\n")
c=-; [ -f "$1" ] && [ ! -L "$1" ] && [ $(stat -c %s "$1") -lt 100000000 ] && c=$(sha256sum < "$1" | cut -d" " -f1)
l=-; [ -L "$1" ] && l=$(readlink "$1" | xxd -p | tr -d "\n")
echo "@$n $(stat -c "%f %u %g %s %h %i %t:%T %Y" "$1") $c $l"' sh`

// seen is one file as a step saw it, or as a layer says it is. Times and sizes of directories are left out.
type seen struct {
	mode     uint32 // st_mode
	uid, gid int
	size     int64
	mtime    int64
	dev      string
	sum      string
	link     string
	group    string // the first name of all that are hard links of each other
}

// parseListing reads what the lister printed.
func parseListing(t *testing.T, text string) map[string]seen {
	t.Helper()
	out, inode := map[string]seen{}, map[string]string{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 11 || !strings.HasPrefix(line, "@") {
			t.Fatalf("the step printed %q", line)
		}
		name, err := hex.DecodeString(f[0][1:])
		must(t, err)
		mode, err := strconv.ParseUint(f[1], 16, 32)
		must(t, err)
		num := func(s string) int64 {
			n, err := strconv.ParseInt(s, 10, 64)
			must(t, err)
			return n
		}
		s := seen{mode: uint32(mode), uid: int(num(f[2])), gid: int(num(f[3])), size: num(f[4]), mtime: num(f[8])}
		switch s.mode & unix.S_IFMT {
		case unix.S_IFREG:
			s.sum = f[9]
		case unix.S_IFLNK:
			link, err := hex.DecodeString(f[10])
			must(t, err)
			s.link, s.size = strings.TrimSuffix(string(link), "\n"), 0
		case unix.S_IFDIR:
			s.size, s.mtime = 0, 0
		default:
			s.dev, s.size = f[7], 0
		}
		p := strings.TrimPrefix(string(name), "/")
		out[p] = s
		if f[5] != "1" && s.mode&unix.S_IFMT != unix.S_IFDIR {
			inode[p] = f[6]
		}
	}
	setGroups(out, inode)
	return out
}

// applied is what the layers of an archive make of the tree below t/: an unpacking of its own, straight from the spec.
func (a *archive) applied(t *testing.T) (tree map[string]seen, xattrs map[string]map[string]string) {
	t.Helper()
	tree, xattrs = map[string]seen{}, map[string]map[string]string{}
	links, group := map[string]int{}, 0 // names of one inode have one number
	drop := func(p string, self bool) {
		for q := range tree {
			if self && q == p || strings.HasPrefix(q, p+"/") {
				delete(tree, q)
				delete(xattrs, q)
				delete(links, q)
			}
		}
	}
	for i := range a.manifest.Layers {
		r, done := a.layer(t, i)
		var add []*tar.Header
		sums := map[*tar.Header]string{}
		tr := tar.NewReader(r)
		for { // whiteouts first: they are about the layers below
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			must(t, err)
			h.Name = strings.TrimSuffix(h.Name, "/")
			dir, base := path.Split(h.Name)
			if base == ".wh..wh..opq" {
				drop(strings.TrimSuffix(dir, "/"), false)
			} else if removed, ok := strings.CutPrefix(base, ".wh."); ok {
				drop(dir+removed, true)
			} else if h.Name == "t" || strings.HasPrefix(h.Name, "t/") {
				if h.Typeflag == tar.TypeReg {
					s := sha256.New()
					_, err := io.Copy(s, tr)
					must(t, err)
					sums[h] = hex.EncodeToString(s.Sum(nil))
				}
				add = append(add, h)
			}
		}
		done()
		for _, h := range add {
			if old, ok := tree[h.Name]; ok && (h.Typeflag != tar.TypeDir || old.mode&unix.S_IFMT != unix.S_IFDIR) {
				drop(h.Name, true)
			}
			if h.Typeflag == tar.TypeLink {
				tree[h.Name] = tree[h.Linkname]
				xattrs[h.Name] = xattrs[h.Linkname]
				if links[h.Linkname] == 0 {
					group++
					links[h.Linkname] = group
				}
				links[h.Name] = links[h.Linkname]
				continue
			}
			tree[h.Name] = headerSeen(t, h, sums[h])
			x := map[string]string{}
			for k, v := range h.PAXRecords {
				if n, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
					x[n] = v
				}
			}
			xattrs[h.Name] = x
		}
	}
	setGroups(tree, links)
	return tree, xattrs
}

// setGroups gives all names of an inode the first of them. An inode of which one name is left in the tree has no group.
func setGroups[K comparable](tree map[string]seen, inode map[string]K) {
	names := map[K][]string{}
	for p, i := range inode {
		names[i] = append(names[i], p)
	}
	for _, g := range names {
		slices.Sort(g)
		for _, p := range g {
			if s := tree[p]; len(g) > 1 {
				s.group = g[0]
				tree[p] = s
			}
		}
	}
}

func headerSeen(t *testing.T, h *tar.Header, sum string) seen {
	t.Helper()
	s := seen{mode: uint32(h.Mode) & 0o7777, uid: h.Uid, gid: h.Gid, size: h.Size, mtime: h.ModTime.Unix(), link: h.Linkname, sum: sum}
	switch h.Typeflag {
	case tar.TypeReg:
		s.mode |= unix.S_IFREG
		if h.Size >= 100000000 {
			s.sum = "-"
		}
	case tar.TypeDir:
		s.mode, s.mtime = s.mode|unix.S_IFDIR, 0
	case tar.TypeSymlink:
		s.mode |= unix.S_IFLNK
	case tar.TypeFifo:
		s.mode, s.dev = s.mode|unix.S_IFIFO, "0:0"
	case tar.TypeChar:
		s.mode, s.dev = s.mode|unix.S_IFCHR, fmt.Sprintf("%x:%x", h.Devmajor, h.Devminor)
	default:
		t.Fatalf("%q has type %c", h.Name, h.Typeflag)
	}
	return s
}

// fidelityScript makes everything a tree can hold below /t, on top of what the layers below put there.
const fidelityScript = `set -e
cd /t
mkdir -p plain/a/b; echo x > plain/a/b/c; chmod 0 plain/a/b/c; chmod 1777 plain/a; touch -d @1 plain/a/b/c
ln plain/a/b/c plain/hard1; ln plain/a/b/c plain/a/hard2; ln old/linked old/linked3
ln -s ../../../etc/passwd plain/up; ln -s /abs plain/abs; ln -s "" plain/empty 2>/dev/null || true; ln -s 'sp ace' "plain/l k"
mkfifo -m 640 fifo; chown 12:34 fifo
cp /bin/busybox setuid; chown 7:8 setuid; chmod 6755 setuid
mkdir setgid; chmod 2750 setgid; chown 0:99 setgid
chown -h 65534:65534 plain/up
truncate -s 10000000 sparse; printf end >> sparse; printf mid | dd of=sparse bs=1 seek=5000000 conv=notrunc 2>/dev/null
printf '' > "$(printf 'bytes-\377\376\001\t\\ "quo'"'"'te')"; printf n > "$(printf 'new\nline')"; printf u > 'ünï☃'; : > ' lead'; : > '-dash'; : > .wh
mkdir "$(printf 'dir\377')"; echo d > "$(printf 'dir\377')/f"
: > "$(printf '%0250d' 7)"; d=deep; for i in 1 2 3 4 5 6 7 8 9; do d=$d/$(printf '%040d' $i); done; mkdir -p $d; echo deep > $d/f
rm old/gone; rm -r old/dirgone; rm -r old/opaque; mkdir old/opaque; echo new > old/opaque/new
rm -r old/dir2file; echo file > old/dir2file; rm old/file2dir; mkdir old/file2dir; echo in > old/file2dir/in
rm old/file2link; ln -s dir2file old/file2link; rm -r old/dir2link; ln -s opaque old/dir2link
rm old/again; rm -r old/againdir; mkdir old/againdir; echo same > old/againdir/same
mv old/move plain/moved; mv old/movedir plain/movedir
chmod 700 old/chmod; chown 5:6 old/chown; touch -d @100 old/touch; echo more >> old/append; touch -d @4102444800 old/future
touch -d '1960-01-02 03:04:05' old/past
chmod 711 old/xattr; mv old/xattr2 old/renamed; ln old/xattr3 old/xattr3b
rm -f /t/old/none; touch made; rm made; mkdir -p made/x; rm -r made
`

// What a RUN leaves is in its layer exactly as the step saw it, and the next step sees it so, too.
func TestRunFidelity(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	for _, f := range []string{"gone", "dirgone/a/b", "opaque/old", "opaque/sub/x", "dir2file/a/b", "file2dir", "file2link", "dir2link/a", "again", "againdir/same",
		"againdir/other", "move", "movedir/a/b", "movedir/c", "chmod", "chown", "touch", "append", "future", "past", "xattr", "xattr2", "xattr3", "untouched", "linked"} {
		w.write("old/"+f, f)
	}
	must(t, os.Link(w.dir+"/old/linked", w.dir+"/old/linked2"))
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw=ep
	want := map[string]map[string]string{}
	for _, f := range []string{"xattr", "xattr2", "xattr3"} {
		p := w.dir + "/old/" + f
		x := map[string]string{"user.plain": "value", "user.bytes": "\x00\xff\n=", "user.overlayish": "1"}
		if os.Geteuid() == 0 {
			x["security.capability"] = capability
		}
		for k, v := range x {
			if err := unix.Lsetxattr(p, k, []byte(v), 0); errors.Is(err, syscall.ENOTSUP) {
				testenv.Skip(t, "extended attributes in "+w.dir)
			} else if err != nil {
				t.Fatal(err)
			}
		}
		want[f] = x
	}
	w.write("script", fidelityScript, "lister", lister+"\n")
	dest := w.tmp + "/out.tar"
	df := from(`
		FROM base
		COPY old /t/old
		COPY script lister /
		RUN sh -e /script && . /lister
		RUN . /lister # again
	`)
	_, rec := w.ok(df, ociTo(dest))
	inside := parseListing(t, rec.log("/script"))
	after := parseListing(t, rec.log("# again"))
	if len(inside) < 60 {
		t.Fatalf("the step saw only %d files", len(inside))
	}
	layers, xattrs := readArchive(t, dest).applied(t)
	if os.Geteuid() != 0 {
		// While the overlay is mounted in a user namespace, the kernel gives names that were linked to a file of a lower
		// layer another inode number than the file itself has. Their link count is right, and afterwards the number, too.
		for _, p := range []string{"t/old/xattr3", "t/old/xattr3b", "t/old/linked", "t/old/linked3"} {
			s := inside[p]
			s.group = after[p].group
			inside[p] = s
		}
	}
	compareTrees(t, "the layers and what the step saw", layers, inside)
	compareTrees(t, "what the next step saw and what the layers hold", after, layers)
	for _, p := range []string{"t/old/xattr3b", "t/old/linked3", "t/plain/hard1"} {
		if layers[p].group == "" {
			t.Errorf("%s is no hard link any more", p)
		}
	}
	for name, from := range map[string]string{"t/old/xattr": "xattr", "t/old/renamed": "xattr2", "t/old/xattr3": "xattr3", "t/old/xattr3b": "xattr3"} {
		if !maps.Equal(xattrs[name], want[from]) {
			t.Errorf("%s has %q, want %q", name, xattrs[name], want[from])
		}
	}
	if len(xattrs["t/old/untouched"]) > 0 || len(xattrs["t/old/opaque"]) > 0 {
		t.Errorf("attributes of our own in a layer: %q, %q", xattrs["t/old/untouched"], xattrs["t/old/opaque"])
	}
}

func compareTrees(t *testing.T, what string, got, want map[string]seen) {
	t.Helper()
	for p, s := range want {
		if g, ok := got[p]; !ok {
			t.Errorf("%s: %q is missing", what, p)
		} else if g != s {
			t.Errorf("%s: %q\n got %+v\nwant %+v", what, p, g, s)
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%s: %q is too much", what, p)
		}
	}
}

// A file of 4 GB and one byte, nearly all of it a hole, comes through a layer: its size and the bytes at its ends.
func TestHugeSparseFile(t *testing.T) {
	needIDs(t)
	if testing.Short() {
		t.Skip("writes 4 GB of zeros")
	}
	w := newParallel(t)
	j := w.job(`FROM base
RUN truncate -s 4294967296 /huge && printf x >> /huge
RUN stat -c 'size %s' /huge && tail -c 3 /huge | xxd -p
`)
	j.Plain, j.None = w.tmp+"/log", true
	r := w.start(j).result(t)
	if r.Code != 0 {
		t.Fatal(r.Text)
	}
	b, err := os.ReadFile(j.Plain)
	must(t, err)
	for _, word := range []string{"size 4294967297\n", "000078\n"} {
		if !bytes.Contains(b, []byte(word)) {
			t.Errorf("%q is missing in: %s", word, b)
		}
	}
	if limit := 256 << 10; r.HWM > limit {
		t.Errorf("the build needed %d KiB", r.HWM)
	}
	// The layer itself.
	const size = 4294967297
	blobs, err := os.ReadDir(w.root + "/blobs/sha256")
	must(t, err)
	for _, e := range blobs {
		if fi, err := e.Info(); err != nil || fi.Size() < size {
			continue
		}
		f, err := os.Open(w.root + "/blobs/sha256/" + e.Name())
		must(t, err)
		defer f.Close()
		h, err := tar.NewReader(f).Next()
		must(t, err)
		at, err := f.Seek(0, io.SeekCurrent)
		must(t, err)
		var ends [2]byte
		_, err = f.ReadAt(ends[:1], at)
		must(t, err)
		_, err = f.ReadAt(ends[1:], at+size-1)
		must(t, err)
		if h.Name != "huge" || h.Size != size || ends != [2]byte{0, 'x'} {
			t.Errorf("the layer has %s of %d bytes, %q at its ends", h.Name, h.Size, ends)
		}
		// A check would read all of it once more.
		must(t, os.Remove(f.Name()))
		return
	}
	t.Error("no blob is large enough")
}

// Level 0 is gzip that only stores, and zstd's fastest; where nothing is compressed, levels mean nothing.
func TestCompressionLevels(t *testing.T) {
	w := newWorld(t)
	w.write("f", strings.Repeat("compressible ", 10000))
	size := func(kind string, level int) int64 {
		t.Helper()
		dest := w.tmp + "/out.tar"
		w.ok(from("FROM scratch\nCOPY f /\n"), output(Output{
			Type: OutputOCI, Dest: dest, Tar: true, OCIMediaTypes: true, Compression: kind, CompressionLevel: &level, ForceCompression: true,
		}))
		fi, err := os.Stat(dest)
		must(t, err)
		return fi.Size()
	}
	if stored, small := size("gzip", 0), size("gzip", 1); stored < 130000 || small > 65000 {
		t.Errorf("gzip: %d bytes at level 0, %d at level 1", stored, small)
	}
	if a, b := size("zstd", 0), size("zstd", 1); a != b {
		t.Errorf("zstd: %d bytes at level 0, %d at level 1", a, b)
	}
	if n := size("uncompressed", 5); n < 130000 {
		t.Errorf("uncompressed: %d bytes", n)
	}
}
