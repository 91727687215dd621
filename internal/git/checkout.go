package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CheckoutOptions say what of a commit is wanted, and how.
type CheckoutOptions struct {
	Subdir     string // directory whose content is laid out, "" for all; no component may be a symlink
	KeepGitDir bool   // make a .git with this one commit; only without Subdir
	Submodules bool
	CommitTime bool   // files get the time of the commit rather than that of the checkout
	Temp       string // private empty directory for what is fetched; left behind
}

// Result is what was laid out.
type Result struct {
	Commit string
	Time   time.Time // of the commit
}

const (
	maxModules = 32      // submodules in submodules
	maxFetches = 4096    // submodules altogether
	maxDepth   = 2048    // directories in directories, as in git (core.maxTreeDepth)
	maxEntries = 8 << 20 // files and directories: a small repository can describe any number
)

// Checkout fetches a target and lays its files out in dir, an empty directory. Files have mode 0644 or 0755, directories
// 0755. Nothing is written outside of dir and of o.Temp.
func (r *Remote) Checkout(ctx context.Context, t Target, q Query, dir string, o CheckoutOptions) (*Result, error) {
	objs, err := r.fetch(ctx, t, o.Temp)
	if err != nil {
		return nil, err
	}
	defer objs.close()
	c, err := objs.peel(ctx, t.Object)
	if err != nil {
		return nil, r.about(ctx, err)
	}
	if q.Checksum != "" && !strings.HasPrefix(t.Object, q.Checksum) && !strings.HasPrefix(c.id, q.Checksum) {
		return nil, r.refError("expected checksum to match %s, got %s", q.Checksum, t.Object)
	}
	if t.Commit != "" && c.id != t.Commit {
		return nil, r.refError("%s is commit %s, not %s as the server said", t.Object, c.id, t.Commit)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	w := &checkout{ctx: ctx, root: root, o: o, left: maxEntries, fd: -1}
	if o.CommitTime {
		w.time = c.time
	}
	if err := w.top(r, objs, c, path.Clean("/" + o.Subdir)[1:]); err != nil {
		return nil, r.about(ctx, err)
	}
	if o.KeepGitDir && (o.Subdir == "" || path.Clean("/"+o.Subdir) == "/") {
		g := gitDir{ctx: ctx, root: root, r: r, o: objs, t: t, c: c, index: w.index}
		if err := g.write(); err != nil {
			return nil, fmt.Errorf("write .git: %w", err)
		}
	}
	return &Result{Commit: c.id, Time: c.time}, w.finish()
}

// checkout lays out the files of one commit and of its submodules.
type checkout struct {
	ctx   context.Context
	root  *os.Root
	o     CheckoutOptions
	time  time.Time // zero: as it comes
	left  int
	dirs  []string // made, parents first
	index []indexEntry
	fd    int
	temps int
}

// source is where the files of a directory come from.
type source struct {
	r     *Remote
	objs  *objects
	root  string // id of the tree at the repository's top
	mods  map[string]submodule
	read  bool // mods is known
	depth int
}

// close gives back what was fetched of a submodule. Errors do not matter: the directory is a temporary one.
func (s *source) close() {
	s.objs.close()
	_ = os.RemoveAll(s.objs.dir)
}

// place is a directory of a repository.
type place struct {
	src   *source
	id    string
	at    string      // path from the repository's top
	attrs *attributes // of the directories above
}

var errNotDir = errors.New("not a directory")

// top finds the wanted directory and lays out its content.
func (w *checkout) top(r *Remote, objs *objects, c commit, subdir string) error {
	d, err := w.root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	w.fd = int(d.Fd())
	if err := d.Chmod(0o755); err != nil {
		return err
	}
	w.dirs = append(w.dirs, ".")
	at := place{src: &source{r: r, objs: objs, root: c.tree}, id: c.tree}
	for part := range strings.SplitSeq(subdir, "/") {
		if part == "" {
			break
		}
		if at, err = w.into(at, part); err != nil {
			if errors.Is(err, errNotDir) || errors.Is(err, os.ErrNotExist) {
				return r.refError("subdir %s: %s: %v", subdir, part, err)
			}
			return err
		}
		if at.at == "" {
			defer at.src.close()
		}
	}
	return w.tree(at, "")
}

// entries reads a directory, and what it says about its files.
func (w *checkout) entries(p place) ([]treeEntry, *attributes, error) {
	entries, err := p.src.objs.tree(w.ctx, p.id)
	if err != nil {
		return nil, nil, err
	}
	attrs, err := p.src.objs.attributesOf(w.ctx, entries, p.at, p.attrs)
	return entries, attrs, err
}

// into goes one directory down. Where a submodule begins, the place is the top of that.
func (w *checkout) into(p place, part string) (place, error) {
	entries, attrs, err := w.entries(p)
	if err != nil {
		return place{}, err
	}
	i := slices.IndexFunc(entries, func(e treeEntry) bool { return e.name == part })
	if i < 0 {
		return place{}, os.ErrNotExist
	}
	e, at := entries[i], path.Join(p.at, part)
	switch e.mode & modeType {
	case modeDir:
		return place{p.src, e.id, at, attrs}, nil
	case modeModule:
		if !w.o.Submodules {
			return place{}, os.ErrNotExist
		}
		sub, err := w.module(p.src, at, e.id)
		if err != nil {
			return place{}, err
		}
		if sub == nil {
			return place{}, os.ErrNotExist
		}
		return place{src: sub, id: sub.root}, nil
	}
	return place{}, errNotDir
}

// tree lays out a directory; to is where it goes.
func (w *checkout) tree(p place, to string) error {
	if len(to) >= unix.PathMax || strings.Count(to, "/") >= maxDepth {
		return fmt.Errorf("the commit has a path that is too long: %.60s…", to)
	}
	entries, attrs, err := w.entries(p)
	if err != nil {
		return err
	}
	p.attrs = attrs
	for _, e := range entries {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		if w.left--; w.left < 0 {
			return fmt.Errorf("the commit has more than %d files", maxEntries)
		}
		if err := w.entry(p, e, path.Join(to, e.name)); err != nil {
			return err
		}
	}
	return nil
}

// entry lays out one entry of the directory p.
func (w *checkout) entry(p place, e treeEntry, to string) error {
	src, at := p.src, path.Join(p.at, e.name)
	switch e.mode & modeType {
	case modeDir:
		if err := w.mkdir(to); err != nil {
			return err
		}
		return w.tree(place{src, e.id, at, p.attrs}, to)
	case modeModule:
		if err := w.mkdir(to); err != nil {
			return err
		}
		w.record(src, to, e, 0)
		if !w.o.Submodules {
			return nil
		}
		sub, err := w.module(src, at, e.id)
		if sub == nil || err != nil {
			return err
		}
		defer sub.close()
		return w.tree(place{src: sub, id: sub.root}, to)
	case modeLink:
		target, err := src.objs.read(w.ctx, e.id, blobKind)
		if err != nil {
			return err
		}
		if len(target) == 0 || len(target) >= unix.PathMax || strings.ContainsRune(string(target), 0) {
			return fmt.Errorf("%s is a symlink to an impossible place", at)
		}
		w.record(src, to, e, int64(len(target)))
		if err := w.root.Symlink(string(target), to); err != nil {
			return err
		}
		return w.touch(to)
	case modeRegular:
		conv, err := p.attrs.conversion(at)
		if err != nil {
			return err
		}
		return w.file(src, e, conv, to)
	}
	return fmt.Errorf("%s has an unknown mode %o", at, e.mode)
}

func (w *checkout) mkdir(to string) error {
	if err := w.root.Mkdir(to, 0o755); err != nil {
		return err
	}
	w.dirs = append(w.dirs, to)
	return w.root.Chmod(to, 0o755) // whatever the umask says
}

func (w *checkout) file(src *source, e treeEntry, conv *conversion, to string) error {
	k, size, blob, err := src.objs.open(w.ctx, e.id)
	if err != nil {
		return err
	}
	defer blob.Close()
	if k != blobKind {
		return fmt.Errorf("%s is a %s, not a file", to, k)
	}
	var r io.Reader = &ctxReader{w.ctx, blob}
	if conv != nil {
		if size > maxInMemory {
			return fmt.Errorf("%s: .gitattributes wants it converted, but it is too large: %d bytes", to, size)
		}
		data, err := readWhole(r, e.id, size)
		if err != nil {
			return err
		}
		data = conv.apply(data, e.id)
		r, size = bytes.NewReader(data), int64(len(data))
	}
	mode := os.FileMode(0o644)
	if e.mode&0o100 != 0 {
		mode = 0o755
	}
	f, err := w.root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, r)
	if err == nil && n != size {
		err = fmt.Errorf("object %s is damaged", e.id)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	w.record(src, to, e, size)
	return w.touch(to)
}

// record notes a file of the repository itself for the index.
func (w *checkout) record(src *source, to string, e treeEntry, size int64) {
	if w.o.KeepGitDir && src.depth == 0 {
		w.index = append(w.index, indexEntry{path: to, mode: e.mode, id: e.id, size: size})
	}
}

// touch gives a file the time of the commit when that is wanted.
func (w *checkout) touch(to string) error {
	if w.time.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(w.time.UnixNano())
	return unix.UtimesNanoAt(w.fd, to, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// finish sets the times of the directories, which nothing is put into any more.
func (w *checkout) finish() error {
	if w.time.IsZero() {
		return nil
	}
	for _, dir := range slices.Backward(w.dirs) {
		if err := w.root.Chtimes(dir, w.time, w.time); err != nil {
			return err
		}
	}
	return nil
}

// module fetches the commit of a submodule; nil when .gitmodules says not to.
func (w *checkout) module(src *source, at, id string) (*source, error) {
	if err := w.modules(src); err != nil {
		return nil, err
	}
	m, ok := src.mods[at]
	switch {
	case !ok || m.url == "":
		return nil, src.r.refError("no url found for submodule path %s in .gitmodules", at)
	case m.update == "none":
		return nil, nil
	case src.depth >= maxModules:
		return nil, src.r.refError("submodule %s: submodules are nested too deeply", at)
	case w.temps >= maxFetches:
		return nil, src.r.refError("submodule %s: there are more than %d submodules", at, maxFetches)
	}
	raw, err := src.r.relative(m.url)
	if err != nil {
		return nil, fmt.Errorf("submodule %s: %w", at, err)
	}
	sub, err := Open(raw, src.r.cfg)
	if err != nil {
		return nil, fmt.Errorf("submodule %s: %w", at, err)
	}
	w.temps++
	dir := fmt.Sprintf("%s/module-%d", w.o.Temp, w.temps)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	objs, err := sub.fetch(w.ctx, Target{Object: id}, dir)
	if err != nil {
		return nil, fmt.Errorf("submodule %s: %w", at, err)
	}
	c, err := objs.peel(w.ctx, id)
	if err != nil {
		objs.close()
		return nil, fmt.Errorf("submodule %s: %w", at, sub.about(w.ctx, err))
	}
	return &source{r: sub, objs: objs, root: c.tree, depth: src.depth + 1}, nil
}

// modules reads .gitmodules at the top of the repository, once.
func (w *checkout) modules(src *source) error {
	if src.read {
		return nil
	}
	src.read = true
	entries, err := src.objs.tree(w.ctx, src.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.name != ".gitmodules" {
			continue
		}
		if e.mode&modeType != modeRegular { // a symlink could name a file of somebody else
			return src.r.refError(".gitmodules is not a regular file")
		}
		data, err := src.objs.read(w.ctx, e.id, blobKind)
		if err != nil {
			return err
		}
		src.mods = parseModules(string(data))
	}
	return nil
}

// relative makes the URL of a submodule absolute: ./ and ../ are relative to the repository.
func (r *Remote) relative(raw string) (string, error) {
	if !strings.HasPrefix(raw, "./") && !strings.HasPrefix(raw, "../") {
		if !strings.Contains(raw, "://") && scpForm().FindString(raw) == "" {
			return "", fmt.Errorf("%q is not a URL of a remote repository: refused", raw)
		}
		return raw, nil
	}
	u := *r.url
	rest, base := raw, strings.TrimSuffix(u.Path, "/")
	for {
		if s, ok := strings.CutPrefix(rest, "./"); ok {
			rest = s
		} else if s, ok := strings.CutPrefix(rest, "../"); ok {
			rest = s
			i := strings.LastIndexByte(base, '/')
			if i < 0 {
				return "", fmt.Errorf("%q leads out of the host", raw)
			}
			base = base[:i]
		} else {
			break
		}
	}
	u.Path, u.RawPath, u.User = base+"/"+strings.TrimSuffix(rest, "/"), "", r.auth
	if !strings.HasPrefix(u.Path, "/") { // user@host:path
		return (&url.URL{Scheme: "ssh", User: u.User, Host: u.Host}).String() + "/" + u.Path, nil
	}
	return u.String(), nil
}
