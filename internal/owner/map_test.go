package owner

import "testing"

func TestMap(t *testing.T) {
	whole, err := parseIDs("         0          0 4294967295\n")
	if err != nil {
		t.Fatal(err)
	}
	holes, err := parseIDs("100 5000 3\n0 1000 1\n")
	if err != nil {
		t.Fatal(err)
	}
	one, err := parseIDs("0 1000 1\n")
	if err != nil {
		t.Fatal(err)
	}
	single := Single()
	if one.sentinel != single.users.sentinel || len(one.ranges) != 0 || !one.limited {
		t.Errorf("a map with one id is %+v", one)
	}
	limited := Map{holes, holes}
	for _, c := range []struct {
		name   string
		m      Map
		id     uint32
		mapped bool
		disk   uint32
		needs  bool
	}{
		{"full", Map{whole, whole}, 4000000000, true, 4000000000, false},
		{"zero value", Map{}, 33, true, 33, false},
		{"single 0", single, 0, false, 0, false},
		{"single 33", single, 33, false, 0, true},
		{"range 0", limited, 0, true, 0, false},
		{"range in a hole", limited, 1, false, 102, true},
		{"range inside", limited, 101, true, 101, false},
		{"range sentinel", limited, 102, false, 102, false},
		{"range above", limited, 172761424, false, 102, true},
	} {
		uid, gid := c.m.Disk(c.id, c.id)
		if c.m.MappedUID(c.id) != c.mapped || c.m.MappedGID(c.id) != c.mapped || uid != c.disk || gid != c.disk || c.m.Needs(c.id, c.id) != c.needs {
			t.Errorf("%s: mapped %v, disk %d, needs %v", c.name, c.m.MappedUID(c.id), uid, c.m.Needs(c.id, c.id))
		}
		if u, g := c.m.Real(uid, gid, Record{UID: c.id, GID: c.id}, true); u != c.id || g != c.id {
			t.Errorf("%s: comes back as %d:%d", c.name, u, g)
		}
	}
	if u, g := limited.Real(5, 102, Record{UID: 7, GID: 8}, true); u != 5 || g != 8 {
		t.Errorf("half void: %d:%d", u, g)
	}
	if u, g := limited.Real(102, 102, Record{UID: 7, GID: 8}, false); u != 102 || g != 102 {
		t.Errorf("no record: %d:%d", u, g)
	}
	for _, bad := range []string{"", "0 0\n", "0 0 0\n", "1 2 4294967296\n", "a b c\n"} {
		if m, err := parseIDs(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, m)
		}
	}
}

func TestReadMap(t *testing.T) {
	m, err := ReadMap()
	if err != nil {
		t.Fatal(err)
	}
	if uid, _ := m.Disk(0, 0); uid != 0 {
		t.Errorf("0 is %d on disk", uid)
	}
}
