package store

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// smallDisk mounts a file system of so many bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	testenv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		testenv.Skip(t, "the right to mount a tmpfs ("+err.Error()+")")
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fill leaves so many bytes of the disk free.
func fill(t *testing.T, path string, free int64) {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(path[:len(path)-len(baseName(path))], &st))
	size := int64(st.Bavail)*st.Bsize - free
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	if size > 0 {
		must(t, unix.Fallocate(int(f.Fd()), 0, 0, size))
	}
}

// everything does one of everything that writes, and stops at the first error.
func everything(s *Store) error {
	l, err := s.Lease()
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Add(KindRecord, "r-new"); err != nil {
		return err
	}
	d, err := putBlob(s, randomBytes(3, 30_000))
	if err != nil {
		return err
	}
	w, err := s.Create(context.Background(), KindIndex)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(randomBytes(4, 9000)); err != nil {
		return err
	}
	if err := w.Commit("new"); err != nil {
		return err
	}
	for _, f := range [][3]string{{"layer", "l-new", "blob " + d.String() + "\n"}, {"record", "r-new", "layer l-new\n"}, {"record", "r-old", "layer l-new\n"}} {
		if err := s.Write(Kind(f[0]), f[1], []byte(f[2])); err != nil {
			return err
		}
	}
	img, err := putImage(s, randomBytes(5, 10_000))
	if err != nil {
		return err
	}
	if err := s.SetName("old:1", Name{Descriptor: img, Origin: Built, Complete: true}); err != nil {
		return err
	}
	if err := s.Sync(); err != nil {
		return err
	}
	dir, release, err := s.TempDir()
	if err != nil {
		return err
	}
	defer release()
	if err := os.WriteFile(dir+"/f", randomBytes(6, 5000), 0o600); err != nil {
		return err
	}
	unlock, err := s.Lock(context.Background(), "x", nil)
	if err != nil {
		return err
	}
	unlock()
	return nil
}

// The disk gets full at every write there is: each time the error says so, what was there before is there still, and
// when there is room again everything works.
func TestDiskFullAtEveryWrite(t *testing.T) {
	disk := smallDisk(t, "2m")
	const page = 4096
	failed := 0
	for free := int64(0); ; free += page {
		dir := disk + "/s"
		s, err := Open(dir, Options{})
		must(t, err)
		old := step(t, s, "old", 48*time.Hour)
		img, err := putImage(s, []byte("old layer"))
		must(t, err)
		must(t, s.SetName("old:1", Name{Descriptor: img, Origin: Built, Complete: true}))

		fill(t, disk+"/fill", free)
		err = everything(s)
		mustBeSound(t, s)
		if err != nil {
			failed++
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%d bytes free: %v", free, err)
			}
			if _, ok, nameErr := s.Name("old:1"); !ok || nameErr != nil {
				t.Errorf("%d bytes free: the old name is gone: %v", free, nameErr)
			}
			if !s.HasBlob(old, -1) {
				t.Errorf("%d bytes free: the old blob is gone", free)
			}
			// A collection makes room on a disk that has none.
			must(t, s.Close())
			if _, err := s.Collect(context.Background(), CollectOptions{Limited: true, References: testReferences}); err != nil {
				t.Errorf("%d bytes free: %v", free, err)
			}
			if s.HasBlob(old, -1) {
				t.Errorf("%d bytes free: nothing was collected", free)
			}
			mustBeSound(t, s)
			must(t, os.Remove(disk+"/fill"))
			if again := everything(s); again != nil {
				t.Errorf("with room again: %v", again)
			}
			mustBeSound(t, s)
		} else {
			must(t, os.Remove(disk+"/fill"))
		}
		must(t, os.RemoveAll(dir))
		if err == nil {
			break
		}
		if free > 1<<20 {
			t.Fatal("the disk is full with a megabyte free")
		}
	}
	if failed < 10 {
		t.Errorf("only %d of the attempts met a full disk", failed)
	}
}

// A store that cannot be made for want of room leaves nothing that the next attempt would stumble over.
func TestDiskFullWhileMaking(t *testing.T) {
	disk := smallDisk(t, "256k")
	for free := int64(0); free < 10*4096; free += 4096 {
		fill(t, disk+"/fill", free)
		_, err := Open(disk+"/s", Options{})
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%d bytes free: %v", free, err)
		}
		must(t, os.Remove(disk+"/fill"))
		s, err := Open(disk+"/s", Options{})
		if err != nil {
			t.Fatalf("after %d bytes free: %v", free, err)
		}
		mustBeSound(t, s)
		must(t, os.RemoveAll(disk+"/s"))
	}
}
