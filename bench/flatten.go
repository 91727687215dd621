package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// image is one that skopeo wrote as "dir:", having verified every digest.
type image struct {
	dir     string
	blobs   []string // digests of the layers as they are
	diffIDs []string // digests of what is in them
}

func readImage(dir string) (*image, error) {
	var m manifest
	if err := readJSON(filepath.Join(dir, "manifest.json"), &m); err != nil {
		return nil, err
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	im := &image{dir: dir}
	if err := readJSON(im.file(m.Config.Digest), &config); err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		im.blobs = append(im.blobs, l.Digest)
	}
	im.diffIDs = config.RootFS.DiffIDs
	if len(im.diffIDs) != len(im.blobs) {
		return nil, fmt.Errorf("%d layers, but %d diff IDs", len(im.blobs), len(im.diffIDs))
	}
	return im, nil
}

func readJSON(file string, v any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func (im *image) file(digest string) string {
	return filepath.Join(im.dir, strings.TrimPrefix(digest, "sha256:"))
}

// rootfs is what an image's layers come to: for each path a line of type, mode, owner, size and content. Times are left out:
// builders choose those of what they make themselves.
type rootfs map[string]string

// flatten applies the layers, as data.
func (im *image) flatten() (rootfs, error) {
	fs := rootfs{}
	for i, digest := range im.blobs {
		if err := fs.applyFile(im.file(digest), im.diffIDs[i]); err != nil {
			return nil, fmt.Errorf("layer %s: %w", digest, err)
		}
	}
	return fs, nil
}

func (fs rootfs) applyFile(file, diffID string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	head, err := r.Peek(2)
	if err != nil {
		return err
	}
	var plain io.Reader = r
	if bytes.Equal(head, []byte{0x1f, 0x8b}) {
		if plain, err = gzip.NewReader(r); err != nil {
			return err
		}
	}
	sum := sha256.New()
	plain = io.TeeReader(plain, sum)
	if err := fs.apply(plain); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, plain); err != nil { // what follows the archive's end
		return err
	}
	if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); got != diffID {
		return fmt.Errorf("the configuration says diff ID %s, it is %s", diffID, got)
	}
	return nil
}

const whiteout, opaque = ".wh.", ".wh..wh..opq"

func (fs rootfs) apply(r io.Reader) error {
	layer := rootfs{}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(filepath.Clean("/"+h.Name), "/")
		dir, last := filepath.Split(name)
		switch {
		case last == opaque:
			fs.empty(strings.TrimSuffix(dir, "/"))
		case strings.HasPrefix(last, whiteout):
			gone := dir + strings.TrimPrefix(last, whiteout)
			fs.empty(gone)
			delete(fs, gone)
		case h.Typeflag == tar.TypeLink:
			to := strings.TrimPrefix(filepath.Clean("/"+h.Linkname), "/")
			line, ok := layer[to]
			if !ok {
				line, ok = fs[to]
			}
			if !ok {
				return fmt.Errorf("%s is a hard link to %s, which is not there", name, to)
			}
			layer[name] = line
		default:
			if layer[name], err = describe(h, t); err != nil {
				return err
			}
		}
	}
	for name, line := range layer {
		if old := fs[name]; old != "" && old[0] == 'd' && line[0] != 'd' {
			fs.empty(name)
		}
		fs[name] = line
	}
	return nil
}

// empty forgets what is below a path. It looks at everything: layers remove seldom.
func (fs rootfs) empty(name string) {
	for p := range fs {
		if strings.HasPrefix(p, name+"/") {
			delete(fs, p)
		}
	}
}

// describe is a path's line. The first letter is the type.
func describe(h *tar.Header, r io.Reader) (string, error) {
	kind, ok := map[byte]byte{tar.TypeReg: 'f', tar.TypeDir: 'd', tar.TypeSymlink: 'l', tar.TypeChar: 'c', tar.TypeBlock: 'b', tar.TypeFifo: 'p'}[h.Typeflag]
	if !ok {
		return "", fmt.Errorf("%s is of type %q", h.Name, h.Typeflag)
	}
	line := fmt.Sprintf("%c %04o %d:%d", kind, h.Mode&0o7777, h.Uid, h.Gid)
	switch kind {
	case 'f':
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			return "", err
		}
		line += fmt.Sprintf(" %d %x", h.Size, sum.Sum(nil))
	case 'l':
		line += " " + h.Linkname
	case 'c', 'b':
		line += fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
	}
	return line, nil
}

// mountpoints are paths that builders make for what they mount into steps, each builder others.
var mountpoints = []string{"dev", "proc", "sys", "run", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf"}

func isMountpoint(name string) bool {
	top, _, _ := strings.Cut(name, "/")
	return name == "" || slices.Contains(mountpoints, name) || top != "etc" && slices.Contains(mountpoints, top)
}

// differences lists what two file systems do not have in common; with random, contents are not looked at.
func differences(a, b rootfs, random bool) []string {
	line := func(s string) string {
		if random && strings.HasPrefix(s, "f ") {
			return s[:strings.LastIndexByte(s, ' ')]
		}
		return s
	}
	var all []string
	for name, in := range a {
		if isMountpoint(name) {
			continue
		}
		if other, ok := b[name]; !ok {
			all = append(all, name+" is missing")
		} else if line(in) != line(other) {
			all = append(all, fmt.Sprintf("%s is %q, not %q", name, line(other), line(in)))
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok && !isMountpoint(name) {
			all = append(all, name+" is too much")
		}
	}
	slices.Sort(all)
	return all
}
