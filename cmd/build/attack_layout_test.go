package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout makes a layout of one image with one layer on busybox, whose blob, media type and descriptor may be anything.
func (a *arena) layout(name string, blob []byte, mediaType string, diffID digest.Digest, change func(*ocispec.Manifest)) string {
	a.t.Helper()
	dir := filepath.Join(a.dir, "images", name)
	a.image(name, nil)
	a.contexts = a.contexts[:len(a.contexts)-1]
	manifest, image := readImage(a.t, dir)
	var conf map[string]any
	check(a.t, json.Unmarshal(image, &conf))
	if blob != nil {
		diffs := conf["rootfs"].(map[string]any)
		diffs["diff_ids"] = append(diffs["diff_ids"].([]any), diffID.String())
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: putBlob(a.t, dir, blob), Size: int64(len(blob))})
	}
	data, err := json.Marshal(conf)
	check(a.t, err)
	manifest.Config.Digest, manifest.Config.Size = putBlob(a.t, dir, data), int64(len(data))
	if change != nil {
		change(&manifest)
	}
	data, err = json.Marshal(manifest)
	check(a.t, err)
	writeLayout(a.t, dir, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: putBlob(a.t, dir, data), Size: int64(len(data))})
	return dir
}

// refusedImage wants a build on an image to fail, whatever it does with it.
func (a *arena) refusedImage(why, dir string) {
	a.t.Helper()
	for _, df := range []string{"FROM evil\nRUN true\n", "FROM base\nCOPY --from=evil / /x\n"} {
		if r := a.build(df, "--build-context", "evil=oci-layout://"+dir, "-o", a.dir+"/out"); r.code == 0 {
			a.t.Errorf("%s: is accepted:\n%s", why, r.out)
		}
	}
	a.holdsNoToken(a.dir + "/out")
}

// B13, P6, M16, R5: a directory that says it is an image. Files that are none, digests that are paths, sizes that cannot be,
// documents of two kinds.
func TestAttackLayouts(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		for i, replace := range []func(string) error{
			func(p string) error { return syscall.Mkfifo(p, 0o644) },
			func(p string) error { return os.Symlink(a.host+"/fifo", p) },
			func(p string) error { return os.Symlink(a.host+"/secret", p) },
			func(p string) error { return os.Symlink("/dev/zero", p) },
			func(p string) error { check(t, os.WriteFile(p, nil, 0o644)); return os.Truncate(p, 1<<40) },
		} {
			for _, which := range []string{"index.json", "oci-layout", "manifest", "config", "layer"} {
				own := archive(t, []entry{file("f", fmt.Sprint(which, i))})
				dir := a.layout(fmt.Sprintf("%s%d", which, i), own, ocispec.MediaTypeImageLayer, digest.FromBytes(own), nil)
				m, _ := readImage(t, dir)
				var index ocispec.Index
				data, err := os.ReadFile(dir + "/index.json")
				check(t, err)
				check(t, json.Unmarshal(data, &index))
				path := dir + "/" + which
				switch which {
				case "manifest":
					path = dir + "/blobs/sha256/" + index.Manifests[0].Digest.Encoded()
				case "config":
					path = dir + "/blobs/sha256/" + m.Config.Digest.Encoded()
				case "layer":
					path = dir + "/blobs/sha256/" + m.Layers[1].Digest.Encoded()
				}
				check(t, os.Remove(path))
				check(t, replace(path))
				if which == "oci-layout" { // nobody needs to read more of it than that it is there
					a.build("FROM evil\nRUN true\n", "--build-context", "evil=oci-layout://"+dir)
					continue
				}
				a.refusedImage(fmt.Sprintf("%s replaced, %d", which, i), dir)
			}
		}
		for name, change := range map[string]func(*ocispec.Manifest){
			"path":        func(m *ocispec.Manifest) { m.Layers[1].Digest = digest.Digest("sha256:" + up + a.host + "/secret") },
			"path config": func(m *ocispec.Manifest) { m.Config.Digest = "sha256:../../../../host/secret" },
			"algorithm":   func(m *ocispec.Manifest) { m.Config.Digest = digest.Digest("../../../host:" + strings.Repeat("a", 64)) },
			"short":       func(m *ocispec.Manifest) { m.Layers[1].Digest = "sha256:ab" },
			"upper case": func(m *ocispec.Manifest) {
				m.Layers[1].Digest = digest.Digest(strings.ToUpper(string(m.Layers[1].Digest)))
			},
			"negative":        func(m *ocispec.Manifest) { m.Layers[1].Size = -1 },
			"giant":           func(m *ocispec.Manifest) { m.Layers[1].Size = 1 << 62 },
			"giant config":    func(m *ocispec.Manifest) { m.Config.Size = 1 << 62 },
			"one more":        func(m *ocispec.Manifest) { m.Layers[1].Size++ },
			"config as image": func(m *ocispec.Manifest) { m.Config.MediaType = ocispec.MediaTypeImageManifest },
			"foreign layer": func(m *ocispec.Manifest) {
				m.Layers[1].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
				m.Layers[1].URLs = []string{"http://127.0.0.1:1/x"}
				m.Layers[1].Digest = digest.FromString("elsewhere")
			},
			"one twice": func(m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[1]) },
		} {
			own := archive(t, []entry{file("f", name)}) // a layer that no build has seen
			a.refusedImage(name, a.layout("m-"+strings.ReplaceAll(name, " ", "-"), own, ocispec.MediaTypeImageLayer, digest.FromBytes(own), change))
		}
		dir := a.layout("both", nil, "", "", nil)
		m, _ := readImage(t, dir)
		both, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "config": m.Config, "layers": m.Layers, "manifests": []ocispec.Descriptor{m.Config}})
		check(t, err)
		writeLayout(t, dir, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: putBlob(t, dir, both), Size: int64(len(both))})
		a.refusedImage("index and manifest", dir)
	})
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	check(t, err)
	check(t, w.Close())
	return b.Bytes()
}

