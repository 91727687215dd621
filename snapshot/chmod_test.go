package snapshot

import "testing"

func TestChmod(t *testing.T) {
	for _, c := range []struct {
		mode      string
		from      uint32
		file, dir uint32
	}{
		{"644", 0o4755, 0o644, 0o644},
		{"01777", 0, 0o1777, 0o1777},
		{"+x", 0o644, 0o755, 0o755},
		{"u+x,g-r", 0o644, 0o704, 0o704},
		{"a=rX", 0o600, 0o444, 0o555},
		{"a=rX", 0o700, 0o555, 0o555},
		{"=rw,+X", 0o711, 0o777, 0o777},
		{"go=", 0o777, 0o700, 0o700},
		{"go=u-w", 0o750, 0o755, 0o755},
		{"u=g", 0o174, 0o774, 0o774},
		{"u+s,g+s", 0o755, 0o6755, 0o6755},
		{"o+s", 0o755, 0o755, 0o755},
		{"+t", 0o755, 0o1755, 0o1755},
		{"u-s", 0o4755, 0o755, 0o755},
		{"=", 0o7777, 0o1000, 0o1000},
		{"a-X", 0o755, 0o644, 0o644},
		{"u+w-x", 0o500, 0o600, 0o600},
		{"ug+", 0o640, 0o640, 0o640},
	} {
		m, err := parseChmod(c.mode)
		if err != nil {
			t.Errorf("%q: %v", c.mode, err)
			continue
		}
		if got := m.apply(c.from, false); got != c.file {
			t.Errorf("%q on a file with %o: %o, want %o", c.mode, c.from, got, c.file)
		}
		if got := m.apply(c.from, true); got != c.dir {
			t.Errorf("%q on a directory with %o: %o, want %o", c.mode, c.from, got, c.dir)
		}
	}
	for _, mode := range []string{"8", "10000", "0o644", "644x", "u", "ugo", "x", "u+q", "u+x,", ",u+x", "+x u+x", "-1", "u++ g"} {
		if _, err := parseChmod(mode); err == nil {
			t.Errorf("%q: accepted", mode)
		}
	}
}
