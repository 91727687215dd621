package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func keepLog(t *testing.T, s *Store, text string, ago time.Duration) string {
	t.Helper()
	l, err := s.NewLog()
	must(t, err)
	_, err = l.Write([]byte(text))
	must(t, err)
	path, err := l.Keep(time.Now())
	must(t, err)
	l.Drop() // harmless
	age(t, path, ago)
	return path
}

// The newest logs stay, up to a number, an age and a size.
func TestLogsAreBounded(t *testing.T) {
	s := openTest(t, Options{})
	old := keepLog(t, s, "old", 8*24*time.Hour)
	if data, err := os.ReadFile(old); err != nil || string(data) != "old" {
		t.Fatalf("the only log: %q, %v", data, err)
	}
	first := keepLog(t, s, "first", 2*time.Hour)
	if _, err := os.Stat(old); err == nil {
		t.Error("a log of last week is still there")
	}
	foreign := filepath.Join(filepath.Dir(first), "notes")
	must(t, os.WriteFile(foreign, nil, 0o600))
	for range logsKept {
		keepLog(t, s, "more", time.Hour)
	}
	if _, err := os.Stat(first); err == nil {
		t.Errorf("more than %d logs", logsKept)
	}
	large := keepLog(t, s, "", 0)
	must(t, os.Truncate(large, logsBytes+1))
	last := keepLog(t, s, "last", 0)
	left, err := os.ReadDir(filepath.Dir(last))
	must(t, err)
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if len(left) != 2 || left[0].Name() != filepath.Base(last) {
		t.Errorf("beside the last log and a file that is none: %s", strings.Join(names, " "))
	}
	mustBeSound(t, s)
}
