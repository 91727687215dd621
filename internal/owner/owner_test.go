package owner

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRecordOfFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	if _, ok, err := Get(fd); ok || err != nil {
		t.Fatalf("a new file has a record: %v, %v", ok, err)
	}
	for _, want := range []Record{
		{UID: 33, GID: 4000000000},
		{UID: 0, GID: 6, Type: unix.S_IFBLK, Rdev: unix.Mkdev(259, 7)},
		{Type: unix.S_IFCHR, Rdev: unix.Mkdev(1, 3)},
	} {
		if err := Set(fd, want); err != nil {
			t.Fatal(err)
		}
		if got, ok, err := Get(fd); got != want || !ok || err != nil {
			t.Errorf("got %v, %v, %v; want %v", got, ok, err, want)
		}
	}
	if err := Clear(fd); err != nil {
		t.Fatal(err)
	}
	if err := Clear(fd); err != nil {
		t.Errorf("clear twice: %v", err)
	}
	if _, ok, _ := Get(fd); ok {
		t.Error("the record is still there")
	}
}

func TestForeignAttributeIsNoRecord(t *testing.T) {
	for _, s := range []string{"", "0", "a b", "1 2 3", "1 2 c 3", "1 2 x 3 4", "-1 0", "4294967296 0", "1 2 c 3 4 5"} {
		if r, ok := parse(s); ok {
			t.Errorf("%q is read as %v", s, r)
		}
	}
}

func TestTableOfNodes(t *testing.T) {
	var a, b Nodes
	n, r := Node{Ino: 1 << 40, Born: -5}, Record{UID: 1000, GID: 7}
	a.Set(n, r)
	var buf bytes.Buffer
	if err := WriteNode(&buf, n, r); err != nil {
		t.Fatal(err)
	}
	if err := b.Read(&buf); err != nil {
		t.Fatal(err)
	}
	if got, ok := b.Get(n); got != r || !ok {
		t.Errorf("got %v, %v", got, ok)
	}
	if _, ok := b.Get(Node{Ino: n.Ino}); ok {
		t.Error("an inode made at another time is the same")
	}
	if err := b.Read(bytes.NewReader([]byte("1 2\n"))); err == nil {
		t.Error("half a line is accepted")
	}
}
