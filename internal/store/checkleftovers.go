package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// leftovers looks for what dead processes left. Repair is what collection does.
func (c *check) leftovers() error {
	parents := []string{c.s.path(tmpDir), c.s.path(leaseDir)}
	kinds, err := c.s.idKinds()
	if err != nil {
		return err
	}
	for _, k := range kinds {
		parents = append(parents, c.s.path(localDir, k, localTmp))
	}
	for _, parent := range parents {
		if err := c.dead(parent); err != nil {
			return err
		}
	}
	if c.o.Repair {
		_, err = c.s.sweep()
	}
	return err
}

func (c *check) dead(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		if e.IsDir() {
			continue // it has a lock beside it, which tells
		}
		f, dead, err := lockExisting(path)
		if err != nil {
			return err
		}
		if !dead {
			continue
		}
		f.Close()
		p := Problem{Kind: Leftover, Path: path, Detail: "its owner is dead"}
		if err := c.report(p, func() error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// locks looks for locks whose holder is dead. A lock goes with the last descriptor, so something the holder started
// still has it; there is nothing to repair but to end that.
func (c *check) locks() error {
	entries, err := os.ReadDir(c.s.path(lockDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := c.s.path(lockDir, e.Name())
		f, free, err := lockExisting(path)
		if err != nil {
			return err
		}
		if free {
			f.Close()
			continue
		}
		h, ok := readHolderAt(path)
		if !ok || h.pidns != pidNamespace() || !errors.Is(syscall.Kill(h.pid, 0), syscall.ESRCH) {
			continue
		}
		p := Problem{Kind: Stuck, Path: path, Detail: fmt.Sprintf("lock %s is held for %s, which is dead; end what it started", h.lock, h)}
		if err := c.report(p, nil); err != nil {
			return err
		}
	}
	return nil
}

func readHolderAt(path string) (holderInfo, bool) {
	f, err := os.Open(path)
	if err != nil {
		return holderInfo{}, false
	}
	defer f.Close()
	return readHolder(f)
}
