package userns

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxExtents is how many lines the kernel takes in an id map, less the one for the caller's own id.
const maxExtents = 339

type idRange struct{ start, count uint32 }

// parseSubIDs returns the ranges that a subuid(5) or subgid(5) file grants to the user, in the order of the file. Lines
// name a user by login name or by number; lines that are not of the form name:start:count are skipped, as the tools of the
// shadow package do.
func parseSubIDs(r io.Reader, name string, uid int) ([]idRange, error) {
	var out []idRange
	number := strconv.Itoa(uid)
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Split(strings.TrimSpace(sc.Text()), ":")
		if len(f) != 3 || f[0] == "" || (f[0] != name && f[0] != number) {
			continue
		}
		start, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 || start+count > 1<<32-1 {
			continue
		}
		out = append(out, idRange{uint32(start), uint32(count)})
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read subordinate ids: %w", err)
	}
	return out, nil
}

// mapRanges maps 0 to own and 1, 2, … to the ranges. A range that overlaps one already mapped is left out, since the kernel
// refuses a map in which two ids inside are one outside.
func mapRanges(own uint32, ranges []idRange) []IDMap {
	m := []IDMap{{Inside: 0, Outside: own, Count: 1}}
	next := uint64(1)
	for _, r := range ranges {
		if len(m) > maxExtents || next+uint64(r.count) > 1<<32-1 || overlaps(m, r) {
			continue
		}
		m = append(m, IDMap{Inside: uint32(next), Outside: r.start, Count: r.count})
		next += uint64(r.count)
	}
	return m
}

func overlaps(m []IDMap, r idRange) bool {
	for _, e := range m {
		if uint64(r.start) < uint64(e.Outside)+uint64(e.Count) && uint64(e.Outside) < uint64(r.start)+uint64(r.count) {
			return true
		}
	}
	return false
}
