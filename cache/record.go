package cache

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"build/internal/store"
)

// Record is what a step gave.
type Record struct {
	// Layers is the whole chain of diffIDs that the step led to, bottom first, and not only its own: an old layer must
	// never come to lie on a base that was made again.
	Layers []digest.Digest
	// Times says when each layer was made, as the history of an image wants to know; empty, or one per layer. The zero
	// time is one that is not known.
	Times []time.Time
	Base  int // how many layers, from the bottom, came with an image
	Own   int // how many layers, at the end, are the step's own

	Created time.Time
	Took    time.Duration
	Step    string // as it is shown
	// Text is what the key was hashed from. Get leaves out of it what is stored apart: see Cache.Text.
	Text []byte
}

const recordHead = "build-record 1"

// timeFormat keeps every digit, so that a time is the same after it was read.
const timeFormat = time.RFC3339Nano

func formatTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(timeFormat)
}

func parseTime(s string) (time.Time, error) {
	if s == "-" {
		return time.Time{}, nil
	}
	t, err := time.Parse(timeFormat, s)
	if err != nil || formatTime(t) != s {
		return time.Time{}, fmt.Errorf("%.60q is no time", s)
	}
	return t.UTC(), nil
}

// valid reports what is wrong with a record.
func (r *Record) valid() error {
	for _, d := range r.Layers {
		if !store.ValidDigest(d) {
			return fmt.Errorf("%.80q is no digest of a layer", string(d))
		}
	}
	switch {
	case len(r.Times) != 0 && len(r.Times) != len(r.Layers):
		return fmt.Errorf("%d times for %d layers", len(r.Times), len(r.Layers))
	case r.Own < 0 || r.Base < 0 || r.Own > len(r.Layers) || r.Base > len(r.Layers):
		return fmt.Errorf("%d layers of a base and %d of its own among %d", r.Base, r.Own, len(r.Layers))
	case r.Took < 0:
		return errors.New("it took less than no time")
	}
	for _, t := range append([]time.Time{r.Created}, r.Times...) {
		if y := t.UTC().Year(); y < 0 || y > 9999 {
			return fmt.Errorf("year %d", y)
		}
	}
	return nil
}

// encode writes a record as text. There is one way to write a record, and decode accepts no other.
func (r *Record) encode(k Key) ([]byte, error) {
	if err := r.valid(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(400 + 110*len(r.Layers) + len(r.Text))
	fmt.Fprintf(&b, "%s\nkey %s\nstep %s\ncreated %s\ntook %d\nbase %d\nown %d\ntimes %t\nlayers %d\n", recordHead, k, strconv.Quote(r.Step),
		formatTime(r.Created), int64(r.Took), r.Base, r.Own, len(r.Times) > 0, len(r.Layers))
	for i, d := range r.Layers {
		b.WriteString(string(d))
		if len(r.Times) > 0 {
			b.WriteByte(' ')
			b.WriteString(formatTime(r.Times[i]))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "text %d\n", len(r.Text))
	b.Write(r.Text)
	return b.Bytes(), nil
}

// maxLayers bounds what is believed of a count before the layers were seen.
const maxLayers = 10_000

// decode reads what encode wrote.
func decode(data []byte) (Key, *Record, error) {
	p := &recordParser{rest: string(data)}
	if line := p.line(); line != recordHead {
		return Key{}, nil, fmt.Errorf("it begins with %.40q", line)
	}
	r := new(Record)
	k, err := ParseKey(p.field("key"))
	p.note(err)
	r.Step = p.quoted("step")
	r.Created = p.time(p.field("created"))
	r.Took = time.Duration(p.int("took"))
	r.Base, r.Own = int(p.int("base")), int(p.int("own"))
	times := p.field("times")
	n := int(p.int("layers"))
	if n > maxLayers {
		p.note(fmt.Errorf("%d layers", n))
	}
	for i := 0; i < n && p.err == nil; i++ {
		d, t, ok := strings.Cut(p.line(), " ")
		r.Layers = append(r.Layers, digest.Digest(d))
		if ok != (times == "true") {
			p.note(errors.New("a layer with a time too many or too few"))
		} else if ok {
			r.Times = append(r.Times, p.time(t))
		}
	}
	if size := p.int("text"); p.err == nil && size != int64(len(p.rest)) {
		p.note(fmt.Errorf("%d bytes of text instead of %d", len(p.rest), size))
	}
	if times != "true" && times != "false" || times == "true" && n == 0 {
		p.note(fmt.Errorf("times %.20q", times))
	}
	p.note(r.valid())
	if p.err != nil {
		return Key{}, nil, p.err
	}
	if p.rest != "" {
		r.Text = []byte(p.rest)
	}
	return k, r, nil
}

// recordParser reads a record line by line and keeps the first error.
type recordParser struct {
	rest string
	err  error
}

func (p *recordParser) note(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *recordParser) line() string {
	line, rest, ok := strings.Cut(p.rest, "\n")
	if !ok {
		p.note(errors.New("it ends early"))
		return ""
	}
	p.rest = rest
	return line
}

func (p *recordParser) field(name string) string {
	line := p.line()
	value, ok := strings.CutPrefix(line, name+" ")
	if !ok {
		p.note(fmt.Errorf("%.40q where %s was expected", line, name))
	}
	return value
}

func (p *recordParser) quoted(name string) string {
	v := p.field(name)
	s, err := strconv.Unquote(v)
	if err != nil || strconv.Quote(s) != v {
		p.note(fmt.Errorf("%s %.40q", name, v))
	}
	return s
}

func (p *recordParser) int(name string) int64 {
	v := p.field(name)
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != v {
		p.note(fmt.Errorf("%s %.40q", name, v))
		return 0
	}
	return n
}

func (p *recordParser) time(v string) time.Time {
	t, err := parseTime(v)
	p.note(err)
	return t
}
