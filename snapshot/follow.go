package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// A layer that is downloaded for a command is unpacked while it arrives: whoever downloads writes the file of the blob and
// tells through a pipe how much of it is there; whoever owns the ids of the directory reads behind. The pipe carries
// nothing but numbers, so the blob is copied no more often than if it had been complete before.

// markSize is the size of one number in the pipe: how many bytes of the blob are there, little-endian.
const markSize = 8

// TellGrowth returns a Follow's grown function that writes to the pipe w. It ends to write when nobody reads any more.
func TellGrowth(w io.Writer) func(n int64) {
	told, deaf := int64(0), false
	return func(n int64) {
		if deaf || n <= told {
			return
		}
		told = n
		var mark [markSize]byte
		binary.LittleEndian.PutUint64(mark[:], uint64(n))
		_, err := w.Write(mark[:])
		deaf = err != nil
	}
}

// growing reads a file that somebody else is writing.
type growing struct {
	f     *os.File
	marks io.Reader
	size  int64 // of the whole
	off   int64
	there int64
	err   error // that ended reading
}

func (g *growing) again() error {
	g.off = 0
	return nil
}

func (g *growing) failure() error { return g.err }

// head waits for the first bytes.
func (g *growing) head(n int) []byte {
	b := make([]byte, n)
	n, _ = io.ReadFull(g, b) // an error stays
	g.off = 0
	return b[:n]
}

var errAbandoned = errors.New("the download has ended early")

func (g *growing) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	n, err := g.read(p)
	if err != nil && err != io.EOF {
		g.err = err
	}
	return n, err
}

func (g *growing) read(p []byte) (int, error) {
	for g.off == g.there {
		if g.off == g.size {
			return 0, io.EOF
		}
		var mark [markSize]byte
		if _, err := io.ReadFull(g.marks, mark[:]); err != nil {
			return 0, fmt.Errorf("after %d of %d bytes: %w", g.off, g.size, errAbandoned)
		}
		n := int64(binary.LittleEndian.Uint64(mark[:]))
		if n < g.there || n > g.size {
			return 0, fmt.Errorf("a download of %d bytes has %d", g.size, n)
		}
		g.there = n
	}
	n, err := g.f.ReadAt(p[:min(int64(len(p)), g.there-g.off)], g.off)
	g.off += int64(n)
	if n > 0 {
		err = nil
	} else if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// UnpackFollowing unpacks chain[i] and makes its index while its blob, of size bytes, arrives in f; marks is what
// TellGrowth writes to. The plain bytes decide whether the layer is the right one: nothing is published unless they have
// its diffID, whatever becomes of the blob. What is made is found by Unpack and Index; an error only means that they have
// to read the blob again.
func (l *Layers) UnpackFollowing(ctx context.Context, chain []digest.Digest, i int, f *os.File, marks io.Reader, size int64) error {
	if i < 0 || i >= len(chain) {
		return fmt.Errorf("unpack layer %d of %d", i, len(chain))
	}
	made, err := l.unpackNew(ctx, chain[i], func(stages ...func([]byte) error) (*stream, error) {
		return l.inflate.plainOf(ctx, &growing{f: f, marks: marks, size: size}, size, stages...)
	})
	if err != nil || made == nil {
		return err
	}
	x, err := l.Index(ctx, chain[i])
	if err != nil {
		made.drop()
		return err
	}
	if x.Summary().Implied > 0 { // the layers below decide about these, and they may not be here yet
		l.keepEarly(chain[i], made)
		return nil
	}
	defer made.drop()
	_, err = l.readyDir(ctx, chain, i, func() (string, error) { return l.makeDir(ctx, chain, i, made) })
	return err
}

// keepEarly keeps a directory whose place is not known yet.
func (l *Layers) keepEarly(diffID digest.Digest, t *tempTree) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.early[diffID].drop()
	l.early[diffID] = t
}

// takeEarly returns what keepEarly kept, or nil.
func (l *Layers) takeEarly(diffID digest.Digest) *tempTree {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.early[diffID]
	delete(l.early, diffID)
	return t
}

// dropEarly gives up what nobody took.
func (l *Layers) dropEarly() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d, t := range l.early {
		t.drop()
		delete(l.early, d)
	}
}
