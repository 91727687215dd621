package snapshot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// plan is the destination of a copy: what it adds and changes, on top of what the base has. A layer is written from it
// in one go, because entries come in path order and sources do not. It holds entries, not contents.
type plan struct {
	base *tree.Chain
	spec *CopySpec
	mode *chmod
	root *planned
}

// planned is a path of the plan. All planned paths are in planned directories. A copy can have a million files, so it is small: what
// only directories have is apart, and of a file that is copied as it was found there is no second entry.
type planned struct {
	// entry is what goes into the layer, or, when found is set, what the source has there: plan.final makes the one of the other.
	entry   *tree.Entry
	content content
	links   *linkGroup
	dir     *plannedDir // nil: no directory, or one of which nothing is known yet
	// changed says that the path goes into the layer for its own sake, rather than as a parent.
	changed bool
	found   bool
}

// plannedDir is what is known of a planned directory.
type plannedDir struct {
	kids map[string]*planned
	// fresh is a directory in which nothing of the base can be seen.
	fresh bool
	asked int // how many names the base was asked for
	below map[string]tree.Entry
}

// in is the directory for who adds to it.
func (n *planned) in() *plannedDir {
	if n.dir == nil {
		n.dir = &plannedDir{}
	}
	return n.dir
}

// kids are what is planned in a directory, by name.
func (n *planned) kids() map[string]*planned {
	if n.dir == nil {
		return nil
	}
	return n.dir.kids
}

// final is the entry that a planned path has in the layer.
func (p *plan) final(n *planned, path string) tree.Entry {
	e := *n.entry
	if n.found {
		e = atPath(p.owned(e), path)
	}
	e.Path = path // another name of a file has the same entry
	return e
}

// atPath is an entry as it is planned at a path: not what it is to others where it comes from.
func atPath(e tree.Entry, path string) tree.Entry {
	e.Path, e.Hardlink, e.Opaque, e.Implied = path, "", false, false
	return e
}

// content opens a regular file, given its planned entry.
type content interface {
	open(ctx context.Context, e *tree.Entry) (io.ReadCloser, error)
}

// linkGroup is shared by the names of one file.
type linkGroup struct{ first string }

// sourceFiles is the content of files in a Source. Their entries are those of the source.
type sourceFiles struct{ Source }

func (s sourceFiles) open(ctx context.Context, e *tree.Entry) (io.ReadCloser, error) {
	return s.Open(ctx, e)
}

// learn takes the digest of all that r gave, so that who asks for the file's digest later knows it.
func learn(e *tree.Entry, r io.ReadCloser, sum [32]byte) {
	if e.Digest != [32]byte{} {
		return
	}
	e.Digest = sum
	if l, ok := r.(interface{ Learn(sum [32]byte) }); ok {
		l.Learn(sum)
	}
}

// inlineFile is content that a Dockerfile holds.
type inlineFile []byte

func (f inlineFile) open(context.Context, *tree.Entry) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(f)), nil
}

func newPlan(base *tree.Chain, spec *CopySpec) (*plan, error) {
	mode, err := parseChmod(spec.Chmod)
	if err != nil {
		return nil, err
	}
	if spec.Link || base == nil {
		base = tree.NewChain(nil)
	}
	root, _, err := base.Lstat("")
	if err != nil {
		return nil, err
	}
	top := asParent(root.Entry)
	return &plan{base: base, spec: spec, mode: mode, root: &planned{entry: &top}}, nil
}

// asParent makes the entry of a new layer out of what the base shows.
func asParent(e tree.Entry) tree.Entry {
	e.Implied, e.Opaque = false, false
	return e
}

// child returns what is planned as name in a directory, or else what the base has there. The entry of what is planned need not be
// final: only what kind of thing it is, and where a symlink leads, is certain.
func (p *plan) child(in *planned, name string) (*planned, *tree.Entry, error) {
	if kid := in.kids()[name]; kid != nil {
		return kid, kid.entry, nil
	}
	if in.entry.Type != tree.Dir || in.dir != nil && in.dir.fresh {
		return nil, nil, nil
	}
	// One question is cheap, but a directory of thousands of files is read once.
	dir := in.in()
	if dir.below == nil && dir.asked < 16 {
		dir.asked++
		l, ok, err := p.base.Lstat(tree.Join(in.entry.Path, name))
		if err != nil || !ok {
			return nil, nil, err
		}
		return nil, &l.Entry, nil
	}
	if dir.below == nil {
		list, err := p.base.ReadDir(in.entry.Path)
		if err != nil {
			return nil, nil, err
		}
		dir.below = make(map[string]tree.Entry, len(list))
		for i := range list {
			dir.below[tree.Base(list[i].Path)] = list[i].Entry
		}
	}
	if e, ok := dir.below[name]; ok {
		return nil, &e, nil
	}
	return nil, nil, nil
}

