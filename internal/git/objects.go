package git

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zlib"
)

// objects is what was fetched of a repository. It is used by one goroutine.
type objects struct {
	hexLen int
	dir    string // private directory for packs and loose objects
	packs  []*pack
	// miss gets an object that is not here, or what it is in; nil when there is nowhere to get it from.
	miss func(ctx context.Context, id string) error
}

var errNoObject = errors.New("object not found")

func (o *objects) close() {
	for _, p := range o.packs {
		_ = p.f.Close() // only read from
	}
	o.packs = nil
}

// addPack takes over a pack file.
func (o *objects) addPack(ctx context.Context, f *os.File) error {
	p, err := openPack(ctx, f, o.hexLen)
	if err != nil {
		_ = f.Close()
		return err
	}
	o.packs = append(o.packs, p)
	return nil
}

func (o *objects) loosePath(id string) string { return filepath.Join(o.dir, "loose-"+id) }

// open returns an object as a stream. Reading it to its end checks that it is what its name says.
func (o *objects) open(ctx context.Context, id string) (kind, int64, io.ReadCloser, error) {
	for {
		for _, p := range o.packs {
			if obj, ok := p.find(id); ok {
				return p.open(obj)
			}
		}
		if f, err := os.Open(o.loosePath(id)); err == nil {
			return openLoose(f, id)
		}
		if o.miss == nil {
			return 0, 0, nil, fmt.Errorf("%w: %s", errNoObject, id)
		}
		if err := o.miss(ctx, id); err != nil {
			return 0, 0, nil, err
		}
	}
}

func (o *objects) has(id string) bool {
	for _, p := range o.packs {
		if _, ok := p.find(id); ok {
			return true
		}
	}
	_, err := os.Lstat(o.loosePath(id))
	return err == nil
}

// read returns a small object of a given kind.
func (o *objects) read(ctx context.Context, id string, want kind) ([]byte, error) {
	k, data, err := o.readAny(ctx, id)
	if err == nil && k != want {
		return nil, fmt.Errorf("object %s is a %s, not a %s", id, k, want)
	}
	return data, err
}

const maxSmall = 64 << 20 // of a commit, a tag or one directory

func (o *objects) readAny(ctx context.Context, id string) (kind, []byte, error) {
	k, size, r, err := o.open(ctx, id)
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	if size > maxSmall {
		return 0, nil, fmt.Errorf("object %s is too large: %d bytes", id, size)
	}
	data, err := readWhole(r, id, size)
	return k, data, err
}

// readWhole reads an object to its end, where a loose one is checked.
func readWhole(r io.Reader, id string, size int64) ([]byte, error) {
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, fmt.Errorf("object %s: %w", id, err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("object %s is damaged: %v", id, err)
	}
	return data, nil
}

// looseReader checks a loose object while it is read.
type looseReader struct {
	f    *os.File
	z    io.ReadCloser
	r    io.Reader
	h    hash.Hash
	left int64
	id   string
}

func openLoose(f *os.File, id string) (kind, int64, io.ReadCloser, error) {
	z, err := zlib.NewReader(bufio.NewReader(f))
	if err != nil {
		_ = f.Close()
		return 0, 0, nil, fmt.Errorf("object %s is damaged: %w", id, err)
	}
	br := bufio.NewReader(z)
	head, err := looseHeader(br)
	name, length, _ := strings.Cut(head, " ")
	size, perr := strconv.ParseInt(length, 10, 64)
	k := kindOf(name)
	if err != nil || perr != nil || k == 0 || size < 0 {
		_ = f.Close()
		return 0, 0, nil, fmt.Errorf("object %s is damaged", id)
	}
	return k, size, &looseReader{f, z, br, objectHash(len(id), k, size), size, id}, nil
}

