package snapshot

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"build/internal/tree"
)

// The tar dialect of the layers we write. It is fixed: the same entries give the same bytes with every version of this
// program, because a layer's digest is its identity in caches and images. So the encoder is ours and not the standard
// library's, whose choices may improve. A change here is a change of every digest.
//
//   - ustar headers; a PAX header goes before one only when a field does not fit, and holds only those fields, sorted
//   - names without "./", directories with a trailing slash; any bytes stand as they are
//   - whole seconds, rounded down; no user and group names, no access and change times
//   - extended attributes as SCHILY.xattr records
//   - deletions as empty files .wh.NAME and .wh..wh..opq, mode 0, owner 0:0, time 0
const (
	blockSize = 512

	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
	xattrRecord    = "SCHILY.xattr."

	paxName = "PaxHeaders.0/entry"
)

var zeroBlocks [2 * blockSize]byte

// header is what one tar header says.
type header struct {
	name         string
	kind         byte
	mode         uint32
	uid, gid     uint32
	size         int64
	sec          int64
	link         string
	major, minor uint32
	xattrs       []tree.Xattr
}

// encoder turns headers into bytes; its buffers are reused.
type encoder struct {
	buf     []byte
	records []string
}

// encode returns the header's blocks, valid until the next call.
func (c *encoder) encode(h *header) ([]byte, error) {
	c.buf, c.records = c.buf[:0], c.records[:0]
	name, prefix, ok := splitName(h.name)
	if !ok {
		c.records = append(c.records, paxRecord("path", h.name))
	}
	link := h.link
	if len(link) > 100 {
		c.records = append(c.records, paxRecord("linkpath", link))
		link = link[:100]
	}
	c.number("uid", int64(h.uid), 0o7777777)
	c.number("gid", int64(h.gid), 0o7777777)
	c.number("size", h.size, 0o77777777777)
	c.number("mtime", h.sec, 0o77777777777)
	if h.major > 0o7777777 || h.minor > 0o7777777 {
		return nil, fmt.Errorf("device number %d:%d does not fit into a tar header", h.major, h.minor)
	}
	for _, x := range h.xattrs {
		if strings.ContainsAny(x.Name, "=\x00") {
			return nil, fmt.Errorf("extended attribute %q: its name cannot be written to a tar", x.Name)
		}
		c.records = append(c.records, paxRecord(xattrRecord+x.Name, x.Value))
	}
	if len(c.records) > 0 {
		c.pax()
	}
	c.block(h, name, prefix, link)
	return c.buf, nil
}

// number adds a PAX record for v if it does not fit into its field.
func (c *encoder) number(key string, v, limit int64) {
	if v < 0 || v > limit {
		c.records = append(c.records, paxRecord(key, strconv.FormatInt(v, 10)))
	}
}

// pax appends the extended header made of c.records.
func (c *encoder) pax() {
	slices.SortFunc(c.records, func(a, b string) int { return strings.Compare(recordKey(a), recordKey(b)) })
	size := 0
	for _, r := range c.records {
		size += len(r)
	}
	c.block(&header{kind: 'x', size: int64(size)}, paxName, "", "")
	for _, r := range c.records {
		c.buf = append(c.buf, r...)
	}
	c.buf = append(c.buf, zeroBlocks[:padding(int64(size))]...)
}

// block appends one 512-byte header.
func (c *encoder) block(h *header, name, prefix, link string) {
	start := len(c.buf)
	c.buf = append(c.buf, zeroBlocks[:blockSize]...)
	b := c.buf[start:]
	copy(b[0:100], name)
	octal(b[100:108], int64(h.mode))
	octal(b[108:116], int64(h.uid))
	octal(b[116:124], int64(h.gid))
	octal(b[124:136], h.size)
	octal(b[136:148], h.sec)
	b[156] = h.kind
	copy(b[157:257], link)
	copy(b[257:265], "ustar\x0000")
	octal(b[329:337], int64(h.major))
	octal(b[337:345], int64(h.minor))
	copy(b[345:500], prefix)
	sum := int64(8 * ' ')
	for _, x := range b {
		sum += int64(x)
	}
	octal(b[148:155], sum)
	b[155] = ' '
}

// octal writes v as zero-padded octal digits and a NUL, or zero when it does not fit (a PAX record has it then).
func octal(b []byte, v int64) {
	digits := len(b) - 1
	if v < 0 || (digits*3 < 63 && v >= 1<<(digits*3)) {
		v = 0
	}
	for i := digits - 1; i >= 0; i-- {
		b[i] = byte('0' + v&7)
		v >>= 3
	}
}

// paxRecord returns "LEN KEY=VALUE\n", where LEN counts its own digits.
func paxRecord(key, value string) string {
	n := len(key) + len(value) + 3
	size := n + len(strconv.Itoa(n))
	if size2 := n + len(strconv.Itoa(size)); size2 != size {
		size = size2
	}
	return strconv.Itoa(size) + " " + key + "=" + value + "\n"
}

// recordKey returns the part of a record that orders it.
func recordKey(r string) string {
	_, r, _ = strings.Cut(r, " ")
	key, _, _ := strings.Cut(r, "=")
	return key
}

// splitName fits a path into the name and prefix fields of a ustar header.
func splitName(path string) (name, prefix string, ok bool) {
	if len(path) <= 100 {
		return path, "", true
	}
	end := min(len(path), 156) // the slash between the two is not stored
	if path[len(path)-1] == '/' {
		end = min(end, len(path)-1)
	}
	i := strings.LastIndexByte(path[:end], '/')
	if i <= 0 || len(path)-i-1 > 100 || len(path)-i-1 == 0 {
		return path[:100], "", false
	}
	return path[i+1:], path[:i], true
}

// padding is the number of zero bytes after size bytes of content.
func padding(size int64) int64 { return -size & (blockSize - 1) }

// tarHeader returns the header that stands for an entry, without size for hard links.
func tarHeader(e *tree.Entry) (*header, error) {
	h := &header{
		name: e.Path, mode: e.Mode & 0o7777, uid: e.UID, gid: e.GID,
		sec: e.ModTime.Unix(), xattrs: e.Xattrs,
	}
	if strings.ContainsRune(e.Path, 0) || strings.ContainsRune(e.Link, 0) {
		return nil, errors.New("a name holds a zero byte")
	}
	switch {
	case e.Hardlink != "":
		h.kind, h.link, h.xattrs = '1', e.Hardlink, nil
		return h, nil
	case e.Type == tree.File:
		h.kind, h.size = '0', e.Size
	case e.Type == tree.Dir:
		h.kind, h.name = '5', e.Path+"/"
		if e.Path == "" {
			h.name = "./"
		}
	case e.Type == tree.Symlink:
		h.kind, h.link = '2', e.Link
	case e.Type == tree.Char:
		h.kind, h.major, h.minor = '3', e.Major, e.Minor
	case e.Type == tree.Block:
		h.kind, h.major, h.minor = '4', e.Major, e.Minor
	case e.Type == tree.Fifo:
		h.kind = '6'
	case e.Type == tree.Whiteout:
		dir, base := splitPath(e.Path)
		return &header{name: joinPath(dir, whiteoutPrefix+base), kind: '0'}, nil
	default:
		return nil, fmt.Errorf("entry of unknown type %d", e.Type)
	}
	if h.size < 0 || h.size > math.MaxInt64-blockSize {
		return nil, fmt.Errorf("impossible size %d", h.size)
	}
	return h, nil
}

// splitPath splits a clean relative path into its directory ("" for the root) and its last name.
func splitPath(path string) (dir, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
