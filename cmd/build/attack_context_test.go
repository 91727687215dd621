package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"build/internal/testenv"
)

// P9, P8: a Dockerfile and an ignore file that lead out of the context, or hang or exhaust whoever reads them.
func TestAttackDockerfileOfContext(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		ctx := a.dir + "/ctx"
		for _, name := range []string{"Dockerfile", ".dockerignore", "Dockerfile.dockerignore"} {
			for way, make := range map[string]func(path string) error{
				"absolute link":  func(p string) error { return os.Symlink(a.host+"/secret", p) },
				"relative link":  func(p string) error { return os.Symlink(up+a.host+"/secret", p) },
				"link to a fifo": func(p string) error { return os.Symlink(a.host+"/fifo", p) },
				"link to proc":   func(p string) error { return os.Symlink("/proc/self/environ", p) },
				"fifo":           func(p string) error { return syscall.Mkfifo(p, 0o644) },
				"endless":        func(p string) error { return os.Symlink("/dev/zero", p) },
				"huge":           func(p string) error { check(t, os.WriteFile(p, nil, 0o644)); return os.Truncate(p, 1<<40) },
				"socket":         func(p string) error { return syscall.Mknod(p, syscall.S_IFSOCK|0o644, 0) },
			} {
				check(t, os.RemoveAll(ctx))
				a.write("Dockerfile", "FROM base\nCOPY . /\n")
				_ = os.Remove(ctx + "/" + name)
				check(t, make(ctx+"/"+name))
				if r := a.run(a.args(ctx)...); r.code == 0 {
					t.Errorf("%s is a %s, and is accepted:\n%s", name, way, r.out)
				}
			}
		}
		check(t, os.RemoveAll(ctx))
	})
}

// A context holds links out of it, fifos and sockets: they are copied as what they are or refused, never followed.
func TestAttackFilesOfContext(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		ctx := a.dir + "/ctx"
		a.write("d/plain", "plain")
		for name, target := range map[string]string{"out": a.host, "up": up + a.host, "d/secret": a.host + "/secret", "proc": "/proc/self"} {
			check(t, os.Symlink(target, ctx+"/"+name))
		}
		check(t, syscall.Mkfifo(ctx+"/d/fifo", 0o644))
		for _, source := range []string{"out/secret", "up/dir/file", "proc/environ", up + a.host + "/secret", "d/../../host/secret", "out/*", "*/secret", "out/", "/../../host"} {
			for _, what := range []string{"COPY " + source + " /x/", "ADD " + source + " /x/", "COPY --parents " + source + " /x/"} {
				a.build("FROM base\n"+what+"\nRUN grep -r "+a.pattern()+" /x && echo ' BREACH'\n", "-o", a.dir+"/out")
				a.holdsNoToken(a.dir + "/out")
			}
		}
		for _, source := range []string{"out", "up/dir", "proc", "../host", up + a.host, "d/secret"} {
			a.noBreach(a.build("FROM base\nRUN --mount=type=bind,source=" + source + ",target=/m cat /m /m/* /m/dir/file >/dev/null 2>&1 && grep -rq " + a.pattern() + " /m && echo ' BREACH'\n"))
		}
		a.ok("FROM base\nCOPY d /d\nRUN [ -L /d/secret ] && [ -p /d/fifo ] && [ \"$(cat /d/plain)\" = plain ] || echo ' BREACH'\n")
	})
}

// P7: what a step writes to a mounted context or image is gone with the step.
func TestAttackWritesToMounts(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		a.write("d/f", "mine")
		before := fingerprint(t, a.dir+"/ctx")
		if a.mode != "chroot" { // there it is a copy that may be written to
			a.ok("FROM base\nRUN --mount=type=bind,target=/c touch /c/new 2>/dev/null && echo ' BREACH'; true\n")
		}
		a.ok(`FROM base
RUN --mount=type=bind,target=/c touch /c/new 2>/dev/null; true
RUN --mount=type=bind,rw,target=/c echo x > /c/d/f && touch /c/new && rm -rf /c/d && chmod 0 /c
RUN --mount=type=bind,rw,source=d,target=/c echo x > /c/f && chmod 4777 /c/f
RUN --mount=type=bind,rw,from=base,target=/c rm -rf /c/bin
RUN --mount=type=bind,from=base,target=/c [ -e /c/bin/sh ] || echo ' BREACH'
`)
		for path, was := range fingerprint(t, a.dir+"/ctx") {
			if before[path] != was {
				t.Errorf("%s is now %s, was %q", path, was, before[path])
			}
		}
	})
}

