package snapshot

import (
	"slices"

	"golang.org/x/sys/unix"
)

// treeState is what a private tree was before a command ran. Whether a file changed since is told from these fields alone: the
// time of its last change of status (ctime) is set by the kernel with every change of content, owner, mode, links or attributes,
// and nobody can set it back.
type treeState struct {
	ino        uint64
	size       int64
	mtim, ctim unix.Timespec
	mode       uint32
	uid, gid   uint32
	// Of a directory: when it was made, because one that takes the place of another may get its inode; and what is in it, never nil.
	born unix.StatxTimestamp
	kids map[string]*treeState
}

// newState is the state of a directory that was not there.
var newState = &treeState{kids: map[string]*treeState{}}

func stateOf(st *unix.Stat_t) *treeState {
	s := &treeState{ino: st.Ino, size: st.Size, mtim: st.Mtim, ctim: st.Ctim, mode: st.Mode, uid: st.Uid, gid: st.Gid}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		s.kids = map[string]*treeState{}
	}
	return s
}

// same reports whether nothing about a file changed. A nil state is of a file that was not there.
func (s *treeState) same(st *unix.Stat_t) bool {
	return s != nil && s.ino == st.Ino && s.size == st.Size && s.mtim == st.Mtim && s.ctim == st.Ctim &&
		s.mode == st.Mode && s.uid == st.Uid && s.gid == st.Gid
}

// sameDir reports whether an open directory is the one that was there.
func (s *treeState) sameDir(fd int) bool {
	ino, born, err := birth(fd)
	return err == nil && ino == s.ino && born == s.born
}

// birth returns when an open directory was made, zero where the file system does not say.
func birth(fd int) (ino uint64, at unix.StatxTimestamp, err error) {
	var st unix.Statx_t
	if err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return 0, at, err
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		at = st.Btime
	}
	return st.Ino, at, nil
}

func (s *treeState) kid(name string) *treeState {
	if s == nil {
		return nil
	}
	return s.kids[name]
}

// merge adds to sorted names those that were there before.
func (s *treeState) merge(names []string) []string {
	if s == nil || len(s.kids) == 0 {
		return names
	}
	all := names
	for k := range s.kids {
		if _, ok := slices.BinarySearch(names, k); !ok {
			all = append(all, k)
		}
	}
	if len(all) > len(names) {
		slices.Sort(all)
	}
	return all
}

// scanState reads the state of everything below an open directory.
func scanState(fd int) (*treeState, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	s := stateOf(&st)
	var err error
	if _, s.born, err = birth(fd); err != nil {
		return nil, err
	}
	names, err := readNames(fd)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			s.kids[name] = stateOf(&st)
			continue
		}
		dir, err := openDirAt(fd, name)
		if err != nil {
			return nil, err
		}
		s.kids[name], err = scanState(dir)
		unix.Close(dir)
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// newest returns the latest change in a tree, and whether its file system counts more finely than seconds.
func (s *treeState) newest() (at unix.Timespec, fine bool) {
	at, fine = s.ctim, s.ctim.Nsec != 0
	for _, k := range s.kids {
		t, f := k.newest()
		if t.Sec > at.Sec || t.Sec == at.Sec && t.Nsec > at.Nsec {
			at = t
		}
		fine = fine || f
	}
	return at, fine
}
