package snapshot

import (
	"strconv"
	"strings"
)

// chmod is a parsed --chmod: an octal mode, or a list of changes as chmod(1) describes them.
type chmod struct {
	octal   bool
	mode    uint32
	changes []modeChange
}

// modeChange is one step of a symbolic mode.
type modeChange struct {
	op   byte   // '+', '-' set and clear bits; 'X' sets them on directories and what is executable; 'u', 'g', 'o' copy that class
	bits uint32 // which bits; for a copy, the classes it goes to as their read bits
	copy byte   // how a copy is meant: '+', '-' or '='
}

const (
	modeSetuid = 0o4000
	modeSetgid = 0o2000
	modeSticky = 0o1000
	modeOther  = 0o007
	// modeAll is what "a" and an absent class mean when bits are cleared; the sticky bit is only touched by name.
	modeAll = 0o6777
)

// parseChmod parses a mode; nil for "".
func parseChmod(s string) (*chmod, error) {
	if s == "" {
		return nil, nil
	}
	if n, err := strconv.ParseUint(s, 8, 32); err == nil && n <= 0o7777 {
		return &chmod{octal: true, mode: uint32(n)}, nil
	} else if err == nil || s[0] >= '0' && s[0] <= '9' {
		return nil, copyErrorf("invalid chmod parameter: '%v'. it should be octal string and between 0 and 07777", s)
	}
	c := &chmod{}
	for clause := range strings.SplitSeq(s, ",") {
		if !c.clause(clause) {
			return nil, copyErrorf("invalid chmod parameter: '%v': neither an octal nor a symbolic mode", s)
		}
	}
	return c, nil
}

// clause parses classes and the operations on them, such as "ug+rX-w".
func (c *chmod) clause(s string) bool {
	who := uint32(0)
	i := 0
	for ; i < len(s); i++ {
		switch s[i] {
		case 'a':
			who |= modeAll
		case 'u':
			who |= modeSetuid | 0o700
		case 'g':
			who |= modeSetgid | 0o070
		case 'o':
			who |= modeOther
		default:
			return c.operations(who, s[i:])
		}
	}
	return false // no operation
}

func (c *chmod) operations(who uint32, s string) bool {
	for s != "" {
		op := s[0]
		if op != '+' && op != '-' && op != '=' {
			return false
		}
		n := c.operation(who, op, s[1:])
		s = s[1+n:]
	}
	return true
}

// operation reads the permissions behind op and returns how many characters they are.
func (c *chmod) operation(who uint32, op byte, perms string) int {
	var set, conditional uint32
	assigned := op != '='
	flush := func() {
		if set != 0 {
			c.change(op, who, set)
			set, assigned = 0, true
		}
		if conditional != 0 {
			c.change('X', who, conditional)
			conditional = 0
		}
	}
	n := 0
loop:
	for ; n < len(perms); n++ {
		switch p := perms[n]; p {
		case 'r':
			set |= 0o444
		case 'w':
			set |= 0o222
		case 'x':
			set |= 0o111
		case 'X':
			if op == '-' {
				set |= 0o111
			} else {
				conditional |= 0o111
			}
		case 's':
			if who == 0 || who&^modeOther != 0 {
				set |= modeSetuid | modeSetgid
			}
		case 't':
			if who == 0 || who&^modeOther != 0 {
				set |= modeSticky
				who |= modeSticky // as in BSD, and so in BuildKit: "+rt" without a class is "+t"
			}
		case 'u', 'g', 'o':
			flush()
			assigned = true
			c.changes = append(c.changes, modeChange{op: p, bits: classes(who), copy: op})
		default:
			break loop
		}
	}
	if !assigned && set == 0 { // "u=" clears, and "u=X" clears before it sets
		c.change(op, who, 0)
	}
	flush()
	return n
}

// change adds a change of bits; an assignment clears first.
func (c *chmod) change(op byte, who, bits uint32) {
	if op == '=' {
		clear := who
		if who == 0 {
			clear = modeAll
		}
		c.changes = append(c.changes, modeChange{op: '-', bits: clear})
		op = '+'
	}
	if who != 0 {
		bits &= who
	}
	c.changes = append(c.changes, modeChange{op: op, bits: bits})
}

// classes returns the classes in who as their read bits; nobody means everybody.
func classes(who uint32) uint32 {
	if who == 0 {
		return 0o444
	}
	return who & 0o444
}

// apply returns the mode a file or directory that has mode gets.
func (c *chmod) apply(mode uint32, dir bool) uint32 {
	if c.octal {
		return c.mode
	}
	old := mode
	for _, ch := range c.changes {
		switch ch.op {
		case '+':
			mode |= ch.bits
		case '-':
			mode &^= ch.bits
		case 'X':
			if dir || old&0o111 != 0 {
				mode |= ch.bits
			}
		case 'u':
			mode = ch.copyClass(mode, mode>>6&7)
		case 'g':
			mode = ch.copyClass(mode, mode>>3&7)
		case 'o':
			mode = ch.copyClass(mode, mode&7)
		}
	}
	return mode
}

// copyClass gives the permissions of one class to others.
func (ch modeChange) copyClass(mode, perm uint32) uint32 {
	for _, shift := range []uint32{6, 3, 0} {
		if ch.bits>>shift&4 == 0 {
			continue
		}
		switch ch.copy {
		case '+':
			mode |= perm << shift
		case '-':
			mode &^= perm << shift
		case '=':
			mode = mode&^(7<<shift) | perm<<shift
		}
	}
	return mode
}

// parentMode is the mode of directories made on the way: permissions only, and only if the mode is a number.
func (c *chmod) parentMode() uint32 {
	if c == nil || !c.octal {
		return 0o755
	}
	return c.mode & 0o777
}
