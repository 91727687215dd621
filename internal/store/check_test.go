package store

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Each way of damaging a store is found, is repaired, and is gone then.
func TestCheckFindsAndRepairs(t *testing.T) {
	const image = "app:1"
	type state struct {
		s     *Store
		blob  digest.Digest
		layer digest.Digest // a blob of the image
		img   Name
	}
	for name, tc := range map[string]struct {
		damage func(t *testing.T, x state)
		want   string // the kinds found, in order
	}{
		"nothing":            {func(*testing.T, state) {}, ""},
		"truncated blob":     {func(t *testing.T, x state) { must(t, os.Truncate(x.s.BlobPath(x.blob), 3)) }, "damaged"},
		"changed blob":       {func(t *testing.T, x state) { must(t, os.WriteFile(x.s.BlobPath(x.blob), []byte("?"), 0o600)) }, "damaged"},
		"blob of an image":   {func(t *testing.T, x state) { must(t, os.Remove(x.s.BlobPath(x.layer))) }, "dangling dangling"},
		"manifest":           {func(t *testing.T, x state) { must(t, os.Remove(x.s.BlobPath(x.img.Descriptor.Digest))) }, "dangling dangling"},
		"truncated record":   {func(t *testing.T, x state) { must(t, os.Truncate(x.s.filePath(KindRecord, "r-a"), 9)) }, "damaged"},
		"rejected record":    {func(t *testing.T, x state) { must(t, x.s.Write(KindRecord, "bad", []byte("bad"))) }, "damaged"},
		"layer without blob": {func(t *testing.T, x state) { must(t, x.s.RemoveBlob(x.blob)) }, "dangling"},
		"record without layer": {func(t *testing.T, x state) {
			must(t, x.s.Remove(KindLayer, "l-a"))
		}, "dangling"},
		"index": {func(t *testing.T, x state) { must(t, x.s.Write(KindIndex, "bad", nil)) }, "damaged"},
		"name": {func(t *testing.T, x state) {
			must(t, os.WriteFile(x.s.filePath(KindName, image), []byte("x"), 0o600))
		}, "damaged stale"},
		"file in the wrong place": {func(t *testing.T, x state) {
			must(t, os.Rename(x.s.filePath(KindRecord, "r-a"), x.s.path(string(KindRecord), baseName(x.s.filePath(KindRecord, "r-a")[:len(x.s.filePath(KindRecord, "r-a"))-4]), "r-b")))
		}, "damaged"},
		"no index.json":    {func(t *testing.T, x state) { must(t, os.Remove(x.s.path(indexFile))) }, "damaged"},
		"stale index.json": {func(t *testing.T, x state) { must(t, os.WriteFile(x.s.path(indexFile), []byte(emptyIndex), 0o600)) }, "stale"},
		"download": {func(t *testing.T, x state) {
			must(t, os.Mkdir(x.s.path(DownloadsDir), 0o700))
			for name, text := range map[string]string{
				"sha256-" + digest.FromString("good").Encoded(): "good", "url-x": "{}", "tmp-new": "",
				"sha256-" + digest.FromString("bad").Encoded(): "worse", "url-y": "{", "tmp-old": "",
			} {
				must(t, os.WriteFile(x.s.path(DownloadsDir, name), []byte(text), 0o600))
			}
			old := time.Now().Add(-48 * time.Hour)
			must(t, os.Chtimes(x.s.path(DownloadsDir, "tmp-old"), old, old))
		}, "damaged leftover damaged"},
		"leftovers": {func(t *testing.T, x state) {
			must(t, os.WriteFile(x.s.path(leaseDir, "dead"), nil, 0o600))
			must(t, os.WriteFile(x.s.path(tmpDir, "dead.lock"), nil, 0o600))
			must(t, os.Mkdir(x.s.path(tmpDir, "dead"), 0o700))
			must(t, os.Rename(x.s.filePath(KindRecord, "r-a"), x.s.trashPath(&entity{ref: Ref{Kind: KindRecord}, path: x.s.filePath(KindRecord, "r-a")})))
		}, "leftover leftover leftover"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTest(t, Options{})
			x := state{s: s, blob: step(t, s, "a", time.Hour), layer: mustBlob(t, s, []byte("layer"))}
			desc, err := putImage(s, []byte("layer"))
			must(t, err)
			x.img = Name{Descriptor: desc, Origin: Built, Complete: true}
			must(t, s.SetName(image, x.img))
			tc.damage(t, x)
			o := CheckOptions{
				References: testReferences,
				Verify: func(_ Kind, _ string, data []byte) error {
					if string(data) == "bad" {
						return errors.New("bad")
					}
					return nil
				},
				VerifyIndex: func(string) error { return errors.New("bad") },
			}
			ps, err := s.Check(context.Background(), o)
			must(t, err)
			if kinds(ps) != tc.want {
				t.Errorf("found %v", ps)
			}
			o.Repair = true
			ps, err = s.Check(context.Background(), o)
			must(t, err)
			for _, p := range ps {
				if !p.Repaired || p.Path == "" || strings.HasPrefix(p.Path, "/") {
					t.Errorf("not repaired: %v", p)
				}
			}
			o.Repair = false
			ps, err = s.Check(context.Background(), o)
			must(t, err)
			if len(ps) != 0 {
				t.Errorf("after the repair: %v", ps)
			}
		})
	}
}

