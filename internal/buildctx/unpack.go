package buildctx

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"build/internal/tree"
)

// unpacker writes the entries of a tar below a directory. On disk everything is private and belongs to the caller; what
// the tar says about owners, modes, times, devices and attributes is kept as facts, so that no privilege is needed.
type unpacker struct {
	root  *os.Root
	facts map[string]*tree.Entry
}

// unpack reads a tar and returns what it says about its entries, by path.
func unpack(ctx context.Context, r io.Reader, dir string) (map[string]*tree.Entry, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	u := &unpacker{root: root, facts: map[string]*tree.Entry{}}
	tr := tar.NewReader(r)
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return u.facts, nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, err
		}
		if err := u.add(h, &ctxReader{ctx, tr}); err != nil {
			return nil, fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

var (
	errLeavesArchive = errors.New("the path leads out of the archive")
	errNoSuchLink    = errors.New("a hard link to something that is not a file in the archive")
)

// cleanPath turns a name in a tar into the path of an entry.
func cleanPath(name string) (string, error) {
	parts := strings.Split(name, "/")
	if slices.Contains(parts, "..") {
		return "", errLeavesArchive
	}
	path := strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" || p == "." }), "/")
	return path, tree.CheckPath(path)
}

func (u *unpacker) add(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	e := &tree.Entry{
		Path: path, Mode: uint32(h.Mode) & 07777, UID: uint32(h.Uid), GID: uint32(h.Gid),
		ModTime: h.ModTime, Major: uint32(h.Devmajor), Minor: uint32(h.Devminor), Xattrs: xattrsOf(h),
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeLink:
		e.Type = tree.File
	case tar.TypeDir:
		e.Type = tree.Dir
	case tar.TypeSymlink:
		e.Type, e.Link = tree.Symlink, h.Linkname
	case tar.TypeChar:
		e.Type = tree.Char
	case tar.TypeBlock:
		e.Type = tree.Block
	case tar.TypeFifo:
		e.Type = tree.Fifo
	default:
		return fmt.Errorf("unknown kind of entry %q", h.Typeflag)
	}
	if path == "" {
		if e.Type != tree.Dir {
			return errLeavesArchive
		}
		u.facts[""] = e
		return nil
	}
	if err := u.parents(path, e); err != nil {
		return err
	}
	if err := u.clear(e); err != nil {
		return err
	}
	if err := u.write(h, e, content); err != nil {
		return err
	}
	if u.facts[path] == nil || h.Typeflag != tar.TypeLink {
		u.facts[path] = e
	}
	return nil
}

// xattrsOf returns the attributes that belong into an image.
func xattrsOf(h *tar.Header) []tree.Xattr {
	var out []tree.Xattr
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && wanted(name) {
			out = append(out, tree.Xattr{Name: name, Value: v})
		}
	}
	slices.SortFunc(out, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// parents makes the directories above a path that the tar has no entries for. Going through a symlink is refused: no tar
// of a real tree has such entries.
func (u *unpacker) parents(path string, e *tree.Entry) error {
	for i := range len(path) {
		if path[i] != '/' {
			continue
		}
		dir := path[:i]
		have := u.facts[dir]
		if have == nil {
			if err := u.root.Mkdir(dir, 0o700); err != nil {
				return err
			}
			u.facts[dir] = &tree.Entry{Path: dir, Type: tree.Dir, Mode: 0o755, ModTime: e.ModTime}
		} else if have.Type != tree.Dir {
			return fmt.Errorf("%s is a %s in the archive, not a directory", dir, have.Type)
		}
	}
	return nil
}

// clear makes room for an entry whose path was seen before: directories merge, anything else is replaced.
func (u *unpacker) clear(e *tree.Entry) error {
	have := u.facts[e.Path]
	if have == nil || have.Type == tree.Dir && e.Type == tree.Dir {
		return nil
	}
	if err := u.root.RemoveAll(e.Path); err != nil {
		return err
	}
	delete(u.facts, e.Path)
	if have.Type == tree.Dir {
		for path := range u.facts {
			if tree.Below(path, e.Path) {
				delete(u.facts, path)
			}
		}
	}
	return nil
}

// write makes the entry on disk. What only root could make is an empty file there.
func (u *unpacker) write(h *tar.Header, e *tree.Entry, content io.Reader) error {
	switch e.Type {
	case tree.Dir:
		if err := u.root.Mkdir(e.Path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tree.Symlink:
		return u.root.Symlink(e.Link, e.Path)
	}
	if h.Typeflag == tar.TypeLink {
		return u.link(h, e)
	}
	f, err := u.root.OpenFile(e.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if e.Type == tree.File {
		err = writeSparse(f, content)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// writeSparse copies content, leaving holes where it is zero: a small archive can describe a file of any size.
func writeSparse(f *os.File, content io.Reader) error {
	buf := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buf)
	var size int64
	for {
		n, err := 0, error(nil)
		for n < len(*buf) && err == nil { // not io.ReadFull, which hides whether an archive was cut short
			var m int
			m, err = content.Read((*buf)[n:])
			n += m
		}
		if block := (*buf)[:n]; bytes.Count(block, []byte{0}) != n {
			if _, err := f.WriteAt(block, size); err != nil {
				return err
			}
		}
		size += int64(n)
		if err == io.EOF {
			return f.Truncate(size)
		}
		if err != nil {
			return err
		}
	}
}

// link makes another name for a file. It shares what is known about the first.
func (u *unpacker) link(h *tar.Header, e *tree.Entry) error {
	target, err := cleanPath(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", h.Linkname, err)
	}
	have := u.facts[target]
	if have == nil || have.Type == tree.Dir || target == e.Path {
		return fmt.Errorf("hard link to %q: %w", h.Linkname, errNoSuchLink)
	}
	if err := u.root.Link(target, e.Path); err != nil {
		return err
	}
	path := e.Path
	*e = *have
	e.Path = path
	return nil
}
