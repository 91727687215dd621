package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"
)

// keychain finds credentials in docker's config.json: in the helper configured for a host, in the store configured for
// all of them, and in the file itself. Only entries of the very host asked for are ever returned.
type keychain struct {
	path string // of config.json, "" none
	text string // DOCKER_AUTH_CONFIG

	mu     sync.Mutex
	loaded bool
	file   *configfile.ConfigFile
	env    *configfile.ConfigFile
	err    error
	helper map[string]helperAnswer // by host key; a helper may ask the user, so it is asked once
}

type helperAnswer struct {
	cred credential
	err  error
}

func newKeychain(dir, text string) *keychain {
	k := &keychain{text: text, helper: map[string]helperAnswer{}}
	if dir != "" {
		k.path = dir
		if fi, err := os.Stat(dir); err != nil || fi.IsDir() {
			k.path = filepath.Join(dir, config.ConfigFileName)
		}
	}
	return k
}

// load reads the files at first use. A file that cannot be read or parsed is an error for every lookup: going on
// without it would show up as a puzzling refusal by the registry.
func (k *keychain) load() error {
	if k.loaded {
		return k.err
	}
	k.loaded = true
	k.file, k.err = loadConfig(k.path)
	if k.err == nil && k.text != "" {
		if k.env, k.err = config.LoadFromReader(strings.NewReader(k.text)); k.err != nil {
			k.err = fmt.Errorf("reading DOCKER_AUTH_CONFIG: %w", k.err)
		}
	}
	if k.err != nil {
		k.err = &Error{Class: Invalid, Err: k.err}
	}
	return k.err
}

func loadConfig(path string) (*configfile.ConfigFile, error) {
	cf := configfile.New(path)
	if path == "" {
		return cf, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return cf, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading registry credentials: %w", err)
	}
	defer f.Close()
	if err := cf.LoadFromReader(f); err != nil {
		return nil, fmt.Errorf("reading registry credentials from %s: %w", path, err)
	}
	return cf, nil
}

// hostKey is the name credentials of a domain are stored under.
func hostKey(domain string) string {
	if domain == hubDomain || domain == "index."+hubDomain || domain == hubHost {
		return hubKey
	}
	return domain
}

// lookup returns the credentials for a repository, or none. A helper that is missing or fails is not fatal: public
// images can be had without it. What went wrong is kept in from, so that a refusal names it.
func (k *keychain) lookup(ctx context.Context, domain, path string) (credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil {
		return credential{}, err
	}
	if k.env != nil {
		if ac, ok := findAuth(k.env.AuthConfigs, domain, path); ok {
			return fromAuth(ac, "DOCKER_AUTH_CONFIG"), nil
		}
	}
	broken := ""
	if name := helperFor(k.file, domain); name != "" {
		cred, err := k.ask(ctx, name, domain)
		switch {
		case ctx.Err() != nil:
			return credential{}, context.Cause(ctx)
		case err != nil:
			broken = fmt.Sprintf("nowhere (the credential helper docker-credential-%s failed: %v)", name, err)
		case cred.from != "":
			return cred, nil
		}
	}
	if ac, ok := findAuth(k.file.AuthConfigs, domain, path); ok {
		return fromAuth(ac, k.path), nil
	}
	return credential{from: broken}, nil
}

func helperFor(cf *configfile.ConfigFile, domain string) string {
	for _, key := range []string{hostKey(domain), domain} {
		if h := cf.CredentialHelpers[key]; h != "" {
			return h
		}
	}
	return cf.CredentialsStore
}

// ask runs a credential helper. The helper has no notion of cancellation, so an impatient caller leaves it behind.
func (k *keychain) ask(ctx context.Context, name, domain string) (credential, error) {
	if a, ok := k.helper[domain]; ok {
		return a.cred, a.err
	}
	answer := make(chan helperAnswer, 1)
	file := configfile.New("") // keeps the helper's store from mixing in entries of the file
	go func() {
		ac, err := credentials.NewNativeStore(file, name).Get(hostKey(domain))
		a := helperAnswer{err: err}
		if err == nil {
			a.cred = fromAuth(ac, "docker-credential-"+name)
		}
		answer <- a
	}()
	select {
	case a := <-answer:
		k.helper[domain] = a
		return a.cred, a.err
	case <-ctx.Done():
		return credential{}, context.Cause(ctx)
	}
}

