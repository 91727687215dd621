package buildctx

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// archive makes a tar. Entries without a type are files, or directories when their name ends in /.
func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		content := ""
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(h.Name, "/") {
				h.Typeflag = tar.TypeDir
			} else {
				content = "content of " + h.Name
				h.Size = int64(len(content))
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func compressWith(t *testing.T, data []byte, make func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := make(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// bzippedTar is a tar with one file, "f", that holds "x\n". Go has no bzip2 writer.
const bzippedTar = "QlpoOTFBWSZTWbDWiKgAAG3bgMmQQAB3AAAA4QAeQAgIIABURqNAAaDQJIpoYj1GI0fWmOhBvIEI5a8TI4psgQwZcjQTsIs4LJolWmTx2XFVfRABF8XckU4UJCw1oioA"

func TestStdinFormats(t *testing.T) {
	plain := archive(t, tar.Header{Name: "./"}, tar.Header{Name: "./Dockerfile"}, tar.Header{Name: "./d/f"})
	formats := map[string][]byte{
		"plain": plain,
		"gzip":  compressWith(t, plain, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"xz":    compressWith(t, plain, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
		"zstd":  compressWith(t, plain, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
	}
	for name, data := range formats {
		in, err := OpenStdin(context.Background(), fewBytes{bytes.NewReader(data)}, t.TempDir())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if in.Dockerfile != nil {
			t.Fatalf("%s is taken for a Dockerfile", name)
		}
		d, err := in.Open(DirOptions{NoIgnore: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := walkPaths(t, d, ""); !slices.Equal(got, []string{"", "Dockerfile", "d", "d/f"}) {
			t.Errorf("%s: %q", name, got)
		}
		df, err := FindDockerfileIn(in.Dir, "")
		if err != nil || string(df.Data) != "content of ./Dockerfile" {
			t.Errorf("%s: %+v, %v", name, df, err)
		}
		d.Close()
		if _, err := OpenTar(context.Background(), bytes.NewReader(data[:len(data)/2]), t.TempDir()); err == nil && name != "plain" {
			t.Errorf("%s: half an archive is accepted", name)
		}
	}
}

// fewBytes gives few bytes at a time, as pipes do.
type fewBytes struct{ r io.Reader }

func (o fewBytes) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 7)]) }

func TestStdinBzip2(t *testing.T) {
	data, err := base64.StdEncoding.DecodeString(bzippedTar)
	if err != nil {
		t.Fatal(err)
	}
	in, err := OpenStdin(context.Background(), bytes.NewReader(data), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(in.Dir, "f")); string(b) != "x\n" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestStdinDockerfile(t *testing.T) {
	for _, text := range []string{"FROM scratch\n", "", "# " + strings.Repeat("x", 1000) + "\nFROM scratch\n", "\n\n"} {
		tmp := t.TempDir()
		in, err := OpenStdin(context.Background(), strings.NewReader(text), tmp)
		if err != nil || in.Dockerfile == nil || string(in.Dockerfile) != text {
			t.Errorf("%.20q: %+v, %v", text, in, err)
			continue
		}
		d, err := in.Open(DirOptions{NoIgnore: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := walkPaths(t, d, ""); !slices.Equal(got, []string{""}) {
			t.Errorf("the context of a Dockerfile on standard input holds %q", got)
		}
		d.Close()
	}
	if _, err := OpenStdin(context.Background(), io.LimitReader(endless('#'), maxControlFile+5), t.TempDir()); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("an endless Dockerfile: %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("enough")
	cancel(cause)
	if _, err := OpenTar(ctx, bytes.NewReader(archive(t, tar.Header{Name: "f"})), t.TempDir()); !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
}

type endless byte

func (z endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(z)
	}
	return len(p), nil
}

func TestTarKeepsWhatItSays(t *testing.T) {
	when := time.Unix(1234567890, 0)
	data := archive(t,
		tar.Header{Name: "d/", Mode: 0o700, Uid: 5, Gid: 6, ModTime: when},
		tar.Header{Name: "d/f", Mode: 0o4755, Uid: 1000, Gid: 100, ModTime: when, PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v", "SCHILY.xattr.trusted.t": "x"}},
		tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "d/f"},
		tar.Header{Name: "sym", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Uid: 7},
		tar.Header{Name: "pipe", Typeflag: tar.TypeFifo},
		tar.Header{Name: "implied/x"},
		tar.Header{Name: "twice"}, tar.Header{Name: "twice", Mode: 0o600},
		tar.Header{Name: "was/dir/x"}, tar.Header{Name: "was"},
		tar.Header{Name: "now"}, tar.Header{Name: "now/"}, tar.Header{Name: "now/x"},
	)
	in, err := OpenTar(context.Background(), bytes.NewReader(data), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d, err := in.Open(DirOptions{NoIgnore: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var got []string
	for e, err := range d.Walk("") {
		if err != nil {
			t.Fatal(err)
		}
		if e.Path != "" {
			got = append(got, fmt.Sprintf("%s %s %o %d:%d %s%s%v", e.Path, e.Type, e.Mode, e.UID, e.GID, e.Link, e.Hardlink, e.Xattrs))
		}
	}
	want := []string{
		"d directory 700 5:6 []", "d/f file 4755 1000:100 [{user.k v}]", "hard file 4755 1000:100 d/f[{user.k v}]",
		"implied directory 755 0:0 []", "implied/x file 644 0:0 []", "now directory 644 0:0 []", "now/x file 644 0:0 []",
		"null character device 644 7:0 []", "pipe fifo 644 0:0 []", "sym symlink 644 0:0 /etc/passwd[]", "twice file 600 0:0 []", "was file 644 0:0 []",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if e, _, _ := d.Lstat("null"); e.Major != 1 || e.Minor != 3 || e.Size != 0 {
		t.Errorf("device: %+v", e)
	}
	if e, _, _ := d.Lstat("d/f"); !e.ModTime.Equal(when) {
		t.Errorf("time: %v", e.ModTime)
	}
	if e, ok, _ := d.Lstat("hard"); ok {
		if r, err := d.Open(context.Background(), &e); err != nil {
			t.Error(err)
		} else if b, err := io.ReadAll(r); string(b) != "content of d/f" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}
}

func TestTarCutShort(t *testing.T) {
	whole := archive(t, tar.Header{Name: "a"}, tar.Header{Name: "b"})
	for _, n := range []int{100, 512 + 5, 1024 + 100, 1536 + 5} { // within headers and within contents
		if _, err := OpenTar(context.Background(), bytes.NewReader(whole[:n]), t.TempDir()); err == nil {
			t.Errorf("an archive cut at %d is accepted", n)
		}
	}
}

func TestHolesStayHoles(t *testing.T) {
	const size = 64 << 20
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: size + 3, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, io.MultiReader(io.LimitReader(endless(0), size), strings.NewReader("end"))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	in, err := OpenTar(context.Background(), &buf, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(in.Dir, "f"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != size+3 || st.Blocks*512 > size/2 {
		t.Errorf("size %d, %d bytes on disk", st.Size, st.Blocks*512)
	}
}

func TestHostileTars(t *testing.T) {
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("alive"), 0o644); err != nil {
		t.Fatal(err)
	}
	sym := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
	}
	for name, entries := range map[string][]tar.Header{
		"dot dot":                 {{Name: "../escaped"}},
		"dot dot inside":          {{Name: "a/../../escaped"}},
		"through a symlink":       {sym("d", outside), {Name: "d/escaped"}},
		"through relative links":  {sym("a", ".."), {Name: "a/escaped"}},
		"over a symlink":          {sym("f", canary), {Name: "f"}},
		"directory over symlink":  {sym("d", outside), {Name: "d/"}, {Name: "d/escaped"}},
		"hard link outside":       {hard("h", canary)},
		"hard link dot dot":       {hard("h", "../../etc/passwd")},
		"hard link via symlink":   {sym("s", canary), hard("h", "s"), {Name: "h"}},
		"hard link to itself":     {{Name: "f"}, hard("f", "f")},
		"hard link to directory":  {{Name: "d/"}, hard("h", "d")},
		"hard link before target": {hard("h", "later"), {Name: "later"}},
		"absolute":                {{Name: canary}},
		"root as a symlink":       {sym("./", outside), {Name: "escaped"}},
		"long name":               {{Name: strings.Repeat("x", 300)}},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			tmp := filepath.Join(parent, "tmp")
			if err := os.Mkdir(tmp, 0o700); err != nil {
				t.Fatal(err)
			}
			in, err := OpenTar(context.Background(), bytes.NewReader(archive(t, entries...)), tmp)
			if err == nil {
				d, err := in.Open(DirOptions{NoIgnore: true})
				if err != nil {
					t.Fatal(err)
				}
				for e, err := range d.Walk("") {
					if err != nil {
						t.Fatal(err)
					}
					if e.Type == tree.File {
						r, err := d.Open(context.Background(), &e)
						if err != nil {
							t.Fatal(err)
						}
						if b, _ := io.ReadAll(r); string(b) == "alive" {
							t.Errorf("%s reads a file from outside", e.Path)
						}
						r.Close()
					}
				}
				d.Close()
			}
			if b, err := os.ReadFile(canary); string(b) != "alive" || err != nil {
				t.Errorf("the canary: %q, %v", b, err)
			}
			for _, dir := range []string{outside, parent} {
				if left, _ := os.ReadDir(dir); len(left) != 1 {
					t.Errorf("something was written into %s: %v", dir, left)
				}
			}
		})
	}
}

func FuzzOpenTar(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "d/f"}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "l/x"}))
	f.Add(archive(f, tar.Header{Name: "a"}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		tmp := filepath.Join(parent, "tmp")
		if err := os.Mkdir(tmp, 0o700); err != nil {
			t.Fatal(err)
		}
		if in, err := OpenTar(context.Background(), bytes.NewReader(data), tmp); err == nil {
			d, err := in.Open(DirOptions{NoIgnore: true})
			if err != nil {
				t.Fatal(err)
			}
			walkPaths(t, d, "")
			d.Close()
		}
		if left, _ := os.ReadDir(parent); len(left) != 1 {
			t.Fatalf("something was written beside the directory: %v", left)
		}
	})
}
