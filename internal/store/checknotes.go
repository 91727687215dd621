package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// notes looks at the files that are opened or replaced without looking, because their content is never trusted: accounts, marks of
// blobs, partial downloads, logs. Whatever else has the name of one, a directory or a link, is in the way of every build.
func (c *check) notes() error {
	paths := []string{c.s.path(usageFile), c.s.path(trimFile)}
	for _, pattern := range []string{bootDir + "/*/*", partialDir + "/*", LogsDir + "/*"} {
		found, err := filepath.Glob(c.s.path(pattern))
		if err != nil {
			return err
		}
		paths = append(paths, found...)
	}
	for _, path := range paths {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		fi, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && fi.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return err
		}
		p := Problem{Kind: Damaged, Path: path, Detail: "it is no file"}
		if err := c.report(p, func() error { return removeAll(path) }); err != nil {
			return err
		}
	}
	return nil
}