// hostileTar is one archive for each way out that tars have (A1 to A8 of the list), with a word for it.
func (a *arena) hostileTars() map[string][]entry {
	deep := strings.Repeat("d/", 300)
	return map[string][]entry{
		"A1 parent":            {file("../host/stub/x", "x")},
		"A1 absolute":          {file(a.host+"/stub/x", "x")},
		"A1 inside":            {file("a/../../host/stub/x", "x"), file("./../host/stub/x", "x")},
		"A1 odd":               {file("a//b", "x"), file("a\\..\\..\\b", "x"), directory("..")},
		"A1 long":              {file(strings.Repeat("n", 4096), "x")},
		"A1 deep":              {file(deep+"f", "x")},
		"A2 link":              {link("l", a.host), file("l/stub/x", "x"), file("l/secret", "x")},
		"A2 relative link":     {link("l", up+a.host), file("l/secret", "x"), directory("l/stub")},
		"A2 link to link":      {link("a", "b"), link("b", a.host), file("a/secret", "x")},
		"A3 hard link":         {hardlink("h", a.host+"/secret"), file("h", "x")},
		"A3 relative":          {hardlink("h", up+a.host+"/secret"), file("h", "x")},
		"A3 through link":      {link("l", a.host), hardlink("h", "l/secret"), file("h", "x")},
		"A3 to link":           {link("l", a.host+"/secret"), hardlink("h", "l"), file("h", "x")},
		"A4 file over link":    {link("f", a.host+"/secret"), file("f", "x")},
		"A4 directory":         {link("d", a.host), directory("d/"), file("d/secret", "x")},
		"A4 device":            {link("d", a.host+"/null"), special('3', "d"), special('6', "d")},
		"A6 whiteout":          {link("l", a.host), file("l/.wh.secret", ""), file("l/.wh..wh..opq", ""), file("l/dir/.wh..wh..opq", "")},
		"A6 of parent":         {file(".wh...", ""), file(".wh..", ""), file(".wh.", ""), file("a/.wh...", "")},
		"A6 of link":           {link("x", a.host), file(".wh.x", ""), file("x/secret", "x")},
		"A7 mode through link": {link("l", a.host+"/secret"), entry{tar.Header{Typeflag: tar.TypeReg, Name: "l", Mode: 0o7777}, ""}, entry{tar.Header{Typeflag: tar.TypeDir, Name: "l/", Mode: 0o7777}, ""}},
		"A7 owners":            {entry{tar.Header{Typeflag: tar.TypeReg, Name: "f", Uid: 1 << 40, Gid: -1}, ""}},
		"A8 link":              {link("./", a.host), file("secret", "x")},
		"A8 file":              {file(".", "x"), file("secret", "x")},
		"A8 hard link":         {hardlink(".", a.host), file("secret", "x")},
		"A8 no mode":           {entry{tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0}, ""}, file("f", "x")},
	}
}

// A1 to A8, over every way in that a tar has: a layer alone and over the layer with its link, ADD, standard input.
func TestAttackArchives(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		const df = "FROM base\nADD evil.tar /x/\nRUN true\n"
		n := 0
		for name, entries := range a.hostileTars() {
			n++
			image := fmt.Sprintf("layer%d", n)
			a.contexts = a.contexts[:1] // base
			a.image(image, nil, entries[:1], entries[1:])
			a.build("FROM "+image+"\nRUN true\nCOPY --from="+image+" / /y\n", "-o", fmt.Sprintf("%s/out/%d", a.dir, n))
			data := archive(t, entries)
			a.write("evil.tar", string(data))
			a.build(df, "-o", fmt.Sprintf("%s/out/%da", a.dir, n))
			cmd := a.command(t.Context(), a.args("-f", "Dockerfile", "-o", fmt.Sprintf("%s/out/%di", a.dir, n), "-")...)
			cmd.Stdin = io.MultiReader(bytes.NewReader(data[:len(data)-1024]), bytes.NewReader(archive(t, []entry{file("Dockerfile", "FROM base\nCOPY . /x\nRUN true\n")})))
			if out, err := cmd.CombinedOutput(); bytes.Contains(out, []byte(a.token)) || bytes.Contains(out, []byte("goroutine ")) {
				t.Errorf("%s on standard input: %v\n%s", name, err, out)
			}
		}
		a.holdsNoToken(a.dir + "/out")
		for _, path := range []string{"/stub", a.dir + "/stub", a.dir + "/x"} {
			if _, err := os.Lstat(path); err == nil {
				t.Errorf("%s was made", path)
			}
		}
	})
}

// holdsNoToken fails the test where a file below a directory, of whatever build, has the content of the host's.
func (a *arena) holdsNoToken(dir string) {
	a.t.Helper()
	_ = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(a.token)) {
				a.t.Errorf("%s has the host's content", path)
			}
		}
		return nil
	})
}

