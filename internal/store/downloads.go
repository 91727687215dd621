package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// DownloadsDir is the directory of files fetched over http for ADD and contexts. Package buildctx fills it and removes from it
// what was not used for longest; nothing in the store refers to it, and every file of it can be lost.
const DownloadsDir = "http"

// ContextsDir is the directory of what was known of the files of contexts. It belongs to package buildctx, too.
const ContextsDir = "context"

const (
	downloadFile = "sha256-" // and the digest of its content
	downloadNote = "url-"    // and the digest of the URL: what is remembered of it
	downloadTemp = "tmp-"

	// A download that is written for longer than this was left by a dead process: nothing takes so long without a pause that
	// ends it.
	downloadAge = 24 * time.Hour
)

// downloads looks at the files that were fetched: what their names say of their content must be so.
func (c *check) downloads() error {
	entries, err := os.ReadDir(c.s.path(DownloadsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if c.ctx.Err() != nil {
			return c.ctx.Err()
		}
		path := c.s.path(DownloadsDir, e.Name())
		kind, detail := c.download(e, path)
		if kind == "" {
			continue
		}
		repair := func() error { return os.Remove(path) }
		if kind == Foreign {
			repair = nil
		}
		if err := c.report(Problem{Kind: kind, Path: path, Detail: detail}, repair); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) download(e fs.DirEntry, path string) (kind ProblemKind, detail string) {
	fi, err := e.Info()
	if err != nil {
		return "", "" // gone since
	}
	name := e.Name()
	hex, isFile := strings.CutPrefix(name, downloadFile)
	d := digest.NewDigestFromEncoded(digest.SHA256, hex)
	switch {
	case !fi.Mode().IsRegular():
		return Foreign, "no download"
	case strings.HasPrefix(name, downloadTemp):
		if time.Since(fi.ModTime()) > downloadAge {
			return Leftover, "of a download that was interrupted"
		}
	case isFile && d.Validate() == nil:
		if !c.o.Quick && !hashes(path, d) {
			return Damaged, "its digest is not its name"
		}
	case strings.HasPrefix(name, downloadNote):
		data, err := os.ReadFile(path)
		if err == nil && !json.Valid(data) {
			return Damaged, "what is remembered of a URL is not valid"
		}
	default:
		return Foreign, "no download"
	}
	return "", ""
}
