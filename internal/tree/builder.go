package tree

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Builder brings the entries of a tar, which come in any order and may contradict each other, into the order and the
// shape of an index: what the tar leaves behind when it is extracted into an empty directory from front to back.
//
//   - Later entries replace earlier ones. A directory over a directory keeps what is in it, anything else drops it.
//   - Parents that are symlinks of the same layer are followed, inside the layer only. Parents that are missing become
//     implied directories.
//   - A hard link is another name for what its target is at that moment. In the index the first name in path order is
//     the file, whichever came first in the tar.
//   - A whiteout speaks of the layers below only: what the same layer has at its path stays, and if that is a
//     directory, it becomes opaque.
//
// It holds the whole layer in memory, about 150 bytes an entry.
type Builder struct {
	root  node
	count int
}

type node struct {
	ino  *inode
	kids map[string]*node
}

// inode is an Entry without its names, packed: a layer may have half a million.
type inode struct {
	typ             Type
	implied, opaque bool
	mode, uid, gid  uint32
	links           uint32
	nsec            uint32
	sec             int64
	size, offset    int64
	digest          [32]byte
	rare            *rare
}

// rare is what few entries have.
type rare struct {
	link         string
	major, minor uint32
	xattrs       []Xattr
}

// Clean turns the name of a tar entry into a path: relative, clean, and clamped to the root.
func Clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// Len returns how many entries have been made so far, those since dropped and implied parents included: it grows exactly
// when Add meets a path for the first time.
func (b *Builder) Len() int { return b.count }

// Opaque marks the directory at path as hiding what the layers below have in it; a missing one is implied.
func (b *Builder) Opaque(path string) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	dir, err := b.dir(path)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if dir.ino == nil { // the root, so far without an entry
		dir.ino = newImplied()
		b.count++
	}
	dir.ino.opaque = true
	return nil
}

// Add takes the next entry of the tar. Its Path, and its Hardlink if it is one, are the names in the tar, cleaned.
func (b *Builder) Add(e *Entry) error {
	if err := CheckPath(e.Path); err != nil {
		return err
	}
	if e.Path == "" {
		return b.addRoot(e)
	}
	dir, err := b.dir(Parent(e.Path))
	if err != nil {
		return fmt.Errorf("%q: %w", e.Path, err)
	}
	ino, err := b.inode(e)
	if err != nil {
		return err
	}
	name := Base(e.Path)
	old := dir.kids[name]
	switch {
	case old == nil:
		b.put(dir, name, ino)
	case ino.typ == Whiteout:
		if old.ino.typ == Dir {
			old.ino.opaque = true
		}
	case ino.typ == Dir:
		ino.opaque = ino.opaque || old.ino.typ == Whiteout || old.ino.typ == Dir && old.ino.opaque
		if old.ino.typ != Dir {
			old.kids = nil
		}
		old.set(ino)
	default:
		old.kids = nil
		old.set(ino)
	}
	return nil
}

func (b *Builder) addRoot(e *Entry) error {
	if e.Type != Dir {
		return fmt.Errorf("%w: the root is a %v", ErrPath, e.Type)
	}
	ino := newInode(e)
	if b.root.ino == nil {
		b.count++
	} else {
		ino.opaque = ino.opaque || b.root.ino.opaque
	}
	b.root.ino = ino
	return nil
}

// inode returns what the entry names: something new, or what the target of a hard link is.
func (b *Builder) inode(e *Entry) (*inode, error) {
	if e.Hardlink == "" {
		return newInode(e), nil
	}
	target, err := b.find(e.Hardlink)
	if err != nil {
		return nil, fmt.Errorf("hard link %q to %q: %w", e.Path, e.Hardlink, err)
	}
	if target == nil || target.ino.typ == Whiteout {
		return nil, fmt.Errorf("hard link %q to %q: the layer has no such file", e.Path, e.Hardlink)
	}
	if target.ino.typ == Dir {
		return nil, fmt.Errorf("hard link %q to %q: that is a directory", e.Path, e.Hardlink)
	}
	return target.ino, nil
}

func (b *Builder) put(dir *node, name string, ino *inode) *node {
	kid := &node{}
	kid.set(ino)
	if dir.kids == nil {
		dir.kids = make(map[string]*node)
	}
	dir.kids[strings.Clone(name)] = kid
	b.count++
	return kid
}

func (n *node) set(ino *inode) {
	ino.links++
	if n.ino != nil {
		n.ino.links--
	}
	n.ino = ino
}