// P15, K5, M1: outputs. A directory full of links to the host, an image full of them, a swap while it is written.
func TestAttackOutputs(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		a.image("full", nil, []entry{
			directory("a"), file("a/secret", "x"), file("a/dir", "x"), link("l", a.host), link("up", up+a.host), hardlink("h", "a/secret"),
			file("null", "x"), file("fifo", "x"), file("back\\slash", "x"),
		})
		out := a.dir + "/out"
		check(t, os.Mkdir(out, 0o755))
		for name, target := range map[string]string{"a": a.host, "null": a.host + "/null", "h": a.host + "/secret", "fifo": a.host + "/fifo", "l": a.host + "/dir", "bin": a.host + "/dir", "etc": up + a.host} {
			check(t, os.Symlink(target, out+"/"+name))
		}
		a.ok("FROM full\n", "-o", out)
		for _, dest := range []string{"l", "up", "l/stub/x", "a/../../host/stub/y"} {
			check(t, os.MkdirAll(a.dir+"/o2", 0o755))
			a.ok("FROM full\nRUN echo > /made\n", "-o", "type=tar,dest="+a.dir+"/root.tar")
			a.build("FROM full\nWORKDIR /"+dest+"\nRUN echo x > secret; rm -rf ../host\n", "-o", a.dir+"/o2")
		}
		data, err := os.ReadFile(a.dir + "/root.tar")
		check(t, err)
		names := tarNames(t, data)
		if len(names) < 10 {
			t.Fatalf("%q", names)
		}
		for _, n := range names {
			if strings.HasPrefix(n, "/") || n == ".." || strings.HasPrefix(n, "../") || strings.Contains(n, "/../") || strings.HasSuffix(n, "/..") {
				t.Errorf("the archive has a name %q", n)
			}
		}
		for _, layout := range []string{"type=oci", "type=docker"} {
			a.ok("FROM full\n", "-t", "example.com/a:b", "-o", layout+",dest="+a.dir+"/image.tar")
			data, err := os.ReadFile(a.dir + "/image.tar")
			check(t, err)
			for _, n := range tarNames(t, data) {
				if strings.HasPrefix(n, "/") || strings.Contains(n, "..") {
					t.Errorf("%s: a name %q", layout, n)
				}
			}
		}
	})
}

func tarNames(t *testing.T, data []byte) (names []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		check(t, err)
		names = append(names, h.Name)
		if h.Typeflag == tar.TypeLink {
			names = append(names, h.Linkname)
		}
	}
}

// B7, P3, B10, M14: names that become files or keys of the store.
func TestAttackNames(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		for _, id := range []string{"../../../../host/dir", a.host, "..", ".", "a/b", "a\\nb"} {
			a.ok("FROM base\nRUN --mount=type=cache,id=" + id + ",target=/c grep -rq " + a.pattern() + " /c && echo ' BREACH'; touch /c/x; rm -rf /c/*\n")
			a.refused("", "FROM base\nRUN --mount=type=secret,required,id="+id+" true\n")
		}
		for _, sub := range []string{up + a.host, a.host, "../..", "x/../../..", "/.."} {
			a.noBreach(a.build("FROM base\nRUN --mount=type=cache,target=/c,source=" + sub + " ls /c/secret /c/" + a.host + " && echo ' BREACH'\n"))
			a.noBreach(a.build("FROM base\nRUN --mount=type=bind,from=base,target=/c,source=" + sub + " ls /c/secret /c/" + a.host + " && echo ' BREACH'\n"))
		}
		for _, tag := range []string{"../../evil", "/etc/x", "a/../b", "x:../y", "a@sha256:../../x", "-x", "a b", "x\x01y"} {
			a.refused("", "FROM base\n", "-t", tag)
		}
		a.ok("FROM base\nRUN true\n", "-t", "example.com/good:1")
		for _, args := range [][]string{{"rmi", "../../host"}, {"inspect", "../../host/secret"}, {"push", up + a.host}} {
			if r := a.run(args...); r.code == 0 {
				t.Errorf("%q: %s", args, r.out)
			}
		}
		for _, target := range []string{"/proc", "/proc/self/attr", "/proc/self/fd/1", "/sys", "/sys/fs/cgroup", "/proc/1/root" + a.host, "/"} {
			for _, mount := range []string{"tmpfs", "cache", "secret,id=s,required"} {
				a.refused("", "FROM base\nRUN --mount=type="+mount+",target="+target+" echo ' BREACH'\n", "--secret", "id=s,env=PATH")
			}
		}
		for _, option := range []string{"bind-propagation=shared", "type=devpts", "volume-opt=x", "z", "relabel=shared", "idmap", "type=bind,source=/,bind-propagation=rshared", "src=/,type=host"} {
			a.refused("", "FROM base\nRUN --mount=type=cache,target=/c,"+option+" echo ' BREACH'\n")
		}
	})
}

