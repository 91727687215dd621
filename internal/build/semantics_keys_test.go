package build

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// changed is one change between two builds, and the steps that run again.
type changed struct {
	what string
	mods []mod
	ran  []string
}

// reruns builds the first way once, and after each change checks exactly what ran.
func (w *world) reruns(first []mod, changes ...changed) {
	w.t.Helper()
	w.ok(first...)
	_, rec := w.ok(first...)
	wantRan(w.t, "nothing changed", rec)
	for _, c := range changes {
		_, rec := w.ok(c.mods...)
		wantRan(w.t, c.what, rec, c.ran...)
	}
}

// What changes the key of a COPY, and what the key of a RUN ignores of the instructions before it: S88 to S91.
func TestSemanticsKeysOfFiles(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	// File checksum covers name (within a directory), mode, uid, gid, size, type, link target, device numbers, user xattrs and
	// security.capability, content; never mtime.
	t.Run("S88", func(t *testing.T) {
		t.Run("context", func(t *testing.T) { contextChecksums(t, w.under(t)) })
		t.Run("stage", func(t *testing.T) { stageChecksums(t, w.under(t)) })
	})
	// COPY's key is content of the selected source paths plus dest, chown, chmod and base name of the source; a changed file
	// outside the selection does not invalidate.
	t.Run("S89", func(t *testing.T) {
		w := w.under(t)
		w.clear(t)
		w.write("p/x", "same", "q/x", "same", "p/y", "same", "p/z", "1")
		df := func(args string) []mod { return []mod{from("FROM base\nCOPY " + args + "\n")} }
		changes := []changed{{"the same file elsewhere", df("q/x /d"), nil}}
		for _, args := range []string{"p/x /e", "--chown=1:2 p/x /d", "--chmod=600 p/x /d", "p/y /d"} {
			changes = append(changes, changed{args, df(args), []string{"COPY " + args}})
		}
		w.reruns(df("p/x /d"), changes...)
		w.reruns(df("p /d"))
		w.reruns(df("p/[xy] /d/"))
		w.write("p/z", "2", "new", "new")
		_, rec := w.ok(df("p/x /d")...)
		wantRan(t, "a file beside the source", rec)
		_, rec = w.ok(df("p/[xy] /d/")...)
		wantRan(t, "a file the pattern leaves out", rec)
		_, rec = w.ok(df("p /d")...)
		wantRan(t, "a file in the source", rec, "COPY p /d")
		stage := func(made, args string) []mod {
			return []mod{from("FROM base AS s\nRUN " + made + "\nFROM base\nCOPY --from=s " + args + "\n")}
		}
		const made = "mkdir /p /q && echo s > /p/x && echo s > /q/x"
		w.reruns(stage(made, "/p/x /d"),
			changed{"another file of the stage", stage(made+" && echo > /p/y", "/p/x /d"), []string{"RUN " + made + " && echo > /p/y"}},
			changed{"the same file elsewhere in the stage", stage(made, "/q/x /d"), nil},
			changed{"another place", stage(made, "/p/x /e"), []string{"COPY --from=s /p/x /e"}},
		)
	})
	// Metadata instructions (LABEL, CMD, EXPOSE, ENTRYPOINT, HEALTHCHECK, VOLUME, STOPSIGNAL) never invalidate later steps; ENV,
	// USER, WORKDIR, SHELL invalidate later RUNs only through RUN's own args/env/user/cwd.
	t.Run("S90", func(t *testing.T) {
		w := w.under(t)
		w.write("f", "f")
		df := func(between string) []mod {
			return []mod{from("FROM base\nWORKDIR /w\n" + between + "\nCOPY f /f\nRUN echo sh\nRUN [\"echo\", \"exec\"]\nCOPY f /g\n")}
		}
		const sh, exec = "RUN echo sh", `RUN ["echo", "exec"]`
		var changes []changed
		for _, meta := range []string{
			"LABEL a=b", `CMD ["x"]`, "CMD x", "EXPOSE 80", `ENTRYPOINT ["e"]`, "ENTRYPOINT e", "HEALTHCHECK CMD true", "HEALTHCHECK NONE", "VOLUME /v",
			"STOPSIGNAL 9", "MAINTAINER me", "ONBUILD RUN false",
		} {
			changes = append(changes, changed{meta, df(meta), nil})
		}
		w.reruns(df(""), append(changes,
			changed{"ENV", df("ENV E=1"), []string{sh, exec}},
			changed{"ENV that says what is", df("ENV PATH=$PATH"), nil},
			changed{"USER", df("USER 7"), []string{sh, exec}},
			changed{"WORKDIR", df("WORKDIR /"), []string{sh, exec}},
			changed{"SHELL", df(`SHELL ["/bin/sh", "-xc"]`), []string{sh}},
		)...)
	})
	// A declared ARG invalidates every later RUN of the stage when its value changes, even if unused; it does not invalidate COPY
	// unless the text uses it.
	t.Run("S91", func(t *testing.T) {
		w := w.under(t)
		w.write("f1", "f", "f2", "f")
		df := from(`
			FROM base AS other
			RUN echo other
			FROM base
			RUN echo before
			ARG A=1
			COPY f1 /f
			RUN echo after
			COPY f$A /used
			RUN echo last
			COPY --from=other /bin/busybox /b
		`)
		w.reruns([]mod{df},
			changed{"the default given", []mod{df, arg("A", "1")}, nil},
			changed{"one no stage declares", []mod{df, arg("B", "2")}, nil},
			changed{"another value", []mod{df, arg("A", "2")}, []string{"RUN echo after", "COPY f2 /used", "RUN echo last"}},
		)
		unused := from("FROM base\nARG B=1\nCOPY f1 /f\n")
		w.reruns([]mod{unused}, changed{"without a RUN", []mod{unused, arg("B", "2")}, nil})
	})
}

