package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"build/internal/owner"
	"build/internal/tree"
)

// owners is how the owners of entries are put on disk and read back, in one process's user namespace. Where every id is mapped,
// they are what the disk says; elsewhere what cannot stand there is in records beside the files (package owner).
type owners struct {
	ids   owner.Map
	nodes *owner.Nodes
}

// nodesFile lies beside the content of a directory form and holds the records of files in it that cannot carry them.
const nodesFile = "owners"

// set gives a file its owner: fd is the file itself when name is "", otherwise its directory. It returns the line for
// nodesFile that a symbolic link or fifo needs.
func (o *owners) set(fd int, name string, e *tree.Entry) (line []byte, err error) {
	uid, gid := o.ids.Disk(e.UID, e.GID)
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if err := unix.Fchownat(fd, name, int(uid), int(gid), flags); err != nil {
		return nil, fmt.Errorf("chown to %d:%d: %w", e.UID, e.GID, err)
	}
	if !o.ids.Needs(e.UID, e.GID) {
		return nil, nil
	}
	rec := owner.Record{UID: e.UID, GID: e.GID}
	if e.Type == tree.Symlink || e.Type == tree.Fifo {
		return o.setNode(fd, name, rec)
	}
	return nil, setRecord(fd, name, rec)
}

// setDevice records which device an empty file stands for.
func (o *owners) setDevice(parent int, name string, e *tree.Entry) error {
	rec := owner.Record{UID: e.UID, GID: e.GID, Type: nodeType(e.Type), Rdev: unix.Mkdev(e.Major, e.Minor)}
	return setRecord(parent, name, rec)
}

func setRecord(fd int, name string, rec owner.Record) error {
	if name == "" {
		return owner.Set(fd, rec)
	}
	at, err := openAt(fd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return owner.Set(at, rec)
}

func (o *owners) setNode(parent int, name string, rec owner.Record) ([]byte, error) {
	n, err := nodeAt(parent, name)
	if err != nil {
		return nil, err
	}
	o.nodes.Set(n, rec)
	var b bytes.Buffer
	if err := owner.WriteNode(&b, n, rec); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func nodeAt(parent int, name string) (owner.Node, error) {
	var st unix.Statx_t
	err := unix.Statx(parent, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, owner.NodeMask, &st)
	return owner.NodeOf(&st), err
}

// read corrects what stat says of an open file or directory, and reports whether it stands for a device.
func (o *owners) read(fd int, e *tree.Entry) error {
	if o.ids.Full() {
		return nil
	}
	rec, has, err := owner.Get(fd)
	if err != nil {
		return err
	}
	e.UID, e.GID = o.ids.Real(e.UID, e.GID, rec, has)
	if has && rec.Type != 0 && e.Type == tree.File && e.Size == 0 {
		e.Type = tree.Char
		if rec.Type == unix.S_IFBLK {
			e.Type = tree.Block
		}
		e.Major, e.Minor = unix.Major(rec.Rdev), unix.Minor(rec.Rdev)
	}
	return nil
}

// readNode is read for files that carry no records. It returns their line for nodesFile.
func (o *owners) readNode(parent int, name string, e *tree.Entry) (line []byte, err error) {
	if o.ids.Full() {
		return nil, nil
	}
	n, err := nodeAt(parent, name)
	if err != nil {
		return nil, err
	}
	rec, has := o.nodes.Get(n)
	e.UID, e.GID = o.ids.Real(e.UID, e.GID, rec, has)
	if !o.ids.Needs(e.UID, e.GID) {
		return nil, nil
	}
	var b bytes.Buffer
	err = owner.WriteNode(&b, n, owner.Record{UID: e.UID, GID: e.GID})
	return b.Bytes(), err
}

// save writes the table of a directory form, whose content lies below dir.
func (o *owners) save(dir string, lines []byte) error {
	if len(lines) == 0 {
		return nil
	}
	return os.WriteFile(dir+"/"+nodesFile, lines, 0o600)
}

// load adds the table of a directory form to what this process knows.
func (o *owners) load(dir string) error {
	if o.ids.Full() {
		return nil
	}
	f, err := os.Open(dir + "/" + nodesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return o.nodes.Read(f)
}
