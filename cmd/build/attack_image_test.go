package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"build/internal/testenv"
)

// C3, C7, C10, C9: an image whose /proc, /sys and /dev are links to the host, or to another place of its own.
func TestAttackBaseDirectories(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		n := 0
		for _, name := range []string{"proc", "sys", "dev"} {
			ways := waysOut(a.host)
			ways["another place"], ways["itself"] = "/tmp", "."
			for way, target := range ways {
				n++
				image := fmt.Sprintf("linked%d", n)
				a.image(image, nil, []entry{link(name, target)})
				r := a.build("FROM " + image + "\nRUN [ -f /dev/../secret ] && echo ' BREACH: " + way + "'; echo x > /dev/null; echo y > /proc/file; rm -f /dev/null /sys/secret\n")
				a.noBreach(r)
				if r.code == 0 || !strings.Contains(r.out, "/"+name+" of the image is not a directory") {
					t.Errorf("/%s -> %s (%s) is not refused for what it is:\n%s", name, target, way, r.out)
				}
			}
		}
		a.image("null", nil, []entry{directory("dev"), link("dev/null", up+a.host+"/null"), link("dev/full", a.host+"/null"), link("dev/pts", up+a.host), link("dev/shm", a.host+"/dir")})
		a.ok("FROM null\nRUN [ -c /dev/null ] && [ -d /dev/pts ] || echo ' BREACH'; echo x > /dev/null; echo x > /dev/shm/file\n")
	})
}

// C3, P6: files that the builder puts into a root, where the image has links to the host.
func TestAttackSystemFiles(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		i := 0
		for way, target := range waysOut(a.host) {
			i++
			image := fmt.Sprintf("etc%d", i)
			a.image(image, nil, []entry{link("etc/resolv.conf", target+"/resolv.conf"), link("etc/hosts", target+"/hosts"), link("etc/mtab", target+"/secret")})
			r := a.build("FROM " + image + "\nRUN cat /etc/hosts /etc/resolv.conf /etc/mtab >/dev/null; echo x >> /etc/hosts; rm -f /etc/hosts /etc/resolv.conf; true\n")
			a.noBreach(r)
			if r.code != 0 && !strings.Contains(r.out, "/etc/") {
				t.Errorf("%s: %s", way, r.out)
			}
			a.image(image+"dir", nil, []entry{link("etc", target)})
			a.noBreach(a.build("FROM " + image + "dir\nRUN cat /etc/secret && echo ' BREACH'; rm -rf /etc/stub /etc/hosts\n"))
			a.image(image+"run", nil, []entry{link("run", target), link("work", target+"/dir")})
			a.noBreach(a.build("FROM "+image+"run\nWORKDIR /work/new\nUSER 5\nRUN --mount=type=secret,id=s --mount=type=cache,target=/run/c --mount=type=tmpfs,target=/work/stub true\n",
				"--secret", "id=s,src="+a.dir+"/ctx/s"))
		}
	})
}

// isUser1213 is a step that complains unless it is 12:13 and in no other group. With a single id only the supervisor says so.
func (a *arena) isUser1213() string {
	if a.single() {
		return "RUN touch /dev/shm/mine && [ $(stat -c %u:%g /dev/shm/mine) = 12:13 ] || echo ' BREACH:' $(stat -c %u:%g /dev/shm/mine)\n"
	}
	return "RUN grep -q '^Uid:.12.12.12.12$' /proc/self/status && grep -q '^Groups:.13 $' /proc/self/status || grep ':' /proc/self/status | sed 's/^/ BREACH /'\n"
}

// single reports whether steps have a single id.
func (a *arena) single() bool {
	return strings.Contains(a.mode, "ids=single") || a.mode == "" && os.Geteuid() != 0 && !testenv.HasRange(a.t)
}

