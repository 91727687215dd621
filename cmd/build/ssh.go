package main

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"build/internal/build"
)

// agentVar is where ssh programs look for the user's agent.
const agentVar = "SSH_AUTH_SOCK"

// fillSSH opens every --ssh, and says how repositories behind ssh are reached. As with buildx, naming such a repository on
// the command line gives it the user's agent when no --ssh says otherwise.
func (f *buildFlags) fillSSH(a *app, o *build.Options) error {
	o.KnownHosts = a.knownHosts()
	seen := map[string]bool{}
	for _, given := range f.ssh {
		s, err := a.parseSSH(given)
		if err != nil {
			return err
		}
		if seen[s.ID] {
			return usagef("--ssh %s is given twice", s.ID)
		}
		seen[s.ID] = true
		o.SSH = append(o.SSH, s)
	}
	named := build.IsSSH(o.Context) || slices.ContainsFunc(o.NamedContexts, func(kv build.KeyValue) bool { return build.IsSSH(kv.Value) })
	if len(f.ssh) > 0 || !named || a.getenv(agentVar) == "" {
		return nil
	}
	s, err := a.parseSSH(build.DefaultSSH)
	o.SSH = append(o.SSH, s)
	return err
}

// parseSSH reads default, ID, ID=SOCKET and ID=KEYFILE,…; raw=true after a socket is what buildctl has. Without a path, it
// is the user's agent.
func (a *app) parseSSH(given string) (build.SSHAgent, error) {
	id, value, _ := strings.Cut(given, "=")
	if id == "" {
		return build.SSHAgent{}, usagef("invalid --ssh %q: the form is default or ID[=SOCKET|KEYFILE,…]", given)
	}
	var paths []string
	raw := false
	for _, p := range strings.Split(value, ",") {
		if v, ok := strings.CutPrefix(p, "raw="); ok {
			on, err := strconv.ParseBool(v)
			if err != nil {
				return build.SSHAgent{}, usagef("invalid --ssh %q: raw= is true or false", given)
			}
			raw = on
		} else if p != "" {
			paths = append(paths, p)
		}
	}
	if len(paths) == 0 {
		sock := a.getenv(agentVar)
		if sock == "" {
			return build.SSHAgent{}, &build.UsageError{
				Msg:  "--ssh " + given + ": no agent is running: the environment has no " + agentVar,
				Hint: "start one with eval $(ssh-agent) and ssh-add, or name a key file: --ssh " + id + "=KEYFILE",
			}
		}
		paths = []string{sock}
	}
	return build.OpenSSH(id, paths, raw)
}

// knownHosts are the files with the keys of ssh hosts: those of ssh(1), or those that SSH_KNOWN_HOSTS lists. A host that is
// in none of them is refused. BuildKit asks such a host for its key and trusts the answer.
func (a *app) knownHosts() []string {
	if list := a.getenv("SSH_KNOWN_HOSTS"); list != "" {
		return filepath.SplitList(list)
	}
	files := []string{"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"}
	if home := a.getenv("HOME"); home != "" {
		files = append(files, home+"/.ssh/known_hosts", home+"/.ssh/known_hosts2")
	}
	return files
}