// contextChecksums changes one property after the other of what a COPY takes from the context.
func contextChecksums(t *testing.T, w *world) {
	df := from("FROM scratch\nCOPY d /d\n")
	w.write("d/f", "content")
	must(t, os.Symlink("f", w.dir+"/d/l"))
	w.ok(df)
	at := func(name string) string { return filepath.Join(w.dir, "d", name) }
	for _, c := range []struct {
		what   string
		runs   bool
		root   bool
		change func() error
	}{
		{"mtime", false, false, func() error { return os.Chtimes(at("f"), unixTime(1), unixTime(1)) }},
		{"mtime of the directory", false, false, func() error { return os.Chtimes(at(""), unixTime(1), unixTime(1)) }},
		{"mode", true, false, func() error { return os.Chmod(at("f"), 0o600) }},
		{"content", true, false, func() error { return os.WriteFile(at("f"), []byte("CONTENT"), 0o600) }},
		{"size", true, false, func() error { return os.Truncate(at("f"), 3) }},
		{"name", true, false, func() error { return os.Rename(at("f"), at("g")) }},
		{"link target", true, false, func() error { _ = os.Remove(at("l")); return os.Symlink("g", at("l")) }},
		{"type", true, false, func() error { _ = os.Remove(at("l")); return os.WriteFile(at("l"), []byte("g"), 0o777) }},
		{"user xattr", true, false, func() error { return unix.Setxattr(at("g"), "user.s88", []byte("1"), 0) }},
		{"its value", true, false, func() error { return unix.Setxattr(at("g"), "user.s88", []byte("2"), 0) }},
		{"security.capability", true, true, func() error { return unix.Setxattr(at("g"), "security.capability", netBind, 0) }},
		{"another xattr", false, true, func() error { return unix.Setxattr(at("g"), "trusted.s88", []byte("1"), 0) }},
		{"owner, which the context has none of", false, true, func() error { return os.Lchown(at("l"), 5, 6) }},
		{"a new file", true, false, func() error { return os.WriteFile(at("new"), nil, 0o600) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := w.under(t)
			if c.root {
				testenv.Root(t)
			}
			must(t, c.change())
			_, rec := w.ok(df)
			if c.runs {
				wantRan(t, c.what, rec, "COPY d /d")
			} else {
				wantRan(t, c.what, rec)
			}
		})
	}
}