// M15, P17: layers that are small and say or become much. Each ends with an error, or with what it says, in bounded memory and
// room.
func TestAttackBombs(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		const gz = ocispec.MediaTypeImageLayerGzip
		good := func(of string) []byte { // no layer is like another: the store knows those it has seen
			return archive(t, []entry{file("f", of+strings.Repeat("x", 1<<16))})
		}
		pax := archive(t, []entry{{tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("y", 900<<10)}}, ""}})
		claims := bytes.Clone(archive(t, []entry{file("f", "")}))
		giant := tar.Header{Typeflag: tar.TypeReg, Name: "giant", Size: 1 << 45, Mode: 0o644, Format: tar.FormatGNU}
		var head bytes.Buffer
		check(t, tar.NewWriter(&head).WriteHeader(&giant))
		claims = append(head.Bytes(), make([]byte, 1<<20)...)
		// A header of 15 MiB.
		long := append(bytes.Clone(pax[:512]), bytes.Repeat([]byte("30 SCHILY.xattr.user.x=yyyyyy\n"), 1<<19)...)
		copy(long[124:], fmt.Sprintf("%011o\x00", 30<<19))
		checksum(long)
		for name, c := range map[string]struct {
			blob   []byte
			media  string
			diffID digest.Digest
		}{
			"truncated gzip":              {gzipped(t, good("1"))[:60], gz, digest.FromBytes(good("1"))},
			"truncated zstd":              {[]byte("\x28\xb5\x2f\xfd\x04\x58\x99\x00\x00hello"), ocispec.MediaTypeImageLayerZstd, digest.FromString("zstd")},
			"zstd with a window of 3 TiB": {[]byte("\x28\xb5\x2f\xfd\x00\xff\x01\x00\x00x"), ocispec.MediaTypeImageLayerZstd, digest.FromString("zstd")},
			"size without content":        {gzipped(t, claims), gz, digest.FromBytes(claims)},
			"endless header":              {gzipped(t, long), gz, digest.FromBytes(long)},
			"trailing gzip":               {append(gzipped(t, good("2")), gzipped(t, bytes.Repeat([]byte("x"), 1<<20))...), gz, digest.FromBytes(good("2"))},
			"plain as gzip":               {good("3"), gz, digest.FromString("x")},
		} {
			a.refusedImage(name, a.layout("b-"+strings.ReplaceAll(name, " ", "-"), c.blob, c.media, c.diffID, nil))
		}
		blob, diffID := zeros(t, 64<<20)
		dir := a.layout("zeros", blob, gz, diffID, nil)
		cmd := a.command(t.Context(), append(a.args("--build-context", "evil=oci-layout://"+dir), "-f", "-", a.dir+"/ctx")...)
		cmd.Stdin = strings.NewReader("FROM evil\nRUN [ $(wc -c < /zeros) = 67108864 ]\nCOPY --from=evil /zeros /z\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if usage := cmd.ProcessState.SysUsage().(*syscall.Rusage); usage.Maxrss > 256<<10 {
			t.Errorf("%d kB of memory for a layer of zeros", usage.Maxrss)
		}
		if n := room(a.dir + "/store"); n > 32<<20 {
			t.Errorf("%d bytes of room for a layer of zeros", n)
		}
	})
}

