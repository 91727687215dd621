// Package tree holds the index of a layer: every entry of its tar with all that is known about it, in a file fit for
// point lookups and range scans, and the view of a whole chain of such layers as one file system.
//
// It owns the order of paths, the format of index files, the rules by which one layer covers another (whiteouts, opaque
// directories, changes of type, implied parents) and the canonical form in which an entry is hashed. It refuses to
// know where indexes are kept, how tars are read, and anything about Dockerfiles: it is a leaf.
package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strings"
	"time"
)

// Type says what an entry is.
type Type uint8

// The types of entries. The numbers are written into index files and hashes.
const (
	File Type = iota
	Dir
	Symlink
	Char
	Block
	Fifo
	// Whiteout removes its path, and what is below it, from the layers underneath.
	Whiteout

	lastType = Whiteout
)

// String names t as a message would.
func (t Type) String() string {
	switch t {
	case File:
		return "file"
	case Dir:
		return "directory"
	case Symlink:
		return "symlink"
	case Char:
		return "character device"
	case Block:
		return "block device"
	case Fifo:
		return "fifo"
	case Whiteout:
		return "whiteout"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Xattr is one extended attribute.
type Xattr struct{ Name, Value string }

// Entry is one path of a layer.
type Entry struct {
	// Path is slash-separated, clean and relative; "" is the root directory. Names are any bytes but / and NUL.
	Path string
	Type Type
	// Mode holds the permission, setuid, setgid and sticky bits (07777).
	Mode     uint32
	UID, GID uint32
	// Size is that of a regular file's content (repeated on hard links); 0 for everything else.
	Size    int64
	ModTime time.Time
	// Link is the target of a symlink, verbatim.
	Link string
	// Hardlink is the path, in the same layer, of the first name (in path order) of this file; "" for the first name itself.
	Hardlink     string
	Major, Minor uint32
	// Xattrs are sorted by name.
	Xattrs []Xattr
	// Digest is the SHA-256 of a regular file's content (repeated on hard links).
	Digest [32]byte
	// Offset is where a regular file's content starts in the plain tar (for a hard link: that of the first name); -1 when it has none.
	Offset int64
	// Implied marks a directory that has no entry of its own in the tar: its metadata is that of the layers below.
	Implied bool
	// Opaque marks a directory that hides what the layers below have in it.
	Opaque bool
}

// MaxPath bounds the length of a path: the kernel refuses longer ones (PATH_MAX), and so does every other tool.
const MaxPath = 4096

// maxName bounds one component, as every Linux file system does.
const maxName = 255

// ErrPath is wrapped by errors about paths that no entry can have.
var ErrPath = errors.New("invalid path")

// CheckPath reports what keeps path from being an entry's.
func CheckPath(path string) error {
	if path == "" {
		return nil
	}
	if len(path) > MaxPath {
		return fmt.Errorf("%w: %.80q… is %d bytes long", ErrPath, path, len(path))
	}
	for rest := path; ; {
		name, after, more := strings.Cut(rest, "/")
		switch {
		case name == "" || name == "." || name == "..":
			return fmt.Errorf("%w: %q is not clean and relative", ErrPath, path)
		case len(name) > maxName:
			return fmt.Errorf("%w: a name of %q is %d bytes long", ErrPath, path, len(name))
		case strings.IndexByte(name, 0) >= 0:
			return fmt.Errorf("%w: %q holds a NUL", ErrPath, path)
		}
		if !more {
			return nil
		}
		rest = after
	}
}

// Compare orders paths as a depth-first walk with names sorted by their bytes meets them: a directory directly before
// what is below it, and every subtree in one piece ("a", "a/c", "a-b").
func Compare(a, b string) int { return comparePaths(a, b) }

// comparePaths is Compare, also for paths that are not strings yet.
func comparePaths[A, B string | []byte](a A, b B) int {
	n := min(len(a), len(b))
	for i := 0; i < n; i++ {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}

// Below reports whether path lies strictly below the directory dir.
func Below(path, dir string) bool {
	if dir == "" {
		return path != ""
	}
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// Parent returns the directory path is in; the root's parent is the root.
func Parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return ""
}

// Base returns the last component of path.
func Base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// Join puts name below dir.
func Join(dir, name string) string {
	switch {
	case dir == "":
		return name
	case name == "":
		return dir
	}
	return dir + "/" + name
}

// HashEntry adds e, under the given name, to h: what AppendHash says of it.
func HashEntry(h hash.Hash, name string, e *Entry) {
	_, _ = h.Write(AppendHash(make([]byte, 0, 256), name, e)) // a hash never fails
}

// AppendHash appends the form of e, under the given name, in which it is hashed: everything of it that a program can see except
// times, length-prefixed so that no two entries are written alike. Hard links are hashed as the files they are.
func AppendHash(b []byte, name string, e *Entry) []byte {
	b = appendString(b, name)
	b = append(b, byte(e.Type))
	if e.Type == Whiteout {
		return b
	}
	mode := e.Mode & 07777
	if e.Type == Symlink {
		mode = 0 // Linux has no modes of symlinks; what tars say about them is noise
	}
	b = binary.AppendUvarint(b, uint64(mode))
	b = binary.AppendUvarint(b, uint64(e.UID))
	b = binary.AppendUvarint(b, uint64(e.GID))
	b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		b = appendString(b, x.Name)
		b = appendString(b, x.Value)
	}
	switch e.Type {
	case File:
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = append(b, e.Digest[:]...)
	case Symlink:
		b = appendString(b, e.Link)
	case Char, Block:
		b = binary.AppendUvarint(b, uint64(e.Major))
		b = binary.AppendUvarint(b, uint64(e.Minor))
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}