func unixTime(sec int64) time.Time { return time.Unix(sec, 0) }

// netBind is a security.capability of version 2 with CAP_NET_BIND_SERVICE permitted and effective.
var netBind = []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// stageChecksums changes what only a stage can have: owners, devices.
func stageChecksums(t *testing.T, w *world) {
	df := func(more string) mod {
		return from("FROM base AS s\nRUN mkdir /d && echo c > /d/f" + more + "\nFROM base\nCOPY --from=s /d /d\nRUN echo above\n")
	}
	w.ok(df(""))
	for _, c := range []struct {
		what, more string
		runs, root bool
	}{
		{"mtime", " && touch -d @1 /d/f /d", false, false},
		{"the same bytes, written another way", " && echo -n c > /d/f && echo >> /d/f", false, false},
		{"uid", " && chown 1 /d/f", true, false},
		{"gid", " && chown :1 /d/f", true, false},
		{"uid of the directory itself", " && chown 1 /d", false, false}, // which COPY of its content does not take; BuildKit copies again, to the same result
		{"mode", " && chmod 600 /d/f", true, false},
		{"content", " && echo C > /d/f", true, false},
		{"type", " && rm /d/f && mkfifo /d/f", true, false},
		{"device", " && mknod /d/n c 1 3", true, true},
		{"device numbers", " && mknod /d/n c 1 5", true, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := w.under(t)
			if c.root {
				testenv.Root(t)
			}
			_, rec := w.ok(df(c.more))
			want := []string{"RUN mkdir /d && echo c > /d/f" + c.more}
			if c.runs {
				want = append(want, "COPY --from=s /d /d", "RUN echo above")
			}
			wantRan(t, c.what, rec, want...)
		})
	}
}

