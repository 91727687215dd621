package build

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// This file is about the places that outputs are written to.

// checkDests finds out before anything is done whether the destinations can be what they are to become.
func (o *Options) checkDests() error {
	for i := range o.Outputs {
		if err := o.Outputs[i].checkDest(); err != nil {
			return err
		}
	}
	for _, f := range []struct{ flag, path string }{{"--iidfile", o.IIDFile}, {"--metadata-file", o.MetadataFile}} {
		if f.path == "" {
			continue
		}
		if err := checkFile(f.path, false); err != nil {
			return &UsageError{Msg: f.flag + ": " + err.Error()}
		}
	}
	return o.checkCollisions()
}

// checkCollisions refuses to write two things to one place: the second would take the place of the first. A device or a
// pipe takes any number.
func (o *Options) checkCollisions() error {
	taken := map[string]bool{}
	dests := []string{o.IIDFile, o.MetadataFile}
	for _, out := range o.Outputs {
		dests = append(dests, out.Dest)
	}
	for _, dest := range dests {
		if dest == "" || dest == "-" {
			continue
		}
		fi, err := os.Stat(dest)
		if err == nil && !fi.Mode().IsRegular() && !fi.IsDir() {
			continue
		}
		path, err := filepath.Abs(dest)
		if err != nil {
			return &EnvironmentError{Err: err}
		}
		if taken[path] {
			return &UsageError{Msg: fmt.Sprintf("two things are to be written to %s", dest), Hint: "give each output and file a place of its own"}
		}
		taken[path] = true
	}
	return nil
}

func (o *Output) checkDest() error {
	if o.Dest == "" || o.Dest == "-" {
		return nil
	}
	if o.Type == OutputLocal || o.Type == OutputOCI && !o.Tar {
		return checkDir(o.Dest)
	}
	if err := checkFile(o.Dest, true); err != nil {
		return &UsageError{Msg: err.Error(), Hint: "dest= names a file in a directory that exists"}
	}
	return nil
}

// checkFile refuses a path at which no file can be made; replace says that what is there will be replaced by another file.
func checkFile(path string, replace bool) error {
	if fi, err := os.Stat(path); err == nil {
		if fi.IsDir() {
			return fmt.Errorf("cannot write %s: it is a directory", path)
		}
		replace = replace && fi.Mode().IsRegular() // see writeTo
	}
	dir := filepath.Dir(path)
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("cannot write %s: %s is not a directory", path, dir)
	}
	changed := path
	if replace || errors.Is(unix.Access(path, unix.F_OK), unix.ENOENT) {
		changed = dir
	}
	if err := unix.Access(changed, unix.W_OK); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, &fs.PathError{Op: "write to", Path: changed, Err: err})
	}
	return nil
}

// checkDir refuses a path that is no directory to write to, and where none can be made.
func checkDir(path string) error {
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			continue
		}
		if err == nil && !fi.IsDir() {
			return &UsageError{Msg: fmt.Sprintf("cannot write to %s: %s is not a directory", path, dir)}
		}
		if err != nil {
			return &UsageError{Msg: fmt.Sprintf("cannot write to %s: %v", path, err)}
		}
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return &UsageError{Msg: fmt.Sprintf("cannot write to %s: %v", path, &fs.PathError{Op: "write to", Path: dir, Err: err})}
		}
		return nil
	}
}

// writeTo writes a file beside its final place and renames it there, so that a failed export leaves what was there before.
func (s *session) writeTo(o *Output, res *Result, write func(io.Writer) error) error {
	if o.Dest == "-" {
		s.streamed = true
		return write(o.Stdout)
	}
	if fi, err := os.Stat(o.Dest); err == nil && !fi.Mode().IsRegular() { // a pipe or a device: nothing to replace
		f, err := os.OpenFile(o.Dest, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		s.streamed = true
		return write(f)
	}
	dest := o.Dest
	if target, err := filepath.EvalSymlinks(dest); err == nil { // a link stays one
		dest = target
	}
	f, err := createBeside(dest)
	if err != nil {
		return &EnvironmentError{Err: fmt.Errorf("cannot write %s: %w", o.Dest, err)}
	}
	defer os.Remove(f.Name())
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), dest); err != nil {
		return &EnvironmentError{Err: fmt.Errorf("cannot write %s: %w", o.Dest, err)}
	}
	res.Written = append(res.Written, o.Dest)
	return nil
}

// createBeside makes a new file in the directory of dest, with the mode that the caller's umask gives to new files.
func createBeside(dest string) (*os.File, error) {
	base := filepath.Base(dest)
	base = base[:min(len(base), 200)] // room for the rest of the name
	return os.OpenFile(filepath.Join(filepath.Dir(dest), "."+base+"."+rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
}
