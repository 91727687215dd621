// Package buildctx gives builds the files they may read: a directory with its ignore rules, a tar from standard input or
// from a URL, what ADD downloads, and the Dockerfile itself. It owns how URLs are told apart (git is internal/git's), what a
// download is worth a second time, how a directory is walked, what is left out, and how it is known that a file has
// not changed since it was last hashed. It never follows a symlink out of the directory, never writes into it, and
// refuses to know what is copied where.
package buildctx

import (
	"fmt"
	"iter"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// DirOptions say how a directory is read.
type DirOptions struct {
	IgnoreFile string    // ignore file of the Dockerfile in use; when it exists it replaces the directory's .dockerignore
	NoIgnore   bool      // no ignore rules at all
	StatCache  StatCache // nil: every file that is asked about is read
}

// Dir is a directory tree as a source of copies. Entries belong to 0:0. What was looked at once is remembered until the
// end, or until it turns out to have changed, so that all steps of a build see the same files. It is safe for concurrent
// use.
type Dir struct {
	root   *root
	ignore *ignore
	cache  StatCache
	facts  map[string]*tree.Entry // of an unpacked archive: what it says about its entries, by path

	mu     sync.Mutex
	lists  map[string]*listing
	lone   map[string]*node // looked at without their directory
	walked map[string]bool  // directories below which all was read
}

// OpenDir opens a directory. Nothing but the ignore file is read until it is asked for.
func OpenDir(dir string, o DirOptions) (*Dir, error) {
	r, err := openRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open build context: %w", err)
	}
	d := &Dir{root: r, cache: o.StatCache, lists: map[string]*listing{}, lone: map[string]*node{}, walked: map[string]bool{}}
	if !o.NoIgnore {
		if d.ignore, err = loadIgnore(dir, o.IgnoreFile); err != nil {
			r.close()
			return nil, err
		}
	}
	return d, nil
}

// Close releases the directory and writes the stat cache when it is one that can be written.
func (d *Dir) Close() error {
	err := d.root.close()
	if c, ok := d.cache.(interface{ Save() error }); ok {
		if saveErr := c.Save(); err == nil {
			err = saveErr
		}
	}
	return err
}

// Path is the directory's path as it was given.
func (d *Dir) Path() string { return d.root.dir }

// Ignored reports whether the ignore rules leave a path out. A directory that is left out may still show up when
// something below it is not.
func (d *Dir) Ignored(path string) (bool, error) {
	v, err := d.ignore.judgeAll(path)
	return v.out, err
}

// Lstat looks at one entry, without following symlinks in any component. Reading its directory is not needed for it.
func (d *Dir) Lstat(path string) (tree.Entry, bool, error) {
	n, err := d.lookup(path)
	if n == nil || err != nil {
		return tree.Entry{}, false, err
	}
	e, err := d.whole(n)
	return e, err == nil, err
}

// whole is the entry of a node with the extended attributes that a directory has, which reading what is above it does not show.
func (d *Dir) whole(n *node) (tree.Entry, error) {
	if n.kind != tree.Dir {
		return d.entry(n.path, n), nil
	}
	d.mu.Lock()
	l := d.lists[n.path]
	d.mu.Unlock()
	if l == nil || !l.loaded.Load() || l.err != nil {
		fd, err := d.root.open(tree.Parent(n.path), unix.O_PATH|unix.O_DIRECTORY)
		if absent(err) {
			return d.entry(n.path, n), nil // who reads it will hear of it
		}
		if err != nil {
			return tree.Entry{}, d.root.error("open", tree.Parent(n.path), err)
		}
		defer unix.Close(fd)
		list, err := d.xattrs(fd, baseOrDot(n.path), tree.Parent(n.path))
		return d.dirEntry(n, list), err
	}
	return d.dirEntry(n, l.xattrs), nil
}

func (d *Dir) dirEntry(n *node, xattrs []tree.Xattr) tree.Entry {
	e := d.entry(n.path, n)
	if d.facts[n.path] == nil {
		e.Xattrs = xattrs
	}
	return e
}

// baseOrDot is the name of an entry in the directory it is in; the root is in itself.
func baseOrDot(path string) string {
	if path == "" {
		return "."
	}
	return tree.Base(path)
}

// lookup returns the node of a path, nil when there is none or it is ignored.
func (d *Dir) lookup(path string) (*node, error) {
	if path != "" {
		if err := tree.CheckPath(path); err != nil {
			return nil, nil // no entry can have such a path
		}
	}
	n, v, err := d.find(path)
	if n == nil || err != nil || !v.out {
		return n, err
	}
	if n.kind != tree.Dir {
		return nil, nil
	}
	some, err := d.includesBelow(path, v)
	if !some || err != nil {
		return nil, err
	}
	return n, nil
}

