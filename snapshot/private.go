package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"build/internal/store"
	"build/internal/tree"
)

// PrivateTree is a directory with everything a chain of layers holds, for one command to change, where there is no overlay file
// system. It is nobody else's while the command runs; afterwards the next step of the same stage goes on with it. No two names in
// it are one file when the command starts: as on an overlay, a write reaches one name.
type PrivateTree struct {
	Dir string

	l       *Layers
	chain   []digest.Digest
	state   *treeState
	release func()
	inspect Inspector
}

// BeginTree returns a tree of the chain: one that a step before left, completed by the layers it lacks, or a new one.
func (l *Layers) BeginTree(ctx context.Context, chain []digest.Digest) (*PrivateTree, error) {
	t := l.idleTree(chain)
	for {
		var err error
		if t == nil {
			if t, err = l.newPrivateTree(); err != nil {
				return nil, fmt.Errorf("make a private tree: %w", err)
			}
		}
		err = t.complete(ctx, chain)
		if err == nil {
			err = waitForTick(ctx, t.state)
		}
		if err == nil {
			return t, nil
		}
		t.Discard()
		if !errors.Is(err, errClockSetBack) {
			return nil, fmt.Errorf("make a private tree: %w", err)
		}
		t = nil
	}
}

// errClockSetBack says that the files of a tree are from the future, so that their times tell nothing.
var errClockSetBack = errors.New("the clock of this machine was set back")

