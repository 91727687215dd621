package executor

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// BindTree is a path in a tree of layers other than the root's. Sub is resolved as if the tree were the root. The tree has an
// upper directory of its own, so that what a command writes there, if it may, is nobody else's.
type BindTree struct {
	Overlay  Overlay
	Sub      string `json:",omitempty"`
	ReadOnly bool   `json:",omitempty"`
}

func (BindTree) source() {}

// bindTree mounts the tree, which is attached nowhere, and copies the mount of the path in it.
func (s *sources) bindTree(target string, b BindTree, sec Security) error {
	tree, _, err := mountOverlay(b.Overlay, int(rootAttrs(sec)))
	if err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	// The copy of a path of a mount that is attached nowhere belongs to that mount, so it stays open with the others.
	s.keep(tree, target+" (tree)")
	err = s.bindIn(tree, target, b, sec)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// Kernels before 6.15 copy only what is attached.
	return inMountNamespace(func() error {
		err := unix.MoveMount(tree, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH)
		if err != nil {
			return fmt.Errorf("attach the source: %w", err)
		}
		return s.bindIn(tree, target, b, sec)
	})
}

func (s *sources) bindIn(tree int, target string, b BindTree, sec Security) error {
	fd, err := openInRoot(tree, b.Sub, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("open %s in the source: %w", b.Sub, err)
	}
	defer unix.Close(fd)
	return s.bindFD(target, fd, b.ReadOnly, sec)
}