// A lock can outlive its holder when a process that it started has the descriptor.
func TestCheckNamesStuckLocks(t *testing.T) {
	s := openTest(t, Options{})
	f, ok, err := lockFile(s.lockPath("step-x"))
	if err != nil || !ok {
		t.Fatal(err)
	}
	defer f.Close()
	dead := exec.Command("true")
	must(t, dead.Run())
	text := strings.Replace(string(s.holderText("step-x")), "pid "+itoa(os.Getpid()), "pid "+itoa(dead.Process.Pid), 1)
	_, err = f.WriteString(text)
	must(t, err)
	ps, err := s.Check(context.Background(), CheckOptions{})
	must(t, err)
	if kinds(ps) != "stuck" || !strings.Contains(ps[0].Detail, "step-x") {
		t.Errorf("found %v", ps)
	}
	must(t, f.Truncate(0))
}

// A directory in the place of a file is found and repaired, and does not keep the file from being written again.
func TestDirectoryInAFilesPlace(t *testing.T) {
	for _, repair := range []bool{true, false} {
		s := openTest(t, Options{})
		d := mustBlob(t, s, []byte("content"))
		must(t, s.Write(KindRecord, "r", []byte("blob "+d.String()+"\n")))
		for _, path := range []string{s.BlobPath(d), s.filePath(KindRecord, "r")} {
			must(t, os.Remove(path))
			must(t, os.Mkdir(path, 0o700))
			must(t, os.WriteFile(path+"/x", []byte("x"), 0o600))
		}
		var damaged *DamagedError
		if _, err := s.Read(KindRecord, "r"); !errors.As(err, &damaged) || s.HasBlob(d, -1) {
			t.Errorf("read as %v, %v", err, s.HasBlob(d, -1))
		}
		if repair {
			ps, err := s.Check(context.Background(), CheckOptions{Repair: true})
			must(t, err)
			if kinds(ps) != "damaged damaged" || !ps[0].Repaired || !ps[1].Repaired {
				t.Errorf("found %v", ps)
			}
		}
		mustBlob(t, s, []byte("content"))
		must(t, s.Write(KindRecord, "r", []byte("blob "+d.String()+"\n")))
		if b, err := readBlob(s, d); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// A store of which only the version is gone, which a copy that broke off leaves, is taken for one whose making was interrupted.
func TestVersionLost(t *testing.T) {
	s := openTest(t, Options{})
	d := mustBlob(t, s, []byte("content"))
	_, err := s.SecretKey()
	must(t, err)
	for _, dir := range []string{DownloadsDir, ContextsDir} {
		must(t, os.Mkdir(s.path(dir), 0o700))
	}
	must(t, os.Remove(s.path(versionFile)))
	again, err := Open(s.dir, Options{})
	must(t, err)
	if b, err := readBlob(again, d); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}

// What is written without looking must be a file, or no build gets past it.
func TestCheckRepairsNotes(t *testing.T) {
	s := openTest(t, Options{})
	d := mustBlob(t, s, []byte("marked"))
	paths := []string{s.path(usageFile), s.path(trimFile), s.boot.dir(s) + "/" + d.Encoded(), s.partialPath(d), s.path(LogsDir, "x.log")}
	for i, path := range paths {
		must(t, os.RemoveAll(path))
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		if i%2 == 0 {
			must(t, os.MkdirAll(path+"/x", 0o700))
		} else {
			must(t, os.Symlink("/nothing/here", path))
		}
	}
	problems, err := s.Check(t.Context(), CheckOptions{Repair: true})
	must(t, err)
	repaired := 0
	for _, p := range problems {
		if p.Kind == Damaged && p.Repaired {
			repaired++
		}
	}
	if repaired != len(paths) {
		t.Errorf("%d of %d were repaired: %v", repaired, len(paths), problems)
	}
	must(t, s.NoteTrim(TrimNote{}))
	must(t, s.counted(0, 1, 0))
	w, err := s.NewDownload(t.Context(), d)
	must(t, err)
	w.Discard()
	must(t, s.boot.mark(s, d))
}