// lstat returns what is at path in the destination.
func (p *plan) lstat(at string) (tree.Entry, bool, error) {
	n := p.root
	for rest := at; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		kid, e, err := p.child(n, name)
		switch {
		case err != nil || e == nil:
			return tree.Entry{}, false, err
		case rest == "":
			return *e, true, nil
		case kid == nil:
			l, ok, err := p.base.Lstat(at)
			return l.Entry, ok, err
		}
		n = kid
	}
	return *n.entry, true, nil
}

// resolve follows every symlink in a destination path, inside the destination.
func (p *plan) resolve(at string) (string, error) {
	real, err := tree.Resolve(at, true, p.lstat)
	if errors.Is(err, tree.ErrLoop) || errors.Is(err, tree.ErrPath) {
		return "", copyErrorf("destination %q: %v", at, err)
	}
	return real, err
}

// dirAt returns the planned directory at a path without symlinks. Missing directories are what missing says; the error
// about something that is no directory is a *CopyError.
func (p *plan) dirAt(at string, missing func(path string) tree.Entry) (n *planned, made bool, err error) {
	n = p.root
	for rest := at; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		kid, e, err := p.child(n, name)
		if err != nil {
			return nil, false, err
		}
		made = false
		switch {
		case e == nil:
			kid = p.put(n, name, p.inherit(n, missing(tree.Join(n.entry.Path, name))))
			kid.in().fresh, made = true, true
		case e.Type != tree.Dir:
			return nil, false, copyErrorf("mkdir /%s: not a directory", tree.Join(n.entry.Path, name))
		case kid == nil:
			kid = p.put(n, name, asParent(*e))
			kid.changed = false
		}
		n = kid
	}
	return n, made, nil
}

// inherit does what mkdir(2) does in a directory with the set-group-ID bit: the new one has the bit and the group too.
// BuildKit makes its directories that way, so its images show it.
func (p *plan) inherit(dir *planned, e tree.Entry) tree.Entry {
	if dir.entry.Mode&unix.S_ISGID == 0 || p.mode != nil {
		return e
	}
	e.Mode |= unix.S_ISGID
	if p.spec.Owner == nil {
		e.GID = dir.entry.GID
	}
	return e
}

// put plans an entry in a directory, in place of whatever was planned there.
func (p *plan) put(dir *planned, name string, e tree.Entry) *planned {
	e = atPath(e, tree.Join(dir.entry.Path, name))
	return dir.add(name, &planned{entry: &e, changed: true})
}

// add makes kid what is planned as name in a directory.
func (n *planned) add(name string, kid *planned) *planned {
	dir := n.in()
	if dir.kids == nil {
		dir.kids = make(map[string]*planned)
	}
	dir.kids[name] = kid
	return kid
}

// parent is a directory that has to be made on the way.
func (p *plan) parent(at string) tree.Entry {
	e := tree.Entry{Path: at, Type: tree.Dir, Mode: p.mode.parentMode(), ModTime: p.spec.Now, Offset: -1}
	if o := p.spec.Owner; o != nil {
		e.UID, e.GID = o.UID, o.GID
	}
	return e
}

// mkdirAll makes the directory that path leads to.
func (p *plan) mkdirAll(at string) (*planned, error) {
	real, err := p.resolve(at)
	if err != nil {
		return nil, err
	}
	n, _, err := p.dirAt(real, p.parent)
	return n, err
}

