package main

import (
	"net"
	"os"
	"reflect"
	"strings"
	"testing"

	"build/internal/build"
)

func agentIDs(o build.Options) []string {
	var ids []string
	for _, a := range o.SSH {
		ids = append(ids, a.ID)
	}
	return ids
}

func TestSSHForms(t *testing.T) {
	dir, err := os.MkdirTemp("", "agent") // short: the path of a socket is at most 108 bytes
	check(t, err)
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", dir+"/s")
	check(t, err)
	defer l.Close()
	running := map[string]string{"HOME": "/h", "SSH_AUTH_SOCK": dir + "/s"}
	for _, c := range []struct {
		env  map[string]string
		args string
		want []string
	}{
		{running, ".", nil},
		{running, "--ssh default .", []string{"default"}},
		{running, "--ssh default= .", []string{"default"}},
		{running, "--ssh a --ssh b=" + dir + "/s .", []string{"a", "b"}},
		{map[string]string{"HOME": "/h"}, "--ssh x=" + dir + "/s,raw=true .", []string{"x"}},
		{map[string]string{"HOME": "/h"}, "git@host:repo.git", nil}, // it may be that the build needs nothing of it
		{running, "git@host:repo.git", []string{"default"}},
		{running, "ssh://git@host/repo.git", []string{"default"}},
		{running, "--build-context x=git@host:repo.git .", []string{"default"}},
		{running, "--ssh other git@host:repo.git", []string{"other"}},
		{running, "https://host/repo.git", nil},
	} {
		o, notes, err := parse(t, c.env, strings.Fields(c.args)...)
		if err != nil || notes != "" || !reflect.DeepEqual(agentIDs(o), c.want) {
			t.Errorf("%s: agents %q, %v, %q; want %q", c.args, agentIDs(o), err, notes, c.want)
		}
	}
	for args, want := range map[string]string{
		"--ssh = .":                                 "the form is default or ID",
		"--ssh x=" + dir + "/s,raw=perhaps .":       "raw= is true or false",
		"--ssh x=" + dir + "/s," + dir + "/s .":     "either one socket or key files",
		"--ssh default --ssh default=" + dir + " .": "neither a socket nor a file",
		"--ssh default --ssh default .":             "given twice",
	} {
		_, _, err := parse(t, running, strings.Fields(args)...)
		wantUsage(t, err, want)
	}
}

func TestKnownHosts(t *testing.T) {
	o, _, err := parse(t, map[string]string{"HOME": "/h"}, ".")
	check(t, err)
	want := []string{"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2", "/h/.ssh/known_hosts", "/h/.ssh/known_hosts2"}
	if !reflect.DeepEqual(o.KnownHosts, want) {
		t.Errorf("known hosts are in %q, want %q", o.KnownHosts, want)
	}
	o, _, err = parse(t, map[string]string{"HOME": "/h", "SSH_KNOWN_HOSTS": "/a:/b"}, ".")
	check(t, err)
	if want := []string{"/a", "/b"}; !reflect.DeepEqual(o.KnownHosts, want) {
		t.Errorf("known hosts are in %q, want %q", o.KnownHosts, want)
	}
}

func TestSecretForms(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(dir+"/file", []byte("of the file\n"), 0o600))
	t.Chdir(dir)
	env := map[string]string{"HOME": "/h", "VAR": "of the variable"}
	for _, c := range []struct {
		given string
		want  build.Secret
		note  string
	}{
		{"id=x,src=file", build.Secret{ID: "x", Data: []byte("of the file\n")}, ""},
		{"type=file,id=x,source=" + dir + "/file", build.Secret{ID: "x", Data: []byte("of the file\n")}, ""},
		{"id=file", build.Secret{ID: "file", Data: []byte("of the file\n")}, ""},
		{"id=VAR", build.Secret{ID: "VAR", Data: []byte("of the variable")}, ""},
		{"id=x,env=VAR", build.Secret{ID: "x", Data: []byte("of the variable")}, ""},
		{"id=x,type=env,src=VAR", build.Secret{ID: "x", Data: []byte("of the variable")}, ""},
		{"id=VAR,type=env", build.Secret{ID: "VAR", Data: []byte("of the variable")}, ""},
		{"id=x,env=VAR,cachekey=true", build.Secret{ID: "x", Data: []byte("of the variable"), CacheKey: true}, ""},
		{"id=x,env=VAR,cachekey=0", build.Secret{ID: "x", Data: []byte("of the variable")}, ""},
		{"id=x,env=NONE", build.Secret{ID: "x", Data: []byte{}}, "the environment has no NONE"},
	} {
		o, notes, err := parse(t, env, "--secret", c.given, ".")
		if err != nil || len(o.Secrets) != 1 || !reflect.DeepEqual(o.Secrets[0], c.want) {
			t.Errorf("%s: %+v, %v; want %+v", c.given, o.Secrets, err, c.want)
		}
		if (notes != "") != (c.note != "") || !strings.Contains(notes, c.note) {
			t.Errorf("%s: said %q, want %q", c.given, notes, c.note)
		}
	}
}
