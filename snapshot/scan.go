package snapshot

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"build/internal/tree"
)

// maxLinks is how many symbolic links one name may pass through.
const maxLinks = 255

// maxSparse bounds files that are stored with holes: their size costs a tar nothing and its reader a hash over every byte.
const maxSparse = 8 << 30

// xattrs we take from a tar or a file. Everything else belongs to a host (trusted.*, security.selinux, ours).
const (
	capabilityXattr = "security.capability"
	overlayXattr    = "user.overlay."
	ownXattr        = "user.build."
)

// portableXattr reports whether an extended attribute is part of a layer.
func portableXattr(name string) bool {
	if name == capabilityXattr {
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, overlayXattr) && !strings.HasPrefix(name, ownXattr)
}

// normalCapability turns the value of security.capability into version 2: version 3 is the same with the id of a user
// namespace's root, which means nothing outside the host that wrote it.
func normalCapability(v string) string {
	const v3, v3Size, v2Size = 3, 24, 20
	if len(v) != v3Size || v[3] != v3 {
		return v
	}
	return v[:3] + "\x02" + v[4:v2Size]
}

// scanner reads a layer's tar and gives every entry its one name inside the layer. Names come from strangers: they are
// resolved through the symbolic links of this layer alone, clamped to its root, so that the index and the applied directory
// agree and the applier never has to follow a link.
type scanner struct {
	ctx    context.Context
	tr     *tar.Reader
	pos    counter
	links  map[string]string // the layer's symbolic links so far
	dir    string            // the directory part of the last name, as written
	clean  string            // and where it led; valid while links does not change
	cached bool
	buf    []byte // for whoever copies the content
}

// counter counts the bytes read from r.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func newScanner(r io.Reader) *scanner {
	s := &scanner{ctx: context.Background(), pos: counter{r: r}, links: map[string]string{}, buf: make([]byte, 64<<10)}
	s.tr = tar.NewReader(&s.pos)
	return s
}

// entryError says which entry of a tar is wrong.
type entryError struct {
	name string
	err  error
}

func (e *entryError) Error() string { return fmt.Sprintf("tar entry %q: %v", e.name, e.err) }
func (e *entryError) Unwrap() error { return e.err }

var errEscapes = errors.New("the name leads out of the layer")

// next returns the next entry, or io.EOF. An entry of type Whiteout removes its path from the layers below; opaque means
// that the entry is no more than the mark that a directory hides what is below it. The content of a file is read from the
// scanner until the next call.
func (s *scanner) next() (e *tree.Entry, opaque bool, err error) {
	for {
		h, err := s.tr.Next()
		if err != nil {
			return nil, false, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e, opaque, err := s.entry(h)
		if err != nil {
			return nil, false, &entryError{h.Name, err}
		}
		if e != nil {
			return e, opaque, nil
		}
	}
}

// Read reads the content of the current file. Holes come from nowhere, so r alone would not notice the end of ctx.
func (s *scanner) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.tr.Read(p)
}

// drain reads the rest of the stream, the padding behind the archive: it is part of what diffID covers.
func (s *scanner) drain() error {
	_, err := io.Copy(io.Discard, s.pos.r)
	return err
}

func (s *scanner) entry(h *tar.Header) (*tree.Entry, bool, error) {
	name, err := cleanName(h.Name)
	if err != nil {
		return nil, false, err
	}
	path, err := s.resolve(name)
	if err != nil {
		return nil, false, err
	}
	dir, base := splitPath(path)
	if mark := strings.HasPrefix(base, whiteoutPrefix); mark || strings.Contains(dir, whiteoutPrefix) {
		return s.whiteout(dir, base)
	}
	e, err := s.plain(h, path)
	if err != nil {
		return nil, false, err
	}
	s.note(e)
	return e, false, nil
}

// note keeps the set of symbolic links up to date.
func (s *scanner) note(e *tree.Entry) {
	if e.Type == tree.Symlink {
		s.links[e.Path] = e.Link
		s.cached = false
		return
	}
	if len(s.links) == 0 {
		return
	}
	if _, was := s.links[e.Path]; was {
		delete(s.links, e.Path)
		s.cached = false
	}
}

// whiteout interprets a name with the prefix .wh. in it.
func (s *scanner) whiteout(dir, base string) (*tree.Entry, bool, error) {
	for name := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(name, whiteoutMeta) {
			return nil, false, nil // an aufs directory
		}
		if strings.HasPrefix(name, whiteoutPrefix) {
			return nil, false, fmt.Errorf("%s cannot be a directory: the prefix %s marks deletions", name, whiteoutPrefix)
		}
	}
	if base == opaqueName {
		return &tree.Entry{Path: dir, Type: tree.Dir}, true, nil
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil, false, nil // aufs housekeeping
	}
	gone := strings.TrimPrefix(base, whiteoutPrefix)
	if gone == "" || gone == "." || gone == ".." {
		return nil, false, errors.New("a deletion without a name")
	}
	e := &tree.Entry{Path: joinPath(dir, gone), Type: tree.Whiteout, Offset: -1, ModTime: time.Unix(0, 0)}
	return e, false, nil
}