// add plans the copy of one item.
func (p *plan) add(src Source, it *item) error {
	dest := tree.Clean(p.spec.Dest)
	ensure := tree.Parent(dest)
	if last := p.spec.Dest; strings.HasSuffix(last, "/") || strings.HasSuffix(last, "/.") {
		ensure = dest
	}
	if _, err := p.mkdirAll(ensure); err != nil {
		return err
	}
	target, err := p.resolve(dest)
	if err != nil {
		return err
	}
	if it.top().Type == tree.Dir {
		return p.addDir(src, it, target)
	}
	if at, ok, err := p.lstat(target); err != nil {
		return err
	} else if ok && at.Type == tree.Dir {
		target = tree.Join(target, it.name)
	}
	dir, _, err := p.dirAt(tree.Parent(target), p.parent)
	if err != nil {
		return err
	}
	c := content(inlineFile(it.inline))
	if it.inline == nil {
		c = sourceFiles{src}
	}
	return p.file(dir, tree.Base(target), &it.top().Entry, c, nil)
}

// addDir plans the copy of what is in a directory to target.
func (p *plan) addDir(src Source, it *item, target string) error {
	if at, ok, err := p.lstat(target); err != nil {
		return err
	} else if ok && at.Type != tree.Dir {
		return copyErrorf("cannot copy to non-directory: /%s", target)
	}
	top, made, err := p.dirAt(target, p.parent)
	if err != nil {
		return err
	}
	if made {
		top.entry.ModTime = it.top().ModTime
	}
	links := linksOf(it)
	dir, below := top, ""
	contents := content(sourceFiles{src})
	for c := range it.below() {
		rel := it.rel(c)
		if parent := tree.Parent(rel); parent != below {
			if dir, _, err = p.dirAt(tree.Join(target, parent), p.parent); err != nil {
				return err
			}
			below = parent
		}
		if c.Type == tree.Dir {
			err = p.dir(dir, tree.Base(rel), c)
		} else {
			err = p.file(dir, tree.Base(rel), &c.Entry, contents, links[firstLink(&c.Entry)])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// firstLink names the file an entry is a name of.
func firstLink(e *tree.Entry) string {
	if e.Hardlink != "" {
		return e.Hardlink
	}
	return e.Path
}

// linksOf finds the files of an item that have more than one name in it.
func linksOf(it *item) map[string]*linkGroup {
	var links map[string]*linkGroup
	for c := range it.entries.all() {
		if to := c.Hardlink; to != "" && links[to] == nil {
			if links == nil {
				links = make(map[string]*linkGroup)
			}
			links[to] = &linkGroup{}
		}
	}
	return links
}

// dir plans a directory found below a copied one. Unlike the copied one itself it takes the source's metadata.
func (p *plan) dir(in *planned, name string, c *chosen) error {
	kid, old, err := p.child(in, name)
	if err != nil {
		return err
	}
	e := p.owned(c.Entry)
	switch {
	case old == nil:
		p.put(in, name, e).in().fresh = true
		return nil
	case old.Type != tree.Dir:
		return copyErrorf("cannot copy to non-directory: /%s", tree.Join(in.entry.Path, name))
	case kid == nil:
		kid = p.put(in, name, asParent(*old))
	}
	kid.changed = true
	if c.delayed {
		kid.entry.Mode = c.Mode
		return nil
	}
	kid.entry.Mode, kid.entry.UID, kid.entry.GID, kid.entry.ModTime = e.Mode, e.UID, e.GID, e.ModTime
	kid.entry.Xattrs = mergeXattrs(kid.entry.Xattrs, e.Xattrs)
	return nil
}

// mergeXattrs adds attributes to those that are there.
func mergeXattrs(old, add []tree.Xattr) []tree.Xattr {
	if len(add) == 0 {
		return old
	}
	out := slices.Clone(add)
	for _, x := range old {
		if !slices.ContainsFunc(add, func(a tree.Xattr) bool { return a.Name == x.Name }) {
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// owned returns an entry with the owner and mode the copy gives it.
func (p *plan) owned(e tree.Entry) tree.Entry {
	if o := p.spec.Owner; o != nil {
		e.UID, e.GID = o.UID, o.GID
	}
	if p.mode != nil && e.Type != tree.Symlink {
		e.Mode = p.mode.apply(e.Mode, e.Type == tree.Dir)
	}
	return e
}

// file plans anything but a directory.
func (p *plan) file(in *planned, name string, e *tree.Entry, c content, links *linkGroup) error {
	_, old, err := p.child(in, name)
	if err != nil {
		return err
	}
	if old != nil && old.Type == tree.Dir {
		return copyErrorf("cannot replace to directory /%s with file", tree.Join(in.entry.Path, name))
	}
	kid := in.add(name, &planned{entry: e, found: true, changed: true, links: links})
	if e.Type == tree.File {
		kid.content = c
	}
	return nil
}