// B13, P4, C15, C14, C13, P12: who a step runs as. Files of the image that hang or exhaust whoever reads them, numbers that turn
// into others, names that are numbers.
func TestAttackUsers(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		for name, e := range map[string][]entry{
			"fifo":    {special('6', "etc/passwd"), special('6', "etc/group")},
			"char":    {special('3', "etc/passwd"), special('3', "etc/group")},
			"outside": {link("etc/passwd", up+a.host+"/fifo"), link("etc/group", up+a.host+"/fifo")},
			"host":    {link("etc/passwd", a.host+"/passwd"), link("etc/group", up+a.host+"/passwd")},
			"self":    {link("etc/passwd", "/proc/self/fd/0"), link("etc/group", "passwd")},
			"long":    {file("etc/passwd", strings.Repeat("x", 12<<20)), file("etc/group", strings.Repeat(":", 12<<20))},
		} {
			a.image(name, nil, e)
			a.write("f", "f")
			a.refused("nobody", "FROM "+name+"\nUSER nobody\nRUN echo ' BREACH'\n")
			a.refused("nobody", "FROM "+name+"\nCOPY --chown=nobody f /\n")
			a.ok("FROM " + name + "\nUSER 12:13\nCOPY --chown=4:5 f /\n" + a.isUser1213())
		}
		for _, user := range []string{"4294967296", "2147483648:0", "-1", "00", "0x0", "0:4294967296", "18446744073709551616", "+0", "1e1", "root:-1"} {
			a.refused("", "FROM base\nUSER "+user+"\nRUN echo ' BREACH: "+user+" is' $(id)\n")
			a.refused("", "FROM base\nCOPY --chown="+user+" f /\n")
		}
		a.image("numeric", nil, []entry{file("etc/passwd", "1000:x:0:0::/:/bin/sh\nroot:x:0:0::/:/bin/sh\n"), file("etc/group", "1000:x:0:\n5:x:0:1000\n")})
		a.ok("FROM numeric\nUSER 1000:1000\nRUN [ \"$(id -u):$(id -G)\" = 1000:1000 ] || echo ' BREACH:' $(id)\n")
		a.ok("FROM numeric\nUSER 1000\nRUN [ \"$(id -u)\" = 1000 ] || echo ' BREACH:' $(id)\n")
	})
}

// M4: two images with the same layers and other configurations never answer for one another.
func TestAttackPoisonedConfig(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		const show = "\nRUN echo \"<$(id -u) $WHO $(pwd)>\" > /who\n"
		same := []entry{file("same", "same")}
		path := "PATH=/bin"
		for name, c := range map[string]struct {
			conf config
			want string
		}{
			"plain":   {config{"Env": []string{path, "WHO=a"}}, "<0 a />"},
			"env":     {config{"Env": []string{path, "WHO=b"}}, "<0 b />"},
			"user":    {config{"Env": []string{path, "WHO=a"}, "User": "7"}, "<7 a />"},
			"workdir": {config{"Env": []string{path, "WHO=a"}, "WorkingDir": "/tmp"}, "<0 a /tmp>"},
			"shell":   {config{"Env": []string{path, "WHO=a"}, "Shell": []string{"/bin/sh", "-ec"}}, "<0 a />"},
			"trigger": {config{"Env": []string{path, "WHO=a"}, "OnBuild": []string{"ENV WHO=c"}}, "<0 c />"},
		} {
			a.image(name, c.conf, append(same, entry{directory("/").Header, ""}, file("who", "")))
			check(t, os.RemoveAll(a.dir+"/out"))
			df := strings.Replace("FROM "+name+show, "/who\n", "/tmp/who\n", 1)
			a.ok(df, "-o", a.dir+"/out")
			if got, err := os.ReadFile(a.dir + "/out/tmp/who"); err != nil || strings.TrimSpace(string(got)) != c.want {
				t.Errorf("%s: %q, want %s (%v)", name, got, c.want, err)
			}
		}
		for _, c := range []config{{"Healthcheck": map[string]any{"Test": []string{"CMD", "one"}}}, {"Healthcheck": map[string]any{"Test": []string{"CMD", "two"}}}, {"Labels": map[string]string{"l": "three"}}} {
			a.image("checked", c, same)
			a.ok("FROM checked\n", "-o", "type=oci,tar=false,dest="+a.dir+"/oci", "-t", "example.com/checked")
			_, got := readImage(t, a.dir+"/oci")
			check(t, os.RemoveAll(a.dir+"/oci"))
			for _, word := range []string{"one", "two", "three"} {
				if strings.Contains(string(got), `"`+word+`"`) != strings.Contains(fmt.Sprint(c), word) {
					t.Errorf("%v became %s", c, got)
				}
			}
		}
	})
}

