package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// LogsDir is the directory of what failed steps printed. Nothing in the store refers to it, and every file of it can be lost.
const LogsDir = "log"

// What is kept of logs: the newest, as far as they fit, and always the last one, however large it is.
const (
	logsKept    = 20
	logsBytes   = 1 << 30
	logsKeptFor = 7 * 24 * time.Hour
)

// Log is a file that is being written, for somebody to read after this process.
type Log struct {
	st *Store
	f  *tempFile
}

// NewLog starts a log. It ends with Keep or Drop.
func (s *Store) NewLog() (*Log, error) {
	f, err := s.newTemp()
	if err != nil {
		return nil, err
	}
	return &Log{s, f}, nil
}

// Write appends to the log.
func (l *Log) Write(p []byte) (int, error) { return l.f.Write(p) }

// Drop removes the log.
func (l *Log) Drop() { l.f.discard() }

// Keep makes the log a file that stays, and returns its path. Old ones go.
func (l *Log) Keep(now time.Time) (string, error) {
	dir := l.st.path(LogsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		l.Drop()
		return "", err
	}
	if err := l.f.close(false); err != nil { // a full disk may tell only now
		l.Drop()
		return "", err
	}
	path := filepath.Join(dir, now.UTC().Format("20060102T150405")+"-"+randomName()+".log")
	if err := l.f.rename(path); err != nil {
		l.Drop()
		return "", err
	}
	if err := pruneLogs(dir, filepath.Base(path), now); err != nil {
		return path, fmt.Errorf("remove old logs: %w", err)
	}
	return path, nil
}

// pruneLogs removes what is too much beside the log of that name. Clocks of files are coarse, so it is not asked which is the newest.
func pruneLogs(dir, last string, now time.Time) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var files []fs.FileInfo
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && filepath.Ext(e.Name()) == ".log" {
			files = append(files, fi)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { // newest first
		return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(b.Name(), a.Name()))
	})
	var sum int64
	kept := 0
	if fi, err := os.Lstat(filepath.Join(dir, last)); err == nil {
		sum, kept = fi.Size(), 1
	}
	for _, fi := range files {
		if fi.Name() == last {
			continue
		}
		sum += fi.Size()
		kept++
		if kept <= logsKept && sum <= logsBytes && now.Sub(fi.ModTime()) < logsKeptFor {
			continue
		}
		if err := os.Remove(filepath.Join(dir, fi.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
