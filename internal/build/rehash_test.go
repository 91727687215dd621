package build

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"build/internal/store"
)

// large is content that no compressor makes smaller, large enough for the store to remember that it was hashed.
func large() string {
	var b strings.Builder
	_, _ = io.CopyN(&b, rand.NewChaCha8([32]byte{1}), 3<<20)
	return b.String()
}

func ociDirTo(dest string) func(*Options) {
	return output(Output{Type: OutputOCI, OCIMediaTypes: true, Dest: dest})
}

// damageLarge changes one byte in the middle of every large file below dir and gives it its old time and mode.
func damageLarge(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(dir + "/blobs/sha256/*")
	must(t, err)
	n := 0
	for _, path := range files {
		fi, err := os.Stat(path)
		must(t, err)
		if fi.Size() < 1<<20 {
			continue
		}
		n++
		b, err := os.ReadFile(path)
		must(t, err)
		b[len(b)/2] ^= 1
		must(t, os.Chmod(path, 0o600))
		must(t, os.WriteFile(path, b, 0o600))
		must(t, os.Chtimes(path, time.Time{}, fi.ModTime()))
		must(t, os.Chmod(path, fi.Mode()))
	}
	if n == 0 {
		t.Fatalf("no large blob in %s", dir)
	}
}

// A blob that was hashed once is not hashed again, and is not believed any more when somebody changes it, in the store or in a
// directory that it was exported to: nothing damaged leaves.
func TestDamageToWhatWasHashed(t *testing.T) {
	w := newWorld(t)
	w.damaged = true
	w.write("f", large())
	df, dir, file := from("FROM base\nCOPY f /f\n"), w.tmp+"/layout", w.tmp+"/out.tar"
	all := []mod{df, tags("app:1"), epoch(1700000000), ociDirTo(dir), ociTo(file)}
	first, _ := w.ok(all...)
	good, err := os.ReadFile(file)
	must(t, err)
	for name, harm := range map[string]string{"store": w.root, "layout": dir} {
		damageLarge(t, harm)
		if again, _ := w.ok(all...); again.Digest != first.Digest {
			t.Errorf("%s: %s, before %s", name, again.Digest, first.Digest)
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, good) {
			t.Errorf("%s: another archive, %v", name, err)
		}
		for _, root := range []string{w.root, dir} {
			soundBlobs(t, root+"/blobs/sha256")
		}
	}
	damageLarge(t, w.root)
	var out bytes.Buffer
	stream := func(o *Options) {
		o.Outputs = []Output{{Type: OutputOCI, Tar: true, OCIMediaTypes: true, Dest: "-", Stdout: &out}}
	}
	if _, _, err := w.build(df, epoch(1700000000), stream); err == nil || !strings.Contains(err.Error(), "build again") {
		t.Fatalf("the build went on after damage: %v", err)
	}
}

// soundBlobs looks at the digest of every blob of a layout.
func soundBlobs(t *testing.T, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range files {
		b, err := os.ReadFile(dir + "/" + e.Name())
		must(t, err)
		if digest.FromBytes(b).Encoded() != e.Name() {
			t.Errorf("%s/%s holds something else", dir, e.Name())
		}
	}
}

// Wherever an archive goes, and by whichever way its bytes are copied there, they are the same. After the first export
// nothing has to be hashed.
func TestEveryWayOut(t *testing.T) {
	w := newWorld(t)
	w.write("f", large())
	df, dir, file := from("FROM scratch\nCOPY f /f\n"), w.tmp+"/layout", w.tmp+"/out.tar"
	w.ok(df, epoch(1700000000), tags("app:1"), ociTo(file), ociDirTo(dir))
	good, err := os.ReadFile(file)
	must(t, err)
	to := func(f *os.File) func(*Options) {
		return func(o *Options) {
			o.Outputs = []Output{{Type: OutputOCI, Tar: true, OCIMediaTypes: true, Dest: "-", Stdout: f}}
		}
	}
	appended, err := os.OpenFile(w.tmp+"/appended", os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	must(t, err)
	defer appended.Close()
	w.ok(df, epoch(1700000000), tags("app:1"), to(appended))
	if got, err := os.ReadFile(appended.Name()); err != nil || !bytes.Equal(got, good) {
		t.Errorf("appended: %d bytes that are not the %d of the archive, %v", len(got), len(good), err)
	}
	r, pipe, err := os.Pipe()
	must(t, err)
	read := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(r)
		read <- b
	}()
	w.ok(df, epoch(1700000000), tags("app:1"), to(pipe))
	pipe.Close()
	if got := <-read; !bytes.Equal(got, good) {
		t.Errorf("pipe: %d bytes that are not the %d of the archive", len(got), len(good))
	}
	shm, err := os.MkdirTemp("/dev/shm", "build-test-")
	if err != nil {
		t.Skipf("no second file system to export to: %v", err)
	}
	defer os.RemoveAll(shm)
	w.ok(df, epoch(1700000000), tags("app:1"), ociTo(shm+"/out.tar"), ociDirTo(shm+"/layout"))
	if got, err := os.ReadFile(shm + "/out.tar"); err != nil || !bytes.Equal(got, good) {
		t.Errorf("another file system: %d bytes that are not the %d of the archive, %v", len(got), len(good), err)
	}
	soundBlobs(t, shm+"/layout/blobs/sha256")

	st, err := store.Open(w.root, store.Options{})
	must(t, err)
	defer st.Close()
	for _, root := range []string{w.root, dir, shm + "/layout"} {
		files, err := filepath.Glob(root + "/blobs/sha256/*")
		must(t, err)
		for _, path := range files {
			f, err := os.Open(path)
			must(t, err)
			if fi, err := f.Stat(); err == nil && fi.Size() >= 1<<20 && !st.Holds(digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(path)), f) {
				t.Errorf("%s would be hashed again", path)
			}
			f.Close()
		}
	}
}