// M12, M13, B12, B3: nothing in the configuration of an image makes the builder act outside of the sandbox.
func TestAttackImageConfig(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		a.image("config", config{
			"Env":        []string{"PATH=/bin", "BUILD_ROOT=" + a.host, "DOCKER_CONFIG=" + a.host, "LD_PRELOAD=" + a.host + "/secret", "=x", "no-equals", "HOME=" + a.host, "SSH_AUTH_SOCK=" + a.host},
			"Volumes":    map[string]any{up + "/etc": map[string]any{}, up + a.host: map[string]any{}, "/proc": map[string]any{}, "": map[string]any{}},
			"Labels":     map[string]string{"org.opencontainers.image.ref.name": "../../evil", "security": "insecure", "build.isolation": "none"},
			"Entrypoint": []string{"/proc/self/exe"}, "Cmd": []string{"--root", a.host}, "StopSignal": "SIGKILL",
			"WorkingDir": up + "/tmp/here",
		})
		a.ok("FROM config\nRUN [ -e " + a.host + "/secret ] && echo ' BREACH: volume'; ls -d $HOME/secret && echo ' BREACH: home'; [ $(pwd) = /tmp/here ] || echo ' BREACH' $(pwd)\n")
		a.refused("security.insecure", "FROM base\nRUN --security=insecure echo ' BREACH'\n")
		for _, df := range []string{"RUN --security=INSECURE true", "RUN --security=off true", "RUN --security= true", "RUN --network=container:x true", "RUN --network=private0 true"} {
			a.refused("", "FROM base\n"+df+"\n")
		}
		for _, flag := range []string{"--network=bridge:x", "--allow=everything", "--isolation=off"} {
			a.refused("", "FROM base\nRUN true\n", flag)
		}
	})
}

// ONBUILD of a base image: it may do what a Dockerfile may, and no more.
func TestAttackTriggers(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		for i, trigger := range []string{
			"FROM base", "RUN --security=insecure echo ' BREACH'", "COPY --from=nowhere.invalid/x:1 / /", "RUN --mount=type=bind,from=nowhere.invalid/x,target=/m true",
			"ADD " + up + a.host + "/secret /s", "COPY " + up + a.host + " /s", "COPY --from=config " + up + a.host + "/secret /s", "RUN --mount=type=bind,source=" + up + a.host + ",target=/m cat /m/secret",
			"RUN --mount=type=cache,id=" + up + a.host + ",target=/m cat /m/secret", "USER -1\nRUN true", "RUN true\nRUN true",
			"WORKDIR /proc/self/fd/7", "RUN --mount=type=secret,id=absent,required cat /run/secrets/absent",
		} {
			name := fmt.Sprintf("onbuild%d", i)
			a.image(name, config{"Env": []string{"PATH=/bin"}, "OnBuild": []string{trigger}})
			r := a.build("FROM "+name+"\nRUN [ ! -e /s ] || echo ' BREACH: /s'\n", "--offline")
			a.noBreach(r)
			if r.code == 0 && !(a.mode == "chroot" && strings.HasPrefix(trigger, "WORKDIR /proc")) { // a directory of the tree
				t.Errorf("ONBUILD %q is carried out:\n%s", trigger, r.out)
			}
		}
	})
}

// M2, CVE-2019-14271: what unpacks, copies and looks up names for the builder is never a program or library of the image.
func TestAttackToolsOfImage(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		evil := "#!/bin/sh\ntouch /evil\nexit 1\n"
		entries := []entry{directory("usr"), directory("usr/bin")}
		for _, tool := range []string{"xz", "unxz", "unpigz", "pigz", "gzip", "zstd", "bzip2", "tar", "git", "newuidmap", "newgidmap", "ssh", "cp", "chown", "getent"} {
			entries = append(entries, file("usr/bin/"+tool, evil))
		}
		a.image("tools", config{"Env": []string{"PATH=/usr/bin:/bin", "LD_LIBRARY_PATH=/lib"}}, append(entries,
			file("lib/libnss_files.so.2", evil), file("etc/nsswitch.conf", "passwd: evil\n"), file("etc/ld.so.preload", "/lib/libnss_files.so.2\n")))
		for name, tool := range map[string][]string{"a.tar.gz": {"gzip", "-c"}, "a.tar.xz": {"xz", "-c"}, "a.tar.bz2": {"bzip2", "-c"}, "a.tar.zst": {"zstd", "-c"}} {
			a.compress(name, tool, archive(t, []entry{file(name+".content", "x")}))
		}
		a.write("b/f", "f")
		a.ok("FROM tools\nADD a.tar.* /\nCOPY --chown=nobody b /b\nUSER nobody\nWORKDIR /w\nRUN [ ! -e /evil ] && [ -e /a.tar.gz.content ] || echo ' BREACH'\n")
	})
}
