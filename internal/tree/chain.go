package tree

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Located is an entry of a merged tree and the layer (counted from the bottom) it comes from. For an implied directory
// that is the layer whose metadata it takes.
type Located struct {
	Entry
	Layer int
}

// Chain is the file system that layers on top of each other make, answered from their indexes. It may be used concurrently.
//
// It relies on what Writer enforces: in every layer, an entry's parents are entries of that layer too.
type Chain struct {
	layers []*Index

	mu   sync.Mutex
	dirs map[string][]int
}

// cachedDirs bounds how many directories a Chain remembers.
const cachedDirs = 8192

// NewChain returns the chain of layers, bottom first. No layers make an empty root directory.
func NewChain(layers []*Index) *Chain {
	return &Chain{layers: layers, dirs: make(map[string][]int)}
}

// Layers returns the indexes of the chain, bottom first; the caller does not change them.
func (c *Chain) Layers() []*Index { return c.layers }

// defaultRoot is the root directory when no layer has one, and the metadata of a directory nobody described.
func defaultDir(path string) Entry {
	return Entry{Path: path, Type: Dir, Mode: 0o755, Offset: -1, ModTime: time.Unix(0, 0).UTC()}
}

// stops reports whether e hides what the layers below have at its path: in it, for a directory, and itself otherwise.
func stops(e *Entry) bool { return e.Type != Dir || e.Opaque }

// merge folds the entries at one path, top first, into what is seen there.
type merge struct {
	top     Located
	found   bool
	implied bool // top is a directory still looking for its metadata
	done    bool // nothing below matters
}

func (m *merge) add(e *Entry, layer int) {
	switch {
	case m.done:
		return
	case !m.found:
		m.top, m.found = Located{*e, layer}, true
		m.implied = e.Implied
	case e.Type == Dir && m.implied && !e.Implied:
		opaque := m.top.Opaque
		m.top, m.implied = Located{*e, layer}, false
		m.top.Opaque = opaque
	}
	m.done = stops(e)
}

// result returns what is seen; false when there is nothing.
func (m *merge) result() (Located, bool) {
	if !m.found || m.top.Type == Whiteout {
		return Located{}, false
	}
	if m.implied {
		opaque, at := m.top.Opaque, m.top.ModTime
		m.top.Entry = defaultDir(m.top.Path)
		m.top.Implied, m.top.Opaque, m.top.ModTime = true, opaque, at
	}
	return m.top, true
}

// dirLayers returns the layers, top first, whose entries below the directory dir can be seen; none when there is no such directory.
func (c *Chain) dirLayers(dir string) ([]int, error) {
	c.mu.Lock()
	have, ok := c.dirs[dir]
	c.mu.Unlock()
	if ok {
		return have, nil
	}
	above, err := c.around(dir)
	if err != nil {
		return nil, err
	}
	for _, layer := range above {
		e, ok, err := c.layers[layer].Lookup(dir)
		if err != nil {
			return nil, c.failed(dir, layer, err)
		}
		if !ok && dir != "" {
			continue
		}
		if ok && e.Type != Dir {
			break
		}
		have = append(have, layer) // a root needs no entry
		if e.Opaque {
			break
		}
	}
	c.mu.Lock()
	if len(c.dirs) >= cachedDirs {
		clear(c.dirs)
	}
	c.dirs[dir] = have
	c.mu.Unlock()
	return have, nil
}

// around returns the layers that can say something about path: those that have its parent.
func (c *Chain) around(path string) ([]int, error) {
	if path != "" {
		return c.dirLayers(Parent(path))
	}
	all := make([]int, len(c.layers))
	for i := range all {
		all[i] = len(all) - 1 - i
	}
	return all, nil
}

func (c *Chain) failed(path string, layer int, err error) error {
	return fmt.Errorf("looking up /%s in layer %d: %w", path, layer+1, err)
}

// Lstat returns what is at path, a clean relative path none of whose parents is taken for a symlink. The root always exists.
func (c *Chain) Lstat(path string) (Located, bool, error) {
	layers, err := c.around(path)
	if err != nil {
		return Located{}, false, err
	}
	var m merge
	for _, layer := range layers {
		e, ok, err := c.layers[layer].Lookup(path)
		if err != nil {
			return Located{}, false, c.failed(path, layer, err)
		}
		if ok {
			m.add(&e, layer)
		}
		if m.done || m.found && !m.implied {
			break
		}
	}
	l, ok := m.result()
	if !ok && path == "" {
		return Located{Entry: defaultDir("")}, true, nil
	}
	return l, ok, nil
}

// ErrLoop is wrapped by the error about a path that leads through too many symlinks.
var ErrLoop = errors.New("too many levels of symbolic links")

// maxLinks is how many symlinks one path may lead through.
const maxLinks = 255

// Resolve returns the clean relative path that path leads to when symlinks are followed inside the root, as a process
// whose root this is would; ".." never leads out of it. The last component is followed only if followLast says so.
// Components that do not exist are kept as they are.
func (c *Chain) Resolve(path string, followLast bool) (string, error) {
	return Resolve(path, followLast, func(p string) (Entry, bool, error) {
		l, ok, err := c.Lstat(p)
		return l.Entry, ok, err
	})
}

// Resolve is Chain.Resolve for anything that can tell what is at a path.
func Resolve(path string, followLast bool, lstat func(path string) (Entry, bool, error)) (string, error) {
	done, rest := "", path
	missing := false // below something that does not exist there is nothing to look at
	for links := 0; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		last := strings.Trim(rest, "/") == ""
		switch name {
		case "", ".":
			continue
		case "..":
			done, missing = Parent(done), false
			continue
		}
		next := Join(done, name)
		if len(next) > MaxPath {
			return "", fmt.Errorf("following %.80q…: %w: longer than %d bytes", path, ErrPath, MaxPath)
		}
		if !missing && (!last || followLast) {
			e, ok, err := lstat(next)
			if err != nil {
				return "", err
			}
			if ok && e.Type == Symlink {
				if links++; links > maxLinks {
					return "", fmt.Errorf("following %q: %w", path, ErrLoop)
				}
				if strings.HasPrefix(e.Link, "/") {
					done = ""
				}
				rest = e.Link + "/" + rest
				continue
			}
			missing = !ok
		}
		done = next
	}
	return done, nil
}
