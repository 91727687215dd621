package main

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"build/internal/build"
)

// fuzzedFlags are the flags whose values are a language of their own.
var fuzzedFlags = []string{
	"output", "secret", "platform", "build-context", "add-host", "ulimit", "annotation", "ssh", "tag", "build-arg", "label", "pull",
	"network", "shm-size", "allow", "no-cache-filter", "call", "registry-mirror", "insecure",
}

// Whatever is given to a flag is taken or refused as a mistake of the caller, in words a terminal can show.
func FuzzFlags(f *testing.F) {
	seeds := map[string][]string{
		"output": {
			"type=oci,dest=x.tar", "-", "out", "type=local", `type=image,"name=a,b",push=true`, "type=tar,dest=-", "type=docker,dest=a,compression=zstd,compression-level=22",
			"type=oci,tar=false,dest=d,annotation-manifest-descriptor[linux/arm64/v8].k=v,annotation.k=", "type=registry,registry.insecure=1", "type=oci,source-date-epoch=-1,rewrite-timestamp=t", "\"", "type=", "=,=",
		},
		"secret":          {"id=a,src=b", "id=a,env=B,cachekey=true", "id=HOME", "type=env,src=A,id=x", "id=,src=", `"id=a`, "srd=x", "id=a,cachekey=maybe"},
		"platform":        {"linux/amd64,linux/arm64/v8", "local", "linux/arm", "arm", "linux(1.2)/amd64", "windows(10.0)/amd64", ",", "linux/amd64/v9/x", "linux/\x1b"},
		"build-context":   {"a=docker-image://b", "a=oci-layout:///x:tag@sha256:0", "A=..", "=", "a=", "base::linux/amd64=target:x", "a=https://h/x.git?ref=y#z:s"},
		"add-host":        {"h:10.0.0.1", "h=[::1]", "h:::1", "h:host-gateway", ":", "a b:1.2.3.4", "h=[", "h:fe80::1%eth0"},
		"ulimit":          {"nofile=1024:2048", "nofile=-1", "nofile=unlimited", "cpu=1:0", "x=1", "=", "core=99999999999999999999"},
		"annotation":      {"k=v", "index:k=v", "manifest[linux/amd64],index-descriptor:k=v=w", "[]:=", "indx:k=v", "manifest[x/y/z/w]:a=b", "manifest[(]:a=b"},
		"ssh":             {"default", "a=b,c", "=", "default=x,raw=true", "x=,raw=", "\x1b[31m"},
		"tag":             {"a:b", "Registry.example:5000/a/b:c", "a@sha256:" + strings.Repeat("0", 64), "UPPER", ":", "a//b"},
		"build-arg":       {"A=b", "A", "=b", "SOURCE_DATE_EPOCH=12", "SOURCE_DATE_EPOCH=x", "HTTP_PROXY=\x00", "BUILDKIT_MULTI_PLATFORM=maybe"},
		"label":           {"a=b", "a", "=", "a=\x1b[0m"},
		"shm-size":        {"1", "64m", "1.5g", "-1", "1e9", "99999999999999999g", "b", "NaN"},
		"call":            {"check", "outline,format=json", "targets,ignorestatus", "check,format=sarif", "x", ",", "check,format="},
		"registry-mirror": {"docker.io=mirror.example/hub", "=", "a", "a=b=c", "a=http://b"},
	}
	for _, name := range slices.Sorted(maps.Keys(seeds)) {
		for _, v := range seeds[name] {
			f.Add(flagNumber(name), v)
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { null.Close() })
	f.Fuzz(func(t *testing.T, flag uint8, value string) {
		if strings.Contains(value, "/dev") || strings.Contains(value, "/proc") {
			return // files that are read for ever
		}
		env := map[string]string{"HOME": "/nonexistent", "A": "value", "SSH_AUTH_SOCK": "/nonexistent/agent"}
		a := &app{env: func(k string) (string, bool) { v, ok := env[k]; return v, ok }, stdin: null, stdout: null, stderr: null}
		g, fl := &globalFlags{}, &buildFlags{}
		fs := pflag.NewFlagSet("build", pflag.ContinueOnError)
		fl.define(fs)
		g.define(fs)
		name := fuzzedFlags[int(flag)%len(fuzzedFlags)]
		if fs.Lookup(name) == nil {
			t.Fatalf("there is no --%s", name)
		}
		if err := fs.Parse([]string{"--" + name + "=" + value, "."}); err != nil {
			return
		}
		_, err := fl.options(a, g, fs.Arg(0))
		if err == nil {
			_, err = fl.inspection()
		}
		if err == nil {
			return
		}
		if code := build.ExitCode(err); code != build.ExitUsage && code != build.ExitEnvironment {
			t.Errorf("--%s=%q: exit code %d for %v", name, value, code, err)
		}
		var text bytes.Buffer
		build.Explain(&text, err)
		if strings.ContainsAny(text.String(), "\x1b\x07\x00") {
			t.Errorf("--%s=%q: control characters reach the terminal: %q", name, value, text.String())
		}
	})
}

func flagNumber(name string) uint8 {
	for i, n := range fuzzedFlags {
		if n == name {
			return uint8(i)
		}
	}
	panic("not among the fuzzed flags: " + name)
}