// looseHeader reads up to the first NUL byte: type and size.
func looseHeader(r io.ByteReader) (string, error) {
	var head []byte
	for len(head) < 32 { // the longest is that of a commit with a size of 19 digits
		b, err := r.ReadByte()
		if err != nil {
			return "", err
		}
		if b == 0 {
			return string(head), nil
		}
		head = append(head, b)
	}
	return "", errors.New("a header without end")
}

func kindOf(name string) kind {
	for k, n := range kindNames {
		if n == name {
			return k
		}
	}
	return 0
}

func (l *looseReader) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	_, _ = l.h.Write(b[:n])
	l.left -= int64(n)
	if err != io.EOF {
		return n, err
	}
	if got, serr := sum(l.h); serr != nil || hex.EncodeToString(got) != l.id || l.left != 0 {
		return n, fmt.Errorf("object %s is damaged", l.id)
	}
	return n, io.EOF
}

func (l *looseReader) Close() error {
	_ = l.z.Close()
	return l.f.Close()
}

// commit is what matters of a commit.
type commit struct {
	id   string
	tree string
	time time.Time // of the committer
}

// peel follows tags down to a commit.
func (o *objects) peel(ctx context.Context, id string) (commit, error) {
	for range 32 {
		k, data, err := o.readAny(ctx, id)
		if err != nil {
			return commit{}, err
		}
		head, _, _ := bytes.Cut(data, []byte("\n\n"))
		switch k {
		case commitKind:
			return parseCommit(id, string(head))
		case tagKind:
			if id = field(string(head), "object"); len(id) != o.hexLen || !isHex(id) {
				return commit{}, errors.New("a tag without an object")
			}
		default:
			return commit{}, fmt.Errorf("%s is a %s, not a commit", id, k)
		}
	}
	return commit{}, errors.New("too many tags of tags")
}

// field returns the value of the first line of a header that begins with a name.
func field(head, name string) string {
	for line := range strings.Lines(head) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSuffix(v, "\n")
		}
	}
	return ""
}

func parseCommit(id, head string) (commit, error) {
	c := commit{id: id, tree: field(head, "tree")}
	if len(c.tree) != len(id) || !isHex(c.tree) {
		return commit{}, fmt.Errorf("commit %s has no tree", id)
	}
	who := field(head, "committer")
	if i := strings.LastIndexByte(who, '>'); i >= 0 {
		if f := strings.Fields(who[i+1:]); len(f) > 0 {
			if sec, err := strconv.ParseInt(f[0], 10, 64); err == nil {
				c.time = time.Unix(sec, 0).UTC()
			}
		}
	}
	return c, nil
}

// Modes of tree entries.
const (
	modeDir     = 0o040000
	modeLink    = 0o120000
	modeModule  = 0o160000
	modeType    = 0o170000
	modeRegular = 0o100000
)

// treeEntry is one line of a directory.
type treeEntry struct {
	mode uint32
	name string
	id   string
}

// tree reads a directory. Names that no directory can have, or that git keeps for itself, are refused.
func (o *objects) tree(ctx context.Context, id string) ([]treeEntry, error) {
	data, err := o.read(ctx, id, treeKind)
	if err != nil {
		return nil, err
	}
	var out []treeEntry
	for len(data) > 0 {
		head, rest, ok := bytes.Cut(data, []byte{0})
		mode, name, ok2 := strings.Cut(string(head), " ")
		m, err := strconv.ParseUint(mode, 8, 32)
		if !ok || !ok2 || err != nil || len(rest) < o.hexLen/2 {
			return nil, fmt.Errorf("directory %s is damaged", id)
		}
		if name == "" || name == "." || name == ".." || strings.EqualFold(name, ".git") || strings.Contains(name, "/") {
			return nil, fmt.Errorf("a directory of the repository has an entry called %q: refused", name)
		}
		out = append(out, treeEntry{uint32(m), name, hex.EncodeToString(rest[:o.hexLen/2])})
		data = rest[o.hexLen/2:]
	}
	return out, nil
}