// What is in the key of a RUN: S92 to S95.
func TestSemanticsKeysOfRun(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	run := func(flags string) mod { return from("FROM base\nRUN " + flags + " echo run\n") }
	ran := func(flags string) []string { return []string{"RUN " + flags + " echo run"} }
	// Proxy build args, --add-host IPs (not names), cache mount id/sharing, secret and ssh contents and --resource limits are not
	// in the RUN key. (There is no --resource yet.)
	t.Run("S92", func(t *testing.T) {
		w := w.under(t)
		plain := from("FROM base\nRUN echo \"$HTTP_PROXY\"\n")
		host := func(name, ip string) mod {
			return func(o *Options) { o.AddHosts = append(o.AddHosts, Host{Name: name, IP: netip.MustParseAddr(ip)}) }
		}
		w.reruns([]mod{plain},
			changed{"a proxy as build argument", []mod{plain, arg("HTTP_PROXY", "http://one")}, nil},
			changed{"another", []mod{plain, arg("http_proxy", "http://two", "NO_PROXY", "x")}, nil},
			changed{"a host", []mod{plain, host("h", "10.0.0.1")}, []string{`RUN echo "$HTTP_PROXY"`}},
			changed{"its address", []mod{plain, host("h", "10.0.0.2")}, nil},
			changed{"its name", []mod{plain, host("g", "10.0.0.2")}, []string{`RUN echo "$HTTP_PROXY"`}},
		)
		w.reruns([]mod{run("--mount=type=cache,target=/c")},
			changed{"cache id", []mod{run("--mount=type=cache,target=/c,id=other")}, nil},
			changed{"sharing", []mod{run("--mount=type=cache,target=/c,sharing=locked")}, nil},
			changed{"private", []mod{run("--mount=type=cache,target=/c,sharing=private,id=x")}, nil},
			changed{"its mode, which is of what it begins with", []mod{run("--mount=type=cache,target=/c,mode=0700")}, ran("--mount=type=cache,target=/c,mode=0700")},
			changed{"its owner", []mod{run("--mount=type=cache,target=/c,uid=1")}, ran("--mount=type=cache,target=/c,uid=1")},
		)
		w.reruns([]mod{run("--mount=type=secret,id=s"), secret("s", "one")},
			changed{"a secret's content", []mod{run("--mount=type=secret,id=s"), secret("s", "two")}, nil},
			changed{"no secret", []mod{run("--mount=type=secret,id=s")}, nil},
		)
		t.Run("ssh", func(t *testing.T) {
			one, two := sshAuth(t, "default", sshKey(t, "-t", "ed25519")), sshAuth(t, "default", sshKey(t, "-t", "ed25519"))
			w.under(t).reruns([]mod{run("--mount=type=ssh"), one},
				changed{"another key", []mod{run("--mount=type=ssh"), two}, nil},
				changed{"no agent", []mod{run("--mount=type=ssh")}, nil},
			)
		})
	})
	// ulimit, cgroup-parent, hostname, network mode, security mode, shm-size and mount targets are in the RUN key. (There is no
	// --cgroup-parent yet.)
	t.Run("S93", func(t *testing.T) {
		w := w.under(t)
		df := from("FROM base\nRUN echo S93\n")
		again := []string{"RUN echo S93"}
		limit := func(soft uint64) mod {
			return func(o *Options) { o.Rlimits = []Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: soft, Hard: 200}} }
		}
		w.reruns([]mod{df},
			changed{"ulimit", []mod{df, limit(100)}, again},
			changed{"its value", []mod{df, limit(101)}, again},
			changed{"hostname", []mod{df, arg("BUILDKIT_SANDBOX_HOSTNAME", "h")}, again},
			changed{"network mode", []mod{df, func(o *Options) { o.Network = "none" }}, again},
			changed{"shm-size", []mod{df, func(o *Options) { o.ShmSize = 1 << 20 }}, again},
			changed{"all as at first", []mod{df}, nil},
		)
		insecure := func(o *Options) { o.AllowInsecure = true }
		var changes []changed
		for _, flags := range []string{"--network=none", "--security=insecure", "--mount=type=tmpfs,target=/t", "--mount=type=tmpfs,target=/u",
			"--mount=type=cache,target=/t", "--mount=type=cache,target=/u", "--mount=type=secret,id=s,target=/t", "--mount=type=secret,id=s,target=/u"} {
			changes = append(changes, changed{flags, []mod{run(flags), insecure}, ran(flags)})
		}
		w.reruns([]mod{run("--mount=type=cache,target=/other"), insecure}, changes...)
		_, rec := w.ok(run("--network=none"), func(o *Options) { o.Network = "none" })
		wantRan(t, "the mode by the flag or for all", rec)
	})
	// A read-only bind mount is keyed by the content of its source path only; an rw one that keeps no output also is.
	t.Run("S94", func(t *testing.T) {
		w := w.under(t)
		w.write("s/in", "1", "out", "1")
		for _, rw := range []string{"", ",rw"} {
			bind := "--mount=type=bind,source=s,target=/m" + rw
			w.write("s/in", "1", "out", "1")
			w.reruns([]mod{run(bind)})
			w.write("out", "2"+rw)
			_, rec := w.ok(run(bind))
			wantRan(t, bind+": a file beside the source", rec)
			must(t, os.Chtimes(w.dir+"/s/in", unixTime(1), unixTime(1)))
			_, rec = w.ok(run(bind))
			wantRan(t, bind+": mtime", rec)
			w.write("s/in", "2")
			_, rec = w.ok(run(bind))
			wantRan(t, bind+": a file in the source", rec, ran(bind)...)
			made, bound := "mkdir /s && echo 1"+rw+" > /s/in", "--mount=from=s,source=/s,target=/m"+rw+" echo bound"
			stage := func(more string) []mod {
				return []mod{from("FROM base AS s\nRUN " + made + more + "\nFROM base\nRUN " + bound + "\n")}
			}
			w.reruns(stage(""),
				changed{"beside the source in the stage", stage(" && echo > /out"), []string{"RUN " + made + " && echo > /out"}},
				changed{"in the source in the stage", stage(" && echo > /s/x"), []string{"RUN " + made + " && echo > /s/x", "RUN " + bound}},
			)
		}
	})
	// Changing a secret's value does not re-run the step.
	t.Run("S95", func(t *testing.T) {
		w := w.under(t)
		for _, flags := range []string{"--mount=type=secret,id=t,required", "--mount=type=secret,id=t,env=T", "--mount=type=secret,id=t,env=T,target=/t"} {
			w.reruns([]mod{run(flags), secret("t", "old-s95")}, changed{flags, []mod{run(flags), secret("t", "new-s95")}, nil})
		}
		// Run for another reason, the step sees the new one.
		df := func(what string) mod {
			return from("FROM base\nRUN --mount=type=secret,id=t wc -c /run/secrets/t # " + what + "\n")
		}
		w.ok(df("1"), secret("t", "12345"))
		_, rec := w.ok(df("2"), secret("t", "1234567"))
		if got := rec.log("wc -c"); !strings.HasPrefix(got, "7 ") {
			t.Errorf("a step that runs saw %q", got)
		}
		w.noTrace("old-s95")
		// Unless it was asked for.
		const opted = "--mount=type=secret,id=c"
		keyed := func(v string) mod {
			return func(o *Options) { o.Secrets = append(o.Secrets, Secret{ID: "c", Data: []byte(v), CacheKey: true}) }
		}
		w.reruns([]mod{run(opted), keyed("old-s95")}, changed{"cachekey=true", []mod{run(opted), keyed("new-s95")}, ran(opted)})
		w.noTrace("old-s95")
	})
}

