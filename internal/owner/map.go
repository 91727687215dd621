package owner

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Map says which owners files can have in a user namespace, and what stands on disk for those they cannot have: the sentinel, the
// highest id that is mapped. A record counts only while the sentinel stands there, so that a chown to a mapped id, which nobody
// sees, makes the record void by itself. The sentinel therefore counts as an id that is not mapped. Where 0 is the only id it is
// the sentinel, everything is recorded and every record counts.
//
// User and group are apart: half a record may be void. The zero value maps every id.
type Map struct {
	users, groups ids
}

// ids is one side of a Map: ascending ranges without the sentinel.
type ids struct {
	limited  bool
	sentinel uint32
	ranges   []Range
}

// Range is a run of mapped ids.
type Range struct{ First, Count uint32 }

// Single is the Map of a user namespace that has id 0 only.
func Single() Map {
	one := ids{limited: true}
	return Map{one, one}
}

// ParseMap reads the contents of uid_map and gid_map of user_namespaces(7).
func ParseMap(users, groups string) (Map, error) {
	u, err := parseIDs(users)
	if err != nil {
		return Map{}, err
	}
	g, err := parseIDs(groups)
	return Map{u, g}, err
}

// ReadMap reads the Map of the calling process's user namespace.
func ReadMap() (Map, error) {
	users, err := readIDs("/proc/self/uid_map")
	if err != nil {
		return Map{}, err
	}
	groups, err := readIDs("/proc/self/gid_map")
	return Map{users, groups}, err
}

func readIDs(path string) (ids, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return ids{}, fmt.Errorf("read the ids of this user namespace: %w", err)
	}
	m, err := parseIDs(string(text))
	if err != nil {
		return ids{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// parseIDs reads lines of user_namespaces(7): first id inside, first id outside, count.
func parseIDs(text string) (ids, error) {
	var all []Range
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return ids{}, fmt.Errorf("%.80q is no line of an id map", line)
		}
		first, err1 := strconv.ParseUint(f[0], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 || first+count > 1<<32 {
			return ids{}, fmt.Errorf("%.80q is no line of an id map", line)
		}
		all = append(all, Range{uint32(first), uint32(count)})
	}
	return newIDs(all)
}

func newIDs(all []Range) (ids, error) {
	if len(all) == 0 {
		return ids{}, fmt.Errorf("no id is mapped")
	}
	// The kernel keeps the lines as they were written: in any order, without overlaps.
	top, m := 0, ids{limited: true}
	for i, r := range all {
		if r.First == 0 && r.Count == 1<<32-1 {
			return ids{}, nil
		}
		if r.First > all[top].First {
			top = i
		}
	}
	m.sentinel = all[top].First + (all[top].Count - 1)
	for i, r := range all {
		if i == top {
			r.Count--
		}
		if r.Count > 0 {
			m.ranges = append(m.ranges, r)
		}
	}
	return m, nil
}

// Full reports whether files can have any owner, so that there is nothing to record.
func (m Map) Full() bool { return !m.users.limited && !m.groups.limited }

// MappedUID reports whether files can have this user, and show it without a record.
func (m Map) MappedUID(id uint32) bool { return m.users.mapped(id) }

// MappedGID is MappedUID for groups.
func (m Map) MappedGID(id uint32) bool { return m.groups.mapped(id) }

// UIDs returns the users for which MappedUID holds; all is true when it always does.
func (m Map) UIDs() (ranges []Range, all bool) { return m.users.ranges, !m.users.limited }

// GIDs is UIDs for groups.
func (m Map) GIDs() (ranges []Range, all bool) { return m.groups.ranges, !m.groups.limited }

// Disk returns the owner that a file gets on disk in place of what it should have.
func (m Map) Disk(uid, gid uint32) (diskUID, diskGID uint32) {
	return m.users.disk(uid), m.groups.disk(gid)
}

// Needs reports whether a file with this owner needs a record. One that needs none may still have one that counts, which then
// must be changed or removed.
func (m Map) Needs(uid, gid uint32) bool {
	du, dg := m.Disk(uid, gid)
	return du != uid || dg != gid
}

// Real returns the owner that a file should have: of what stands on disk and the file's record, if it has one, what counts.
func (m Map) Real(diskUID, diskGID uint32, r Record, has bool) (uid, gid uint32) {
	uid, gid = diskUID, diskGID
	if has && m.users.limited && diskUID == m.users.sentinel {
		uid = r.UID
	}
	if has && m.groups.limited && diskGID == m.groups.sentinel {
		gid = r.GID
	}
	return uid, gid
}

func (m ids) mapped(id uint32) bool {
	if !m.limited {
		return true
	}
	for _, r := range m.ranges {
		if id >= r.First && id-r.First < r.Count {
			return true
		}
	}
	return false
}

func (m ids) disk(id uint32) uint32 {
	if m.mapped(id) {
		return id
	}
	return m.sentinel
}
