package git

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
)

// The packet lines of git's protocol, version 0, which every server speaks.

const maxPacket = 65520

// errFlush is the end of a list of packets.
var errFlush = errors.New("flush packet")

// readPacket returns the next packet, which is good until the next call.
func readPacket(r *bufio.Reader, buf []byte) ([]byte, error) {
	if _, err := io.ReadFull(r, buf[:4]); err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(string(buf[:4]), 16, 16)
	if err != nil || n > maxPacket || n == 1 || n == 2 || n == 3 {
		return nil, fmt.Errorf("this is not git's protocol: %q", buf[:4])
	}
	if n == 0 {
		return nil, errFlush
	}
	data := buf[:n-4]
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	if bytes.HasPrefix(data, []byte("ERR ")) {
		return nil, &serverError{string(data[4:])}
	}
	return data, nil
}

// serverError is what the other side says went wrong.
type serverError struct{ msg string }

func (e *serverError) Error() string { return "the server says: " + plainText(e.msg) }

// plainText makes what the other side says fit for a message: without what would make a terminal do things.
func plainText(s string) string {
	if len(s) > 1000 {
		s = s[:1000] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' {
			return r
		}
		return '·'
	}, strings.TrimSpace(s))
}

func packet(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }

// advert is what a server says about a repository before anything is asked for.
type advert struct {
	refs   map[string]string // ids by name; tags also under name^{}
	head   string            // what HEAD stands for, "" if the server does not say
	caps   map[string]bool
	hexLen int
}

// Limits of the list of refs. The largest known repositories have about a million.
const (
	maxRefs     = 2 << 20
	maxRefBytes = 256 << 20
)

func newAdvert() *advert {
	return &advert{refs: map[string]string{}, caps: map[string]bool{}, hexLen: 40}
}

// readAdvert reads the list of refs.
func readAdvert(r *bufio.Reader) (*advert, error) {
	buf := make([]byte, maxPacket)
	a := newAdvert()
	first, size := true, 0
	for {
		line, err := readPacket(r, buf)
		if err == errFlush {
			return a, nil
		}
		if err != nil {
			return nil, err
		}
		if size += len(line); size > maxRefBytes || len(a.refs) > maxRefs {
			return nil, errors.New("the list of refs is too long")
		}
		text := strings.TrimSuffix(string(line), "\n")
		if first {
			if text == "version 1" {
				continue
			}
			first = false
			var caps string
			text, caps, _ = strings.Cut(text, "\x00")
			a.capabilities(caps)
		}
		id, name, ok := strings.Cut(text, " ")
		if !ok {
			return nil, fmt.Errorf("unexpected line %.200q in the list of refs", text)
		}
		if id == "shallow" || name == "capabilities^{}" {
			continue
		}
		if err := a.add(name, id); err != nil {
			return nil, err
		}
	}
}

func (a *advert) add(name, id string) error {
	if !IsCommit(id) {
		return fmt.Errorf("ref %.200q has an invalid id %.100q", name, id)
	}
	a.refs[name] = id
	a.hexLen = len(id)
	return nil
}

func (a *advert) capabilities(list string) {
	for c := range strings.FieldsSeq(list) {
		k, v, _ := strings.Cut(c, "=")
		a.caps[k] = true
		switch {
		case k == "symref" && strings.HasPrefix(v, "HEAD:"):
			a.head = strings.TrimPrefix(v, "HEAD:")
		case k == "object-format" && v == "sha256":
			a.hexLen = 64
		}
	}
}

// request is what is sent to get objects: everything reachable from ids, or only the commits themselves with their files.
func (a *advert) request(agent string, ids []string, shallow bool) string {
	caps := []string{}
	for _, c := range []string{"side-band-64k", "ofs-delta", "no-progress"} {
		if a.caps[c] {
			caps = append(caps, c)
		}
	}
	if a.caps["object-format"] && a.hexLen == 64 {
		caps = append(caps, "object-format=sha256")
	}
	if a.caps["agent"] {
		caps = append(caps, "agent="+agent)
	}
	var b strings.Builder
	for i, id := range ids {
		line := "want " + id
		if i == 0 && len(caps) > 0 {
			line += " " + strings.Join(caps, " ")
		}
		b.WriteString(packet(line + "\n"))
	}
	if shallow {
		b.WriteString(packet("deepen 1\n"))
	}
	b.WriteString("0000" + packet("done\n"))
	return b.String()
}

// readAnswer reads the answer to a request, and copies the pack in it to w.
func (a *advert) readAnswer(ctx context.Context, r *bufio.Reader, w io.Writer, shallow bool) error {
	buf := make([]byte, maxPacket)
	if shallow {
		for {
			if _, err := readPacket(r, buf); err == errFlush {
				break
			} else if err != nil {
				return err
			}
		}
	}
	line, err := readPacket(r, buf)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(line), "NAK") {
		return fmt.Errorf("unexpected answer %.200q", line)
	}
	if !a.caps["side-band-64k"] {
		_, err := io.Copy(w, &ctxReader{ctx, r})
		return err
	}
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		data, err := readPacket(r, buf)
		if err == errFlush || err == io.EOF {
			return nil // that all of it came shows when the pack is checked
		}
		if err != nil {
			return err
		}
		if len(data) == 0 {
			continue
		}
		switch data[0] {
		case 1:
			if _, err := w.Write(data[1:]); err != nil {
				return err
			}
		case 2: // progress
		case 3:
			return &serverError{string(data[1:])}
		}
	}
}