// What is in the keys of what comes from elsewhere: S96, S97.
func TestSemanticsKeysOfSources(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	w.write("a", "1")
	// FROM has two keys: the manifest digest and the chain ID of its diffIDs; a moved tag re-runs the stage only when the layers
	// changed, a base re-pushed with other labels does not. `--pull` only affects resolution.
	t.Run("S96", func(t *testing.T) {
		w := w.under(t)
		s := newServer(t)
		name := s.host + "/s96:1"
		push := func(more string) {
			t.Helper()
			w.ok(from("FROM base\nCOPY a /a\n"+more), online, tags(name), func(o *Options) { o.Push = true })
		}
		// Another store, which knows the image by the registry only.
		other := newWorld(t)
		other.parallel = true
		df := []mod{from("FROM " + name + "\nRUN echo S96\n"), online}
		always := append(df[:2:2], func(o *Options) { o.Pull = PullAlways })
		again := []string{"RUN echo S96"}
		labels := func() map[string]string {
			t.Helper()
			return other.made(df...).Config.Labels
		}
		push("")
		other.reruns(df, changed{"--pull", always, nil})
		push("LABEL l=2\n")
		_, rec := other.ok(df...)
		if wantRan(t, "a moved tag, not asked for", rec); len(labels()) != 0 {
			t.Errorf("labels %v without --pull", labels())
		}
		_, rec = other.ok(always...)
		if wantRan(t, "pushed again with another label", rec); labels()["l"] != "2" {
			t.Errorf("labels %v after --pull", labels())
		}
		push("ENV E=1\n")
		_, rec = other.ok(always...)
		wantRan(t, "pushed again with an ENV, which the RUN sees", rec, again...)
		push("RUN true\n")
		_, rec = other.ok(df...)
		wantRan(t, "a tag moved to other layers, not asked for", rec)
		_, rec = other.ok(always...)
		wantRan(t, "a tag moved to other layers", rec, again...)
		push("")
		_, rec = other.ok(always...)
		wantRan(t, "and back", rec)
	})
	// ADD URL is revalidated with ETag/If-None-Match each build; key is content digest + filename + Last-Modified.
	t.Run("S97", func(t *testing.T) {
		w := w.under(t)
		p := newPage(t)
		df := func(path string) []mod { return []mod{from("FROM scratch\nADD " + p.URL + path + " /f\n"), online} }
		ran := func(path string) []string { return []string{"ADD " + p.URL + path + " /f"} }
		p.set("one", `"1"`, "Tue, 14 Nov 2023 22:13:20 GMT")
		w.ok(df("/x")...)
		p.want(t, "first", 1, 0)
		_, rec := w.ok(df("/x")...)
		wantRan(t, "unchanged", rec)
		p.want(t, "unchanged", 0, 1)
		p.set("one", `"2"`, "Tue, 14 Nov 2023 22:13:20 GMT")
		_, rec = w.ok(df("/x")...)
		wantRan(t, "another ETag of the same", rec)
		p.want(t, "another ETag of the same", 1, 0)
		_, rec = w.ok(df("/dir/x")...)
		wantRan(t, "the same from another place", rec)
		_, rec = w.ok(df("/y")...)
		wantRan(t, "another filename", rec, ran("/y")...)
		p.set("one", `"3"`, "Tue, 14 Nov 2023 22:13:21 GMT")
		_, rec = w.ok(df("/x")...)
		wantRan(t, "another Last-Modified", rec, ran("/x")...)
		p.set("two", `"4"`, "Tue, 14 Nov 2023 22:13:21 GMT")
		_, rec = w.ok(df("/x")...)
		wantRan(t, "another content", rec, ran("/x")...)
	})
}

