package executor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxUserFile bounds /etc/passwd and /etc/group of an image.
const maxUserFile = 10 << 20

// maxID is the largest id USER takes: what lies above does not fit in the int32 that some programs keep ids in.
const maxID = 1<<31 - 1

// identity is who a step runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32 // supplementary, without gid
	home     string
}

// resolveUser finds out who spec (as in USER) is in the given root: numbers never mean names; a name without group has the
// supplementary groups of /etc/group, anything with a group has that group only.
func resolveUser(root int, spec string) (identity, error) {
	files := userFiles{root: root}
	id, err := files.resolve(spec)
	if err != nil {
		return identity{}, err
	}
	id.home, err = files.home(id.uid)
	return id, err
}

// userFiles reads passwd and group of a root, each at most once.
type userFiles struct {
	root          int
	passwd, group *[]byte
}

func (f *userFiles) resolve(spec string) (identity, error) {
	user, group, hasGroup := strings.Cut(spec, ":")
	if user == "" {
		user = "0"
	}
	var id identity
	uid, numeric, err := parseID(user)
	if err != nil {
		return id, fmt.Errorf("user %q: %w", user, err)
	}
	if numeric && hasGroup && group != "" {
		if gid, ok, err := parseID(group); err != nil {
			return id, fmt.Errorf("group %q: %w", group, err)
		} else if ok {
			return identity{uid: uid, gid: gid}, nil
		}
	}
	name := ""
	line, found, err := f.find("/etc/passwd", &f.passwd, func(l []string) bool {
		return l[0] != "" && (numeric && l[2] == user || !numeric && l[0] == user)
	})
	switch {
	case err != nil && !numeric: // a number means itself whatever the image has for a passwd file
		return id, err
	case found:
		name = line[0]
		if id.uid, err = fieldID("/etc/passwd", line, 2); err != nil {
			return id, err
		}
		if id.gid, err = fieldID("/etc/passwd", line, 3); err != nil {
			return id, err
		}
	case numeric:
		id.uid = uid
	case user == "root" && hasGroup: // BuildKit lets root:group pass without a passwd file
	default:
		return id, fmt.Errorf("unable to find user %s: no matching entries in passwd file", user)
	}
	if hasGroup && group != "" {
		id.gid, err = f.groupID(group)
		return id, err
	}
	if name != "" {
		id.groups, err = f.groupsOf(name, id.gid)
	}
	return id, err
}

func (f *userFiles) groupID(group string) (uint32, error) {
	gid, numeric, err := parseID(group)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", group, err)
	}
	if numeric {
		return gid, nil
	}
	line, found, err := f.find("/etc/group", &f.group, func(l []string) bool { return l[0] == group })
	if err != nil {
		return 0, err
	}
	if !found {
		if group == "root" {
			return 0, nil
		}
		return 0, fmt.Errorf("unable to find group %s: no matching entries in group file", group)
	}
	return fieldID("/etc/group", line, 2)
}

func (f *userFiles) groupsOf(name string, gid uint32) ([]uint32, error) {
	var out []uint32
	err := f.each("/etc/group", &f.group, func(l []string) (bool, error) {
		if len(l) < 4 || !slices.Contains(strings.Split(l[3], ","), name) {
			return true, nil
		}
		g, err := fieldID("/etc/group", l, 2)
		if err != nil {
			return false, err
		}
		if g != gid && !slices.Contains(out, g) {
			out = append(out, g)
		}
		return true, nil
	})
	return out, err
}

// home is the home directory of the first passwd entry with that id, or "/".
func (f *userFiles) home(uid uint32) (string, error) {
	want := strconv.FormatUint(uint64(uid), 10)
	line, found, err := f.find("/etc/passwd", &f.passwd, func(l []string) bool { return l[2] == want })
	if err != nil || !found || len(line) < 6 || line[5] == "" {
		return "/", nil // a missing or unusable file matters only to those who name a user
	}
	return line[5], nil
}

// find returns the first line for which ok says so. Lines have at least three fields when ok sees them.
func (f *userFiles) find(path string, kept **[]byte, ok func([]string) bool) (line []string, found bool, err error) {
	err = f.each(path, kept, func(l []string) (bool, error) {
		if ok(l) {
			line, found = l, true
		}
		return !found, nil
	})
	return line, found, err
}

func (f *userFiles) each(path string, kept **[]byte, visit func([]string) (more bool, err error)) error {
	if *kept == nil {
		data, err := readUserFile(f.root, path)
		if err != nil {
			return err
		}
		*kept = &data
	}
	sc := bufio.NewScanner(bytes.NewReader(**kept))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		text := strings.TrimSpace(sc.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		fields := strings.Split(text, ":")
		if len(fields) < 3 {
			continue
		}
		more, err := visit(fields)
		if err != nil || !more {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// readUserFile returns the content of a regular file of bounded size; a missing one is empty.
func readUserFile(root int, path string) ([]byte, error) {
	// O_NONBLOCK: opening a fifo must not wait for a writer.
	fd, err := openInRoot(root, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxUserFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxUserFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxUserFile)
	}
	return data, nil
}

// parseID says whether s is an id by number, and refuses numbers that some programs would read as another one.
func parseID(s string) (id uint32, numeric bool, err error) {
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, true, fmt.Errorf("ids must be between 0 and %d", maxID)
	case err != nil:
		return 0, false, nil
	case n < 0 || n > maxID:
		return 0, true, fmt.Errorf("ids must be between 0 and %d", maxID)
	case strconv.FormatInt(n, 10) != s:
		return 0, true, fmt.Errorf("write the id as %d", n)
	}
	return uint32(n), true, nil
}

func fieldID(path string, line []string, i int) (uint32, error) {
	if i < len(line) {
		if id, numeric, err := parseID(line[i]); err == nil && numeric {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%s: the entry of %q has no valid id", path, line[0])
}
