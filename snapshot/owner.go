package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"build/internal/tree"
)

// maxUserFile bounds /etc/passwd and /etc/group.
const maxUserFile = 10 << 20

// maxID is the largest id a user can ask for.
const maxID = math.MaxInt32

// OwnerError says that a user or group cannot be made into an id.
type OwnerError struct{ Msg string }

func (e *OwnerError) Error() string { return e.Msg }

// Owner returns the ids that "user", "user:group" or numbers in their place mean in the tree of chain; diffIDs name its
// layers, bottom first. A number is an id even if some user has it for a name. A user without a group has the primary
// group of its entry in /etc/passwd, or, for a number, the group of the same number. A name that does not exist is an
// *OwnerError.
func (l *Layers) Owner(ctx context.Context, chain *tree.Chain, diffIDs []digest.Digest, spec string) (Owner, error) {
	return parseOwner(spec, func(path string) ([]byte, error) {
		data, err := l.ReadFile(ctx, chain, diffIDs, path, maxUserFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return data, err
	})
}

func parseOwner(spec string, read func(path string) ([]byte, error)) (Owner, error) {
	user, group, hasGroup := strings.Cut(spec, ":")
	var o Owner
	if user != "" {
		id, ok, err := parseID(user)
		switch {
		case err != nil:
			return Owner{}, err
		case ok:
			o.UID, o.GID = id, id
		default:
			fields, err := lookUp(read, "etc/passwd", "user", user, 4)
			if err != nil {
				return Owner{}, err
			}
			o.UID, o.GID = fields[0], fields[1]
		}
	}
	if group == "" {
		if hasGroup { // a colon with nothing behind it is group 0, as in BuildKit, and not the user's own
			o.GID = 0
		}
		return o, nil
	}
	id, ok, err := parseID(group)
	if err != nil {
		return Owner{}, err
	}
	if !ok {
		fields, err := lookUp(read, "etc/group", "group", group, 3)
		if err != nil {
			return Owner{}, err
		}
		id = fields[0]
	}
	o.GID = id
	return o, nil
}

// parseID reads a number; false when s is a name. What looks like a number but is none that an id can be is an error,
// because taking it for a name, or for another number, would end with the wrong owner. So is a number with leading zeros.
func parseID(s string) (uint32, bool, error) {
	if s == "root" {
		return 0, true, nil // also where there is no /etc/passwd
	}
	if c := s[0]; c != '-' && c != '+' && (c < '0' || c > '9') {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > maxID || strconv.FormatUint(n, 10) != s {
		if err != nil && !errors.Is(err, strconv.ErrRange) && !looksNumeric(s) {
			return 0, false, nil // a name may begin with a digit
		}
		return 0, false, &OwnerError{Msg: fmt.Sprintf("%q is not an id: a decimal number up to %d is one", s, maxID)}
	}
	return uint32(n), true, nil
}

// looksNumeric reports whether somebody may have meant a number: signs, decimal digits, or hexadecimal ones after 0x.
func looksNumeric(s string) bool {
	t := strings.TrimLeft(s, "+-")
	if t != s {
		return true
	}
	if rest, ok := strings.CutPrefix(strings.ToLower(t), "0x"); ok {
		_, err := strconv.ParseUint(rest, 16, 64)
		return err == nil || errors.Is(err, strconv.ErrRange)
	}
	return strings.Trim(t, "0123456789") == ""
}

// lookUp returns the numbers that begin at the third field of name's line in a file like /etc/passwd, up to the field
// called last. The first line of the name counts.
func lookUp(read func(string) ([]byte, error), file, kind, name string, last int) ([]uint32, error) {
	data, err := read(file)
	if large := new(TooLargeError); errors.As(err, &large) { // the image's fault, not ours
		return nil, &OwnerError{Msg: fmt.Sprintf("look up %s %q: %v", kind, name, large)}
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s %q: %w", kind, name, err)
	}
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte("\n"))
		line = bytes.TrimSpace(line)
		first, _, ok := bytes.Cut(line, []byte(":"))
		if !ok || string(first) != name {
			continue
		}
		fields := bytes.SplitN(line, []byte(":"), last+1)
		if len(fields) < last {
			return nil, &OwnerError{Msg: fmt.Sprintf("the line of %s %q in /%s is incomplete", kind, name, file)}
		}
		var ids []uint32
		for _, f := range fields[2:last] {
			n, err := strconv.ParseUint(string(f), 10, 32)
			if err != nil || n == math.MaxUint32 {
				return nil, &OwnerError{Msg: fmt.Sprintf("the line of %s %q in /%s has no id but %q", kind, name, file, f)}
			}
			ids = append(ids, uint32(n))
		}
		return ids, nil
	}
	return nil, &OwnerError{Msg: fmt.Sprintf("no %s %q in /%s of the stage", kind, name, file)}
}