// page is a server with one content, whatever is asked for.
type page struct {
	*httptest.Server
	mu                   sync.Mutex
	text, etag, modified string
	sent, unchanged      int
}

func newPage(t testing.TB) *page {
	t.Helper()
	p := &page{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		w.Header().Set("ETag", p.etag)
		w.Header().Set("Last-Modified", p.modified)
		if r.Header.Get("If-None-Match") == p.etag {
			p.unchanged++
			w.WriteHeader(http.StatusNotModified)
			return
		}
		if r.Method == http.MethodGet {
			p.sent++
		}
		_, _ = w.Write([]byte(p.text))
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *page) set(text, etag, modified string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text, p.etag, p.modified = text, etag, modified
}

// want checks how often the content was sent, and how often it was said to be the same, since the last time.
func (p *page) want(t testing.TB, what string, sent, unchanged int) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent != sent || p.unchanged != unchanged {
		t.Errorf("%s: sent %d times, the same %d times; want %d and %d", what, p.sent, p.unchanged, sent, unchanged)
	}
	p.sent, p.unchanged = 0, 0
}

// Cache mounts and stages made again: S98 to S100.
func TestSemanticsKeysOfCaches(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	// put adds a file to a cache mount and says what is there then.
	n := 10 // two digits, so that ls sorts them
	puts := func(w *world, mount string, mods ...mod) string {
		w.t.Helper()
		n++
		df := from(fmt.Sprintf("FROM base\nARG DIR=/c\nWORKDIR /x\nRUN --mount=type=cache,%s touch $DIR/%d && echo $(ls $DIR)\n", mount, n))
		_, rec := w.ok(append([]mod{df}, mods...)...)
		return strings.TrimSpace(rec.log("--mount"))
	}
	saw := func(t *testing.T, what, got string, want ...int) {
		t.Helper()
		if words := strings.Trim(fmt.Sprint(want), "[]"); got != words {
			t.Errorf("%s: the cache has %q, want %q", what, got, words)
		}
	}
	// `--no-cache` re-runs RUN/COPY but does not clear plain cache mounts; a cache mount with `mode`, `uid` or `gid` gets a fresh
	// base and so looks empty.
	t.Run("S98", func(t *testing.T) {
		w := w.under(t)
		w.write("f", "f")
		df := from("FROM base\nCOPY f /f\nRUN echo S98\n")
		w.ok(df)
		_, rec := w.ok(df, noCache)
		wantRan(t, "--no-cache", rec, "COPY f /f", "RUN echo S98")
		saw(t, "plain", puts(w, "target=/c,id=s98"), 11)
		saw(t, "plain, --no-cache", puts(w, "target=/c,id=s98", noCache), 11, 12)
		for _, opt := range []string{"mode=0700", "uid=1", "gid=1"} {
			mount := "target=/c,id=s98-" + opt[:3] + "," + opt
			saw(t, opt, puts(w, mount), n)
			saw(t, opt+" again", puts(w, mount), n-1, n)
			saw(t, opt+", --no-cache", puts(w, mount, noCache), n)
			saw(t, opt+", then with the cache", puts(w, mount), n-1, n)
		}
		// Once for a build: two steps of one share it.
		_, rec = w.ok(noCache, from(`
			FROM base
			RUN --mount=type=cache,target=/c,id=s98-twice,mode=0700 touch /c/a
			RUN --mount=type=cache,target=/c,id=s98-twice,mode=0700 touch /c/b && echo second $(ls /c)
		`))
		if got := strings.TrimSpace(rec.log("second")); got != "second a b" {
			t.Errorf("two steps of a --no-cache build: %q", got)
		}
	})
	// Default cache mount id is the cleaned target path as written, global to the builder (shared across projects and platforms)
	// unless `BUILDKIT_CACHE_MOUNT_NS` or `id`.
	t.Run("S99", func(t *testing.T) {
		w := w.under(t)
		first := n + 1
		saw(t, "first", puts(w, "target=/c"), n)
		saw(t, "cleaned", puts(w, "target=/d/../c/"), first, n)
		saw(t, "by id", puts(w, "target=/d,id=/c", arg("DIR", "/d")), first, first+1, n)
		saw(t, "another target", puts(w, "target=/d", arg("DIR", "/d")), n)
		saw(t, "another id", puts(w, "target=/c,id=mine"), n)
		saw(t, "as written: relative", puts(w, "target=c", arg("DIR", "/x/c")), n)
		saw(t, "and not as it is resolved", puts(w, "target=/x/c", arg("DIR", "/x/c")), n)
		saw(t, "another namespace", puts(w, "target=/c", arg("BUILDKIT_CACHE_MOUNT_NS", "ns")), n)
		saw(t, "the same namespace", puts(w, "target=/c", arg("BUILDKIT_CACHE_MOUNT_NS", "ns")), n-1, n)
		project := t.TempDir()
		saw(t, "another project", puts(w, "target=/c", contextAt(project)), first, first+1, first+2, n)
		variant := func(o *Options) {
			o.Platforms = []ocispec.Platform{{OS: "linux", Architecture: "amd64", Variant: "v2"}}
		}
		saw(t, "another platform", puts(w, "target=/c", variant), first, first+1, first+2, n-1, n)
	})
	// Content-equal rebuild of an earlier stage with different bytes on disk order still hits for COPY --from, because the key is
	// content based.
	t.Run("S100", func(t *testing.T) {
		w := w.under(t)
		df := func(made ...string) []mod {
			return []mod{from("FROM base AS s\nRUN " + strings.Join(made, "\nRUN ") + "\nFROM base\nCOPY --from=s /d /d\nRUN echo S100\n")}
		}
		one, other := "mkdir /d && echo a > /d/a && echo b > /d/b", "mkdir /d && echo b > /d/b && echo a > /d/a && touch -d @1 /d/a"
		split := []string{"mkdir /d && echo x > /d/x && echo wrong > /d/b", "echo a > /d/a && echo b > /d/b && rm /d/x"}
		w.reruns(df(one),
			changed{"in another order", df(other), []string{"RUN " + other}},
			changed{"in two layers", df(split...), []string{"RUN " + split[0], "RUN " + split[1]}},
			changed{"other content", df(one + " && echo c > /d/c"), []string{"RUN " + one + " && echo c > /d/c", "COPY --from=s /d /d", "RUN echo S100"}},
		)
	})
}