// idleTree takes the tree that has most of a chain already, and nothing else.
func (l *Layers) idleTree(chain []digest.Digest) *PrivateTree {
	l.mu.Lock()
	defer l.mu.Unlock()
	best := -1
	for i, t := range l.idle {
		if len(t.chain) <= len(chain) && slices.Equal(t.chain, chain[:len(t.chain)]) && (best < 0 || len(t.chain) > len(l.idle[best].chain)) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	t := l.idle[best]
	l.idle = slices.Delete(l.idle, best, best+1)
	return t
}

func (l *Layers) newPrivateTree() (*PrivateTree, error) {
	dir, release, err := l.st.LocalTemp(l.idKind)
	if err != nil {
		return nil, err
	}
	t := &PrivateTree{Dir: dir + "/" + store.ContentDir, l: l, release: release}
	if err := os.Mkdir(t.Dir, 0o755); err != nil {
		t.Discard()
		return nil, err
	}
	return t, nil
}

// complete unpacks what the tree lacks of a chain, and looks at the result.
func (t *PrivateTree) complete(ctx context.Context, chain []digest.Digest) error {
	if len(t.chain) == len(chain) && t.state != nil {
		return nil
	}
	root, err := os.Open(t.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, d := range chain[len(t.chain):] {
		if err := t.l.unpackOnto(ctx, root, d); err != nil {
			return fmt.Errorf("unpack layer %s: %w", d, err)
		}
	}
	t.chain = slices.Clone(chain)
	t.state, err = scanState(int(root.Fd()))
	return err
}

// unpackOnto applies one layer to a tree of those below it.
func (l *Layers) unpackOnto(ctx context.Context, root *os.File, d digest.Digest) error {
	x, err := l.Index(ctx, d)
	if err != nil {
		return err
	}
	a := newApplier(root, l.owners)
	a.merged = true
	if err := makeRoom(a, x); err != nil {
		return err
	}
	r, err := l.openTar(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = scanLayer(ctx, r, a, nil)
	return err
}

// makeRoom takes away what a layer removes or replaces. It is known from the index before the first byte of the tar is read, in
// which deletions may come after what takes the place of the deleted.
func makeRoom(a *applier, x *tree.Index) error {
	for e, err := range x.Subtree("") {
		if err != nil {
			return err
		}
		if err := a.makeRoomFor(&e); err != nil {
			return &entryError{e.Path, err}
		}
	}
	return nil
}

func (a *applier) makeRoomFor(e *tree.Entry) error {
	dir, base := splitPath(e.Path)
	if e.Path == "" {
		base = "."
	}
	parent, err := openBeneath(a.root, dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return err
	}
	if e.Type != tree.Dir || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return removeAll(parent, base)
	}
	if e.Implied {
		// It stays what the layers below made it, also its time.
		a.times[e.Path] = time.Unix(st.Mtim.Unix())
	}
	if !e.Opaque {
		return nil
	}
	fd, err := openDirAt(parent, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	for _, n := range names {
		if err == nil {
			err = removeAll(fd, n)
		}
	}
	return err
}

// secondFile makes what is a hard link in the layer a file of its own.
func (a *applier) secondFile(from int, name string, parent int, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		_, err := a.make(parent, base, func() error { return unix.Linkat(from, name, parent, base, 0) })
		return err
	}
	src, err := openAt(from, name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	fd := -1
	create := func() (err error) {
		fd, err = openAt(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		return err
	}
	if _, err := a.make(parent, base, create); err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := copyContent(fd, src); err != nil {
		return err
	}
	e := statEntry("", &st)
	if e.Xattrs, _, err = readXattrs(src, tree.File); err != nil {
		return err
	}
	if err := a.owners.read(src, e); err != nil {
		return err
	}
	if err := a.metadata(fd, e); err != nil {
		return err
	}
	if e.Type != tree.File {
		if err := a.owners.setDevice(parent, base, e); err != nil {
			return err
		}
	}
	return setTimes(parent, base, e.ModTime)
}

// copyContent copies a file, sharing its blocks where the file system can.
func copyContent(to, from int) error {
	if unix.IoctlFileClone(to, from) == nil {
		return nil
	}
	dst, src := os.NewFile(uintptr(dup(to)), "copy"), os.NewFile(uintptr(dup(from)), "original")
	defer dst.Close()
	defer src.Close()
	_, err := io.Copy(dst, src) // copy_file_range, where that works
	return err
}

func dup(fd int) int {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return n
}

// Commit turns what the command changed into a layer. The tree goes on as one of the chain with that layer.
func (t *PrivateTree) Commit(ctx context.Context) (Layer, error) {
	l, err := t.commit(ctx)
	if err != nil {
		t.Discard()
		return Layer{}, fmt.Errorf("commit: %w", err)
	}
	t.chain = append(t.chain, l.DiffID)
	t.Leave()
	return l, nil
}

// Leave gives the tree, in which nothing changed since it was looked at, to whoever begins with the same chain. Discard does
// nothing then.
func (t *PrivateTree) Leave() {
	next := *t
	next.inspect, t.release = nil, nil
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	t.l.idle = append(t.l.idle, &next)
}

func (t *PrivateTree) commit(ctx context.Context) (Layer, error) {
	base, err := t.l.Chain(ctx, t.chain)
	if err != nil {
		return Layer{}, err
	}
	root, err := os.Open(t.Dir)
	if err != nil {
		return Layer{}, err
	}
	defer root.Close()
	w, err := t.l.NewWriter(ctx)
	if err != nil {
		return Layer{}, err
	}
	defer w.Abort()
	w.Inspect(t.inspect)
	d := &differ{ctx: ctx, base: base, w: w, owners: t.l.owners, first: map[inode]firstName{}, private: true}
	if err := d.diff(root, t.state); err != nil {
		return Layer{}, err
	}
	l, err := w.Commit()
	if err != nil {
		return Layer{}, err
	}
	if err := t.separate(root, d.links); err != nil {
		return Layer{}, fmt.Errorf("separate hard links: %w", err)
	}
	t.state, err = scanState(int(root.Fd()))
	return l, err
}

// separate makes second names that the command made files of their own: they are in a layer below now.
func (t *PrivateTree) separate(root *os.File, links []string) error {
	a := newApplier(root, t.l.owners)
	for _, p := range links {
		dir, base := splitPath(p)
		parent, err := openBeneath(a.root, dir)
		if err != nil {
			return err
		}
		var before unix.Stat_t
		err = unix.Fstat(parent, &before)
		if err == nil {
			err = a.separateOne(parent, base)
		}
		if err == nil {
			err = setTimes(parent, ".", time.Unix(before.Mtim.Unix()))
		}
		unix.Close(parent)
		if err != nil {
			return err
		}
	}
	return nil
}

// separateOne puts a copy of a file in its place. It has room: the name is one that layers cannot hold.
func (a *applier) separateOne(parent int, base string) error {
	const beside = whiteoutPrefix + whiteoutPrefix + "separate"
	if err := a.secondFile(parent, base, parent, beside); err != nil {
		return err
	}
	return unix.Renameat(parent, beside, parent, base)
}

// Discard gives the tree up. It may be called twice.
func (t *PrivateTree) Discard() {
	if t.release != nil {
		t.release()
		t.release = nil
	}
}

// DropTrees gives up the trees that wait for another step, and directories that no step asked for.
func (l *Layers) DropTrees() {
	l.dropEarly()
	l.mu.Lock()
	idle := l.idle
	l.idle = nil
	l.mu.Unlock()
	for _, t := range idle {
		t.Discard()
	}
}

// waitForTick returns when a change made from now on gets another time than all that are in the state: the kernel stamps files with
// a clock that stands still for some milliseconds, and some file systems keep only seconds.
func waitForTick(ctx context.Context, s *treeState) error {
	last, fine := s.newest()
	if !fine {
		last = unix.Timespec{Sec: last.Sec + 1, Nsec: -1}
	}
	for {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now); err != nil {
			return err
		}
		if now.Sec > last.Sec || now.Sec == last.Sec && now.Nsec > last.Nsec {
			return nil
		}
		if now.Sec < last.Sec-1 {
			return errClockSetBack
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}
