package git

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// gitDir writes a .git that holds one commit without history, for builds that ask git about themselves.
type gitDir struct {
	ctx   context.Context
	root  *os.Root
	r     *Remote
	o     *objects
	t     Target
	c     commit
	index []indexEntry
}

func (g *gitDir) write() error {
	for _, dir := range []string{"", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags"} {
		if err := g.root.MkdirAll(path.Join(".git", dir), 0o755); err != nil {
			return err
		}
	}
	version, extension := 0, ""
	if g.o.hexLen == 64 {
		version, extension = 1, "[extensions]\n\tobjectformat = sha256\n"
	}
	config := fmt.Sprintf("[core]\n\trepositoryformatversion = %d\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n%s", version, extension)
	config += fmt.Sprintf("[remote \"origin\"]\n\turl = %s\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n", quoteConfig(g.r.name))
	files := map[string]string{
		"HEAD":    g.c.id + "\n", // detached, as of a checkout by id
		"config":  config,
		"shallow": g.c.id + "\n",
	}
	if ref := g.t.Ref; strings.HasPrefix(ref, "refs/") && !strings.Contains(ref, "..") && !strings.HasSuffix(ref, ".lock") {
		files[ref] = g.t.Object + "\n"
	}
	for name, text := range files {
		if err := g.file(name, []byte(text)); err != nil {
			return err
		}
	}
	if err := g.objects(); err != nil {
		return err
	}
	index, err := g.encodeIndex()
	if err != nil {
		return err
	}
	if err := g.file("index", index); err != nil {
		return err
	}
	return g.modes()
}

// quoteConfig writes a value for a configuration file, in which some characters would end it.
func quoteConfig(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// modes makes the modes what they are without a umask.
func (g *gitDir) modes() error {
	return fs.WalkDir(g.root.FS(), ".git", func(name string, d fs.DirEntry, err error) error {
		mode := os.FileMode(0o644)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			mode = 0o755
		case strings.HasPrefix(name, ".git/objects/"):
			mode = 0o444
		}
		return g.root.Chmod(name, mode)
	})
}

func (g *gitDir) file(name string, data []byte) error {
	name = path.Join(".git", name)
	if err := g.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return g.root.WriteFile(name, data, 0o644)
}

// objects writes the commit, the tag that was asked for and everything in the commit.
func (g *gitDir) objects() error {
	ids := []string{g.c.id}
	if g.t.Object != g.c.id {
		ids = append(ids, g.t.Object)
	}
	todo, seen := []string{g.c.tree}, map[string]bool{g.c.tree: true}
	for len(todo) > 0 {
		id := todo[0]
		todo = todo[1:]
		ids = append(ids, id)
		entries, err := g.o.tree(g.ctx, id)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.mode&modeType == modeModule || seen[e.id] {
				continue
			}
			seen[e.id] = true
			if e.mode&modeType == modeDir {
				todo = append(todo, e.id)
			} else {
				ids = append(ids, e.id)
			}
		}
	}
	for _, id := range ids {
		if err := g.object(id); err != nil {
			return err
		}
	}
	return nil
}

func (g *gitDir) object(id string) error {
	k, size, r, err := g.o.open(g.ctx, id)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := g.root.MkdirAll(".git/objects/"+id[:2], 0o755); err != nil {
		return err
	}
	f, err := g.root.OpenFile(".git/objects/"+id[:2]+"/"+id[2:], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	z, err := zlib.NewWriterLevel(f, zlib.BestSpeed)
	if err == nil {
		_, err = fmt.Fprintf(z, "%s %d\x00", k, size)
	}
	if err == nil {
		_, err = io.Copy(z, &ctxReader{g.ctx, r})
	}
	if err == nil {
		err = z.Close()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// indexEntry is one file of the checkout.
type indexEntry struct {
	path string
	mode uint32
	id   string
	size int64
}

// encodeIndex makes an index without the times of the files, which a copy changes anyway: git looks at the contents once
// and then knows them.
func (g *gitDir) encodeIndex() ([]byte, error) {
	slices.SortFunc(g.index, func(a, b indexEntry) int { return strings.Compare(a.path, b.path) })
	var b bytes.Buffer
	b.WriteString("DIRC")
	put := func(v uint32) { b.Write(binary.BigEndian.AppendUint32(nil, v)) }
	put(2)
	put(uint32(len(g.index)))
	for _, e := range g.index {
		start := b.Len()
		for range 6 { // times, device, inode
			put(0)
		}
		mode := e.mode
		if mode&modeType == modeRegular {
			mode = modeRegular | 0o644
			if e.mode&0o100 != 0 {
				mode = modeRegular | 0o755
			}
		}
		put(mode)
		put(0)
		put(0)
		put(uint32(e.size))
		id, err := hex.DecodeString(e.id)
		if err != nil {
			return nil, err
		}
		b.Write(id)
		b.Write(binary.BigEndian.AppendUint16(nil, uint16(min(len(e.path), 0xfff))))
		b.WriteString(e.path)
		b.Write(make([]byte, 8-(b.Len()-start)%8))
	}
	h := newHash(g.o.hexLen)
	_, _ = h.Write(b.Bytes())
	end, err := sum(h)
	return append(b.Bytes(), end...), err
}