// zeros is a compressed layer with a file of zeros, made in little memory: what the kernel says a program took at most counts
// from before it was executed.
func zeros(t *testing.T, size int64) ([]byte, digest.Digest) {
	t.Helper()
	var b bytes.Buffer
	z, d := gzip.NewWriter(&b), digest.Canonical.Digester()
	w := tar.NewWriter(io.MultiWriter(z, d.Hash()))
	check(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: size, Mode: 0o644}))
	for range size >> 20 {
		_, err := w.Write(make([]byte, 1<<20))
		check(t, err)
	}
	check(t, w.Close())
	check(t, z.Close())
	return b.Bytes(), d.Digest()
}

// checksum makes the first header of a tar right.
func checksum(b []byte) {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// room is how much of a disk is taken below a directory.
func room(dir string) (n int64) {
	_ = filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return n
}

// M10: many entries, deep below each other and beside each other, with as many deletions over them.
func TestAttackManyEntries(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		var add, remove []entry
		prefix := strings.Repeat("d/", 60)
		for i := range 1500 {
			add = append(add, file(fmt.Sprintf("%s%d/f", prefix, i%300), ""), file(fmt.Sprintf("flat/%d", i), ""))
			remove = append(remove, file(fmt.Sprintf("flat/.wh.%d", i), ""))
		}
		for i := range 300 {
			remove = append(remove, file(fmt.Sprintf("%s%d/.wh..wh..opq", prefix, i), ""))
		}
		a.image("many", nil, add, remove, add[:100])
		a.ok("FROM many\nRUN [ $(ls /flat | wc -l) = 50 ] || echo ' BREACH' $(ls /flat | wc -l)\n")
	})
}

// What a step leaves as deep as no path is long can be made a layer of or be refused, and be removed.
func TestAttackDeepTree(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		const deep = "n=$(printf %0200d 0); i=0; while [ $i -lt 600 ]; do [ $i = 30 ] && n=d; mkdir $n; cd $n 2>/dev/null || break; i=$((i+1)); done; cd /; "
		a.build("FROM base\nWORKDIR /t\nRUN " + deep + "true\n")
		a.build("FROM base\nWORKDIR /t\nRUN " + deep + "false\n")
		a.build("FROM base\nRUN --mount=type=cache,target=/c cd /c; " + deep + "true\n")
		a.ok("FROM base\nRUN true\n")
		for _, pattern := range []string{"tmp/*", "local/*/tmp/*", "trash/*", "local/*/trash/*"} {
			if left, _ := filepath.Glob(a.dir + "/store/" + pattern); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		}
	})
}

// M6: what a store holds is for nobody else: programs of any owner with any mode are in it.
func TestAttackOpenStore(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		a.image("suid", nil, []entry{{tar.Header{Typeflag: tar.TypeReg, Name: "bin/suid", Mode: 0o4777, Size: 1}, "x"}})
		a.ok("FROM suid\nRUN cp /bin/suid /bin/suid2 && chmod 4777 /bin/suid2\n")
		n := 0
		check(t, filepath.WalkDir(a.dir+"/store", func(path string, d os.DirEntry, err error) error {
			if err != nil && !os.IsPermission(err) {
				return err
			}
			if d.IsDir() && strings.Count(strings.TrimPrefix(path, a.dir+"/store"), "/") < 3 {
				info, err := d.Info()
				check(t, err)
				n++
				if info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s has mode %v", path, info.Mode())
				}
			}
			return nil
		}))
		if n < 5 {
			t.Errorf("only %d directories were looked at", n)
		}
		for _, mode := range []os.FileMode{0o777, 0o720, 0o702} {
			check(t, os.Chmod(a.dir+"/store", mode))
			a.refused("chmod", "FROM base\nRUN true\n")
		}
		check(t, os.Chmod(a.dir+"/store", 0o755))
		a.ok("FROM base\nRUN true\n")
		check(t, os.Chmod(a.dir+"/store/local", 0o711))
		a.refused("chmod", "FROM base\nRUN true\n")
		check(t, os.Chmod(a.dir+"/store/local", 0o700))
	})
}