// B14: a server that is asked for a file names another one.
func TestAttackDownloads(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		var name string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if name == "redirect" && r.URL.Path != "/to" {
				http.Redirect(w, r, "file://"+a.host+"/secret", http.StatusFound)
				return
			}
			w.Header().Set("Content-Disposition", "attachment; filename="+name)
			_, _ = io.WriteString(w, "evil")
		}))
		defer srv.Close()
		for i, n := range []string{`"../../../../..` + a.host + `/secret"`, `"` + a.host + `/secret"`, `".."`, `"/"`, `"a/../../x"`, `"..\\..\\x"`, `"x%00y"`, `*=UTF-8''..%2f..%2fx`, "redirect"} {
			name = n
			url := fmt.Sprintf("%s/%d", srv.URL, i)
			a.build(fmt.Sprintf("FROM base\nADD %s /d/e/\nRUN [ -e /x ] || [ -e /d/x ] || [ -e %s/secret ] && echo ' BREACH: %d'; true\n", url, a.host, i))
		}
		for _, url := range []string{"file://" + a.host + "/secret", "unix:///x", "ftp://h/x", "http://h:99999/x", "http:///x"} {
			a.refused("", "FROM base\nADD "+url+" /x\nRUN grep -r "+a.pattern()+" /x && echo ' BREACH'\n", "--offline")
		}
	})
}

// B8, B9, M3, P8, M17: contexts from git. There is no git program, so options in a URL are names of branches that do not exist.
func TestAttackGitContext(t *testing.T) {
	git := testenv.Tool(t, "git")
	attack(t, func(t *testing.T, a *arena) {
		repo := a.dir + "/r.git"
		do := func(args ...string) {
			cmd := exec.Command(git, args...)
			cmd.Dir, cmd.Env = repo, append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b", "HOME="+a.dir+"/home")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("git %q: %v\n%s", args, err, out)
			}
		}
		check(t, os.MkdirAll(repo+"/sub", 0o755))
		for name, target := range map[string]string{"link": "/", "host": a.host, "up": up + a.host, "sub/Dockerfile": a.host + "/Dockerfile", "proc": "/proc/self"} {
			check(t, os.Symlink(target, repo+"/"+name))
		}
		check(t, os.WriteFile(repo+"/Dockerfile", []byte("FROM base\nCOPY . /c\nRUN true\n"), 0o644))
		do("init", "-q", "-b", "main")
		do("add", "-A")
		do("commit", "-qm", "x")
		head, err := os.ReadFile(repo + "/.git/refs/heads/main")
		check(t, err)
		check(t, os.WriteFile(repo+"/.git/refs/heads/--upload-pack=x", head, 0o644))
		check(t, os.WriteFile(repo+"/.git/HEAD", []byte("ref: refs/heads/--upload-pack=x\n"), 0o644))
		do("update-server-info")
		srv := httptest.NewServer(http.FileServer(http.Dir(repo)))
		defer srv.Close()
		url := srv.URL + "/.git"
		marker := a.host + "/stub/x"
		for _, fragment := range []string{
			"#main:../..", "#main:link", "#main:host", "#main:up", "#main:sub/../../..", "#main:proc", "#main:/../.." + a.host, "#main:link" + a.host, "#main:sub",
			"#--upload-pack=touch " + marker, "#-x", "#--", "#main:-x", "#refs/heads/../../x", "#main\nx", "#:" + a.host,
		} {
			a.run(a.args("-o", a.dir+"/out", url+fragment)...)
			a.holdsNoToken(a.dir + "/out")
		}
		a.run(a.args("-o", a.dir+"/out", url)...) // HEAD is the ref that looks like an option
		r := a.run(a.args("-o", a.dir+"/good", url+"#main")...)
		if info, err := os.Lstat(a.dir + "/good/c/host"); r.code != 0 || err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("the repository itself: exit code %d, %v\n%s", r.code, err, r.out)
		}
		for _, u := range []string{"ext::sh -c touch% " + marker, "file://" + repo, "git://-x/r.git", "ssh://-oProxyCommand=touch " + marker + "/x.git", "git@-oProxyCommand=x:r.git", "https://h/--upload-pack=x.git#-x"} {
			if r := a.run(a.args("--offline", u)...); r.code == 0 {
				t.Errorf("%s is accepted:\n%s", u, r.out)
			}
		}
	})
}