// plain returns the entry for anything that is not a deletion.
func (s *scanner) plain(h *tar.Header, path string) (*tree.Entry, error) {
	e := &tree.Entry{Path: path, Mode: uint32(h.Mode) & 0o7777, ModTime: h.ModTime, Offset: -1}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return nil, fmt.Errorf("owner %d:%d is not an id", h.Uid, h.Gid)
	}
	e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	if e.ModTime.IsZero() {
		e.ModTime = time.Unix(0, 0)
	}
	if path == "" && h.Typeflag != tar.TypeDir {
		return nil, errors.New("the root of a layer is a directory")
	}
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse: // '\x00' is what old archives have
		e.Type, e.Size = tree.File, h.Size
		if !sparse(h) {
			e.Offset = s.pos.n
		} else if e.Size > maxSparse {
			return nil, fmt.Errorf("a sparse file of %d bytes; no more than %d are read", e.Size, int64(maxSparse))
		}
	case tar.TypeDir:
		e.Type = tree.Dir
	case tar.TypeSymlink:
		e.Type, e.Link, e.Mode = tree.Symlink, h.Linkname, 0o777
		if h.Linkname == "" || strings.ContainsRune(h.Linkname, 0) {
			return nil, errors.New("a symbolic link without a target")
		}
	case tar.TypeLink:
		target, err := s.linkTarget(h.Linkname)
		if err != nil {
			return nil, err
		}
		if target == path || tree.Below(target, path) {
			return nil, fmt.Errorf("a hard link in place of its target %q", h.Linkname)
		}
		if to, ok := s.links[target]; ok { // a second name of a symbolic link is as good as a second link
			e.Type, e.Link, e.Mode = tree.Symlink, to, 0o777
			return e, nil
		}
		e.Type, e.Hardlink = tree.File, target
	case tar.TypeChar, tar.TypeBlock:
		return e, device(e, h)
	case tar.TypeFifo:
		e.Type = tree.Fifo
	default:
		return nil, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	e.Xattrs = tarXattrs(h, e.Type)
	return e, nil
}

// device completes a device node. A character device 0:0 is what overlay file systems call a deletion, wherever it came
// from; the index must not disagree with the kernel.
func device(e *tree.Entry, h *tar.Header) error {
	if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > 0xfff || h.Devminor > 0xfffff {
		return fmt.Errorf("device number %d:%d is out of range", h.Devmajor, h.Devminor)
	}
	e.Type, e.Major, e.Minor = tree.Block, uint32(h.Devmajor), uint32(h.Devminor)
	if h.Typeflag == tar.TypeChar {
		e.Type = tree.Char
		if e.Major == 0 && e.Minor == 0 {
			*e = tree.Entry{Path: e.Path, Type: tree.Whiteout, Offset: -1, ModTime: time.Unix(0, 0)}
		}
	}
	return nil
}

// sparse reports whether the content of a file in the archive is not simply its bytes.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// tarXattrs returns the portable extended attributes of a header, sorted.
func tarXattrs(h *tar.Header, t tree.Type) []tree.Xattr {
	var out []tree.Xattr
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrRecord)
		if !ok || !portableXattr(name) || (t != tree.File && t != tree.Dir) {
			continue
		}
		if name == capabilityXattr {
			if t != tree.File {
				continue
			}
			v = normalCapability(v)
		}
		out = append(out, tree.Xattr{Name: name, Value: v})
	}
	sortXattrs(out)
	return out
}

// cleanName returns a tar name as a clean relative path, "" for the root.
func cleanName(name string) (string, error) {
	if name == "" {
		return "", errors.New("empty name")
	}
	if strings.ContainsRune(name, 0) {
		return "", errors.New("the name holds a zero byte")
	}
	if short := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/"); short != "" && isClean(short) {
		return short, nil
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch p {
		case "", ".":
		case "..":
			if len(parts) == 0 {
				return "", errEscapes
			}
			parts = parts[:len(parts)-1]
		default:
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "/"), nil
}

// isClean reports whether a name needs no cleaning, as nearly all do.
func isClean(name string) bool {
	if name[0] == '/' || name[len(name)-1] == '/' || strings.Contains(name, "//") {
		return false
	}
	for p := range strings.SplitSeq(name, "/") {
		if p == "." || p == ".." {
			return false
		}
	}
	return true
}

// linkTarget returns the path a hard link leads to: its directory is resolved, its last name is not.
func (s *scanner) linkTarget(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) {
		return "", errors.New("a hard link without a target")
	}
	clean, err := cleanName(name)
	if err != nil {
		return "", fmt.Errorf("hard link to %q: %w", name, err)
	}
	if clean == "" {
		return "", fmt.Errorf("hard link to %q, a directory", name)
	}
	target, err := s.resolve(clean)
	if err != nil {
		return "", fmt.Errorf("hard link to %q: %w", name, err)
	}
	return target, nil
}

// resolve follows the symbolic links in the directory part of a clean path.
func (s *scanner) resolve(path string) (string, error) {
	dir, base := splitPath(path)
	if dir == "" || len(s.links) == 0 {
		return path, nil
	}
	if !s.cached || s.dir != dir {
		to, err := s.follow(dir)
		if err != nil {
			return "", err
		}
		s.dir, s.clean, s.cached = dir, to, true
	}
	if s.clean == dir {
		return path, nil
	}
	return joinPath(s.clean, base), nil
}

// follow resolves every component of dir inside the layer; .. in a link's target stops at the root.
func (s *scanner) follow(dir string) (string, error) {
	done, rest, n := "", dir, 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			done, _ = splitPath(done)
			continue
		}
		next := joinPath(done, name)
		target, ok := s.links[next]
		if !ok {
			done = next
			continue
		}
		if n++; n > maxLinks {
			return "", errors.New("too many symbolic links")
		}
		if len(target) > 1<<16 {
			return "", errors.New("the target of a symbolic link is too long")
		}
		if target[0] == '/' {
			done = ""
		}
		rest = target + "/" + rest
	}
	return done, nil
}