// find is lookup without regard to whether the path is ignored, which it says.
func (d *Dir) find(path string) (*node, verdict, error) {
	d.mu.Lock()
	l, n := d.lists[tree.Parent(path)], d.lone[path]
	d.mu.Unlock()
	if path != "" && l != nil && l.loaded.Load() && l.err == nil {
		n := l.named(tree.Base(path))
		if n == nil {
			return nil, verdict{}, nil
		}
		return n, n.verdict(), nil
	}
	if n != nil {
		return n, n.verdict(), nil
	}
	v, err := d.ignore.judgeAll(path)
	if err != nil {
		return nil, v, err
	}
	if n, err = d.look(path); n == nil || err != nil {
		return nil, v, err
	}
	if d.ignore != nil {
		n.more().verdict = v
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.lone[path]; old != nil {
		return old, old.verdict(), nil
	}
	d.lone[path] = n
	return n, v, nil
}

// look asks the kernel about one entry.
func (d *Dir) look(path string) (*node, error) {
	parent, err := d.root.open(tree.Parent(path), unix.O_PATH|unix.O_DIRECTORY)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, d.root.error("open", tree.Parent(path), err)
	}
	defer unix.Close(parent)
	n := &node{path: path}
	ok, err := d.fill(n, parent, baseOrDot(path), tree.Parent(path))
	if !ok || err != nil {
		return nil, err
	}
	return n, nil
}

// ReadDir lists a directory, sorted by name; nothing when there is no such directory.
func (d *Dir) ReadDir(path string) ([]tree.Entry, error) {
	n, err := d.lookup(path)
	if n == nil || err != nil || n.kind != tree.Dir {
		return nil, err
	}
	l, err := d.list(path, n.verdict())
	if err != nil {
		return nil, err
	}
	out := make([]tree.Entry, 0, len(l.nodes))
	for i := range l.nodes {
		n := &l.nodes[i]
		ok, err := d.shown(n)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		e, err := d.whole(n)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// shown reports whether an entry is part of the context: it is not ignored, or something below it is not.
func (d *Dir) shown(n *node) (bool, error) {
	v := n.verdict()
	if !v.out {
		return true, nil
	}
	return d.includesBelow(n.path, v)
}

// includesBelow reports whether an ignored directory has something below it that is not ignored.
func (d *Dir) includesBelow(path string, v verdict) (bool, error) {
	if !d.ignore.mayInclude(path) {
		return false, nil
	}
	l, err := d.list(path, v)
	if err != nil {
		return false, err
	}
	if known := l.includes.Load(); known != 0 {
		return known > 0, nil
	}
	result := int32(-1)
	for i := range l.nodes {
		ok, err := d.shown(&l.nodes[i])
		if err != nil {
			return false, err
		}
		if ok {
			result = 1
			break
		}
	}
	l.includes.Store(result)
	return result > 0, nil
}

// Walk yields the entry at path and everything below it, in path order. Further names of a hard-linked file name the
// first one that the walk met. Directories are read ahead in parallel while it goes on.
func (d *Dir) Walk(path string) iter.Seq2[tree.Entry, error] {
	return func(yield func(tree.Entry, error) bool) {
		n, err := d.lookup(path)
		if err != nil {
			yield(tree.Entry{}, err)
			return
		}
		if n == nil {
			return
		}
		w := walk{d: d, yield: yield}
		if n.kind == tree.Dir {
			defer d.readAhead(path, n.verdict())()
		}
		if w.visit(n) {
			d.mu.Lock()
			d.walked[path] = true
			d.mu.Unlock()
		}
	}
}

// walk is one Walk under way.
type walk struct {
	d     *Dir
	yield func(tree.Entry, error) bool
	first map[[2]uint64]string // path of the first name of files that have several, by device and inode
}

// visit yields a node and what is below it. It returns false when the walk is over.
func (w *walk) visit(n *node) bool {
	if n.kind != tree.Dir {
		e := w.d.entry(n.path, n)
		if n.shared {
			e.Hardlink = w.named(n)
		}
		return w.yield(e, nil)
	}
	l, err := w.d.list(n.path, n.verdict())
	if err != nil {
		w.yield(tree.Entry{}, err)
		return false
	}
	if !w.yield(w.d.dirEntry(n, l.xattrs), nil) {
		return false
	}
	for i := range l.nodes {
		child := &l.nodes[i]
		ok, err := w.d.shown(child)
		if err != nil {
			w.yield(tree.Entry{}, err)
			return false
		}
		if ok && !w.visit(child) {
			return false
		}
	}
	return true
}

// named returns the name under which the walk met a file before; "" the first time.
func (w *walk) named(n *node) string {
	id := [2]uint64{n.stat.dev, n.stat.ino}
	first, ok := w.first[id]
	if !ok {
		if w.first == nil {
			w.first = map[[2]uint64]string{}
		}
		w.first[id] = n.path
	}
	return first
}

// listing is the content of one directory, but for what is ignored for certain.
type listing struct {
	once     sync.Once
	loaded   atomic.Bool
	nodes    []node       // sorted by name
	xattrs   []tree.Xattr // of the directory itself
	err      error
	includes atomic.Int32 // whether anything in it is not ignored: 1 yes, -1 no, 0 not known yet
}

func (l *listing) named(name string) *node {
	i := sort.Search(len(l.nodes), func(i int) bool { return tree.Base(l.nodes[i].path) >= name })
	if i < len(l.nodes) && tree.Base(l.nodes[i].path) == name {
		return &l.nodes[i]
	}
	return nil
}

// list reads a directory, once.
func (d *Dir) list(path string, v verdict) (*listing, error) {
	d.mu.Lock()
	l := d.lists[path]
	if l == nil {
		l = &listing{}
		d.lists[path] = l
	}
	d.mu.Unlock()
	l.once.Do(func() {
		l.err = d.readDir(l, path, v)
		l.loaded.Store(true)
	})
	return l, l.err
}

// forget drops what is known about an entry that turned out to be different, so that the next look is a fresh one.
func (d *Dir) forget(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.lone, path)
	delete(d.lists, tree.Parent(path))
	clear(d.walked)
}