// findAuth looks for the entry with the longest matching prefix: host/namespace/repo, then host/namespace, then host.
func findAuth(auths map[string]types.AuthConfig, domain, path string) (types.AuthConfig, bool) {
	for key := domain + "/" + path; strings.Contains(key, "/"); key = key[:strings.LastIndexByte(key, '/')] {
		if ac, ok := auths[key]; ok && !isEmpty(ac) {
			return ac, true
		}
	}
	if ac, ok := auths[hostKey(domain)]; ok && !isEmpty(ac) {
		return ac, true
	}
	for key, ac := range auths {
		if entryHost(key) == hostOf(domain) && !isEmpty(ac) {
			return ac, true
		}
	}
	return types.AuthConfig{}, false
}

// entryHost is the host a whole-host entry is for, in any of the spellings docker has written over the years
// (https://host/v1/, host/v2/, host), or "" when the entry is for a namespace.
func entryHost(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	key = strings.TrimSuffix(strings.TrimSuffix(key, "/v1"), "/v2")
	if strings.Contains(key, "/") {
		return ""
	}
	return hostOf(key)
}

func hostOf(domain string) string {
	if hostKey(domain) == hubKey {
		return hubDomain
	}
	return domain
}

func isEmpty(ac types.AuthConfig) bool {
	return ac.Username == "" && ac.Password == "" && ac.Auth == "" && ac.IdentityToken == "" && ac.RegistryToken == ""
}

func fromAuth(ac types.AuthConfig, from string) credential {
	if isEmpty(ac) {
		return credential{}
	}
	return credential{user: ac.Username, password: ac.Password, identity: ac.IdentityToken, registryToken: ac.RegistryToken, from: from}
}

// Login asks the registry whether it accepts the user and, if so, stores the credentials where docker would: in the
// helper configured for the host, else in config.json. It returns where that was.
func (c *Client) Login(ctx context.Context, domain, user, password string) (where string, err error) {
	domain = loginHost(domain)
	if user == "" || password == "" {
		return "", &Error{Class: Invalid, Ref: domain, Err: errors.New("user name and password are both needed")}
	}
	h, err := c.host(domain)
	if err != nil {
		return "", err
	}
	if c.keys.path == "" {
		return "", &Error{Class: Invalid, Ref: domain, Err: errors.New("there is no place to store credentials"), Hint: "set HOME or DOCKER_CONFIG"}
	}
	cred := credential{user: user, password: password, from: "the command line"}
	if user == "<token>" {
		cred = credential{identity: password, from: cred.from}
	}
	if err := h.verify(ctx, cred); err != nil {
		return "", about(domain, err)
	}
	where, err = c.keys.store(domain, cred)
	if err != nil {
		return "", &Error{Class: Invalid, Ref: domain, Err: fmt.Errorf("storing credentials: %w", err)}
	}
	return where, nil
}

// Logout removes what is stored for a host and reports whether there was anything.
func (c *Client) Logout(domain string) (bool, error) {
	domain = loginHost(domain)
	had, err := c.keys.erase(domain)
	if err != nil {
		return had, &Error{Class: Invalid, Ref: domain, Err: fmt.Errorf("removing credentials: %w", err)}
	}
	return had, nil
}

// loginHost accepts what people type after "login": a URL, a bare host, nothing for Docker Hub.
func loginHost(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s, _, _ = strings.Cut(s, "/")
	if s == "" || hostKey(s) == hubKey {
		return hubDomain
	}
	return s
}

func (k *keychain) store(domain string, cred credential) (where string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil {
		return "", err
	}
	ac := types.AuthConfig{Username: cred.user, Password: cred.password, IdentityToken: cred.identity, ServerAddress: hostKey(domain)}
	delete(k.helper, domain)
	if err := os.MkdirAll(filepath.Dir(k.path), 0o700); err != nil {
		return "", err
	}
	if name := helperFor(k.file, domain); name != "" {
		return "docker-credential-" + name, credentials.NewNativeStore(k.file, name).Store(ac)
	}
	k.file.AuthConfigs[hostKey(domain)] = ac
	return k.path, k.file.Save()
}

func (k *keychain) erase(domain string) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil {
		return false, err
	}
	if k.path == "" {
		return false, nil
	}
	had := false
	if name := helperFor(k.file, domain); name != "" {
		had = true
		delete(k.helper, domain)
		if err := credentials.NewNativeStore(configfile.New(""), name).Erase(hostKey(domain)); err != nil {
			return had, err
		}
	}
	changed := false
	for key := range k.file.AuthConfigs {
		if entryHost(key) == hostOf(domain) {
			delete(k.file.AuthConfigs, key)
			had, changed = true, true
		}
	}
	if !changed {
		return had, nil
	}
	return had, k.file.Save()
}