// dir returns the directory at path, made if it is missing.
func (b *Builder) dir(path string) (*node, error) {
	n, plain, err := b.descend(path)
	if err != nil || plain {
		return n, err
	}
	resolved, err := Resolve(path, true, b.lstat)
	if err != nil {
		return nil, err
	}
	n, plain, err = b.descend(resolved)
	if err == nil && !plain {
		err = fmt.Errorf("%q changes while it is followed", path)
	}
	return n, err
}

// descend goes down to path, making what is missing; plain is false when a symlink is in the way.
func (b *Builder) descend(path string) (n *node, plain bool, err error) {
	n = &b.root
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next := n.kids[name]
		switch {
		case next == nil:
			// A symlink further up may still send us elsewhere, but none can be below what is missing.
			next = b.put(n, name, newImplied())
		case next.ino.typ == Whiteout:
			next.set(newImplied())
			next.ino.opaque = true
		case next.ino.typ == Symlink:
			return nil, false, nil
		case next.ino.typ != Dir:
			return nil, false, fmt.Errorf("its parent %q is a %v", name, next.ino.typ)
		}
		n = next
	}
	return n, true, nil
}

// at returns the node at path, nothing followed; nil when there is none.
func (b *Builder) at(path string) *node {
	n := &b.root
	for rest := path; rest != "" && n != nil; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		n = n.kids[name]
	}
	return n
}

// find returns the node at path, with symlinks followed in all but the last component.
func (b *Builder) find(path string) (*node, error) {
	if n := b.at(path); n != nil && n != &b.root {
		return n, nil
	}
	resolved, err := Resolve(path, false, b.lstat)
	if err != nil {
		return nil, err
	}
	n := b.at(resolved)
	if n == &b.root {
		return nil, fmt.Errorf("that is the root directory")
	}
	return n, nil
}

func (b *Builder) lstat(path string) (Entry, bool, error) {
	n := b.at(path)
	if n == nil || n.ino == nil || n.ino.typ == Whiteout {
		return Entry{}, false, nil
	}
	e := Entry{Type: n.ino.typ}
	if n.ino.rare != nil {
		e.Link = n.ino.rare.link
	}
	return e, true, nil
}

// WriteTo writes what has been added to w, which the caller closes.
func (b *Builder) WriteTo(w *Writer) error {
	first := make(map[*inode]string)
	if b.root.ino != nil {
		if err := w.Add(b.root.ino.entry("")); err != nil {
			return err
		}
	}
	return b.root.write(w, "", first)
}

// write writes what is below n. Paths are no longer than MaxPath, so neither is the recursion deep.
func (n *node) write(w *Writer, path string, first map[*inode]string) error {
	for _, name := range slices.Sorted(maps.Keys(n.kids)) {
		kid := n.kids[name]
		e := kid.ino.entry(Join(path, name))
		if kid.ino.links > 1 && e.Type != Dir && e.Type != Whiteout {
			if e.Hardlink = first[kid.ino]; e.Hardlink == "" {
				first[kid.ino] = e.Path
			}
		}
		if err := w.Add(e); err != nil {
			return err
		}
		if err := kid.write(w, e.Path, first); err != nil {
			return err
		}
	}
	return nil
}

func newInode(e *Entry) *inode {
	ino := &inode{
		typ: e.Type, implied: e.Implied, opaque: e.Opaque, mode: e.Mode & 07777, uid: e.UID, gid: e.GID,
		sec: e.ModTime.Unix(), nsec: uint32(e.ModTime.Nanosecond()), offset: -1,
	}
	if e.Type == File {
		ino.size, ino.offset, ino.digest = e.Size, e.Offset, e.Digest
	}
	if e.Link != "" || e.Major != 0 || e.Minor != 0 || len(e.Xattrs) > 0 {
		ino.rare = &rare{link: strings.Clone(e.Link), major: e.Major, minor: e.Minor, xattrs: slices.Clone(e.Xattrs)}
	}
	return ino
}

func newImplied() *inode {
	return &inode{typ: Dir, implied: true, mode: 0o755, offset: -1}
}

func (i *inode) entry(path string) *Entry {
	e := &Entry{
		Path: path, Type: i.typ, Mode: i.mode, UID: i.uid, GID: i.gid, Size: i.size, ModTime: time.Unix(i.sec, int64(i.nsec)).UTC(),
		Digest: i.digest, Offset: i.offset, Implied: i.implied, Opaque: i.opaque,
	}
	if i.rare != nil {
		e.Link, e.Major, e.Minor, e.Xattrs = i.rare.link, i.rare.major, i.rare.minor, i.rare.xattrs
	}
	return e
}
