package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"build/internal/build"
	"build/internal/lazyregexp"
)

// This file is where environment variables are read.

// storeOptions says where the store is and how registries are reached.
func (a *app) storeOptions(g *globalFlags) (build.StoreOptions, error) {
	root, err := a.storeRoot(g.root)
	if err != nil {
		return build.StoreOptions{}, err
	}
	limit, err := a.storeLimit(g.storeLimit)
	if err != nil {
		return build.StoreOptions{}, err
	}
	mirrors, err := a.mirrors(g.mirrors)
	if err != nil {
		return build.StoreOptions{}, err
	}
	for _, host := range g.insecure {
		if !isHost(host) {
			return build.StoreOptions{}, usagef("invalid --insecure %q: the form is HOST or HOST:PORT", host)
		}
	}
	return build.StoreOptions{
		Root: root, Limit: limit, Insecure: g.insecure, Mirrors: mirrors, Offline: g.offline,
		DockerConfig: a.dockerConfig(g), CertsDirs: a.certsDirs(),
	}, nil
}

var hostForm = lazyregexp.New(`^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?$`)

// isHost reports whether s names a host, with or without a port: no URL, no network, no image.
func isHost(s string) bool { return hostForm().MatchString(s) }

// mirrors reads --registry-mirror, or the environment where there is none.
func (a *app) mirrors(given []string) ([]build.Mirror, error) {
	if env := a.getenv("BUILD_REGISTRY_MIRRORS"); len(given) == 0 && env != "" {
		given = strings.Split(env, ",")
	}
	var out []build.Mirror
	for _, m := range given {
		host, prefix, ok := strings.Cut(strings.TrimSpace(m), "=")
		if prefix = strings.Trim(prefix, "/"); !ok || host == "" || prefix == "" {
			return nil, usagef("invalid mirror %q: the form is HOST=PREFIX, such as docker.io=mirror.example/hub", m)
		}
		out = append(out, build.Mirror{Host: host, Prefix: prefix})
	}
	return out, nil
}

func (a *app) storeRoot(flag string) (string, error) {
	dir := flag
	if dir == "" {
		dir = a.getenv("BUILD_ROOT")
	}
	if dir == "" {
		return a.defaultRoot()
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", &build.EnvironmentError{Err: fmt.Errorf("store %s: %w", dir, err)}
	}
	return abs, nil
}

// defaultRoot is the first place of the usual ones that can be written to. Users without a home of their own, as in containers with
// a random user id or a read-only root, get one that lasts as long as /var/tmp does.
func (a *app) defaultRoot() (string, error) {
	var places []string
	if os.Geteuid() == 0 {
		places = append(places, "/var/lib/build")
	}
	if data := a.getenv("XDG_DATA_HOME"); filepath.IsAbs(data) { // the specification has relative values ignored
		places = append(places, filepath.Join(data, "build"))
	}
	if home := a.getenv("HOME"); filepath.IsAbs(home) && home != "/" {
		places = append(places, filepath.Join(home, ".local", "share", "build"))
	}
	own := fmt.Sprintf("build-%d", os.Geteuid())
	places = append(places, "/var/tmp/"+own)
	if tmp := a.getenv("TMPDIR"); filepath.IsAbs(tmp) {
		places = append(places, filepath.Join(tmp, own))
	}
	places = append(places, "/tmp/"+own)
	var tried []string
	for _, dir := range places {
		err := usable(dir)
		if err == nil {
			if len(tried) > 0 {
				a.note("the store is %s, because it cannot be elsewhere: %s (say where with --root DIR or BUILD_ROOT)", dir, strings.Join(tried, "; "))
			}
			return dir, nil
		}
		tried = append(tried, err.Error())
	}
	return "", &build.EnvironmentError{
		Err:  fmt.Errorf("no place for the store: %s", strings.Join(tried, "; ")),
		Hint: "say where it may be with --root DIR or BUILD_ROOT",
	}
}

// usable makes a directory of our own, or finds that it is one and can be written to: in /tmp a stranger may have been there first.
func usable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a directory of this user", dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return &fs.PathError{Op: "write to", Path: dir, Err: err}
	}
	return nil
}

// isolation is --isolation, or the environment where there is none.
func (a *app) isolation(flag string) string {
	if flag == "" {
		return a.getenv("BUILD_ISOLATION")
	}
	return flag
}

// dockerConfig is the directory of docker's config.json, "" when there is no home to look in.
func (a *app) dockerConfig(g *globalFlags) string {
	if g.dockerConfig != "" {
		return g.dockerConfig
	}
	if dir := a.getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	if home := a.getenv("HOME"); home != "" {
		return filepath.Join(home, ".docker")
	}
	return ""
}

func (a *app) certsDirs() []string {
	dirs := []string{"/etc/docker/certs.d"}
	config := a.getenv("XDG_CONFIG_HOME")
	if home := a.getenv("HOME"); config == "" && home != "" {
		config = filepath.Join(home, ".config")
	}
	if config != "" {
		dirs = append(dirs, filepath.Join(config, "docker", "certs.d"))
	}
	return dirs
}

// proxyNames are the build arguments that every Dockerfile has without declaring them. They are passed to RUN in both
// cases of letters, as far as they are set.
var proxyNames = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

func isProxyName(name string) bool { return slices.Contains(proxyNames, strings.ToUpper(name)) }

// proxyArgs collects proxy settings: the environment's, over them those of docker's config.json, over them build
// arguments.
func (a *app) proxyArgs(configDir string, buildArgs []build.KeyValue) ([]build.KeyValue, error) {
	set := map[string]string{}
	for _, upper := range proxyNames {
		for _, name := range []string{upper, strings.ToLower(upper)} {
			if v := a.getenv(name); v != "" {
				set[name] = v
			}
		}
	}
	configured, err := readProxyConfig(configDir)
	if err != nil {
		return nil, err
	}
	for name, v := range configured {
		set[name], set[strings.ToLower(name)] = v, v
	}
	for _, kv := range buildArgs {
		if isProxyName(kv.Key) {
			set[kv.Key] = kv.Value
		}
	}
	var out []build.KeyValue
	for _, upper := range proxyNames {
		for _, name := range []string{upper, strings.ToLower(upper)} {
			if v, ok := set[name]; ok {
				out = append(out, build.KeyValue{Key: name, Value: v})
			}
		}
	}
	return out, nil
}

// readProxyConfig returns the default entry under "proxies" of docker's config.json, by upper-case name.
func readProxyConfig(dir string) (map[string]string, error) {
	if dir == "" {
		return nil, nil
	}
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil // credentials that are needed and cannot be read are reported by the registry client
	}
	if err != nil {
		return nil, &build.EnvironmentError{Err: err}
	}
	var config struct {
		Proxies map[string]struct {
			HTTP  string `json:"httpProxy"`
			HTTPS string `json:"httpsProxy"`
			FTP   string `json:"ftpProxy"`
			No    string `json:"noProxy"`
			All   string `json:"allProxy"`
		} `json:"proxies"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, &build.EnvironmentError{Err: fmt.Errorf("%s: %w", path, err)}
	}
	p := config.Proxies["default"]
	out := map[string]string{}
	for name, v := range map[string]string{"HTTP_PROXY": p.HTTP, "HTTPS_PROXY": p.HTTPS, "FTP_PROXY": p.FTP, "NO_PROXY": p.No, "ALL_PROXY": p.All} {
		if v != "" {
			out[name] = v
		}
	}
	return out, nil
}

// inCI reports whether the environment says that nobody watches.
func (a *app) inCI() bool {
	v := a.getenv("CI")
	return v != "" && v != "false" && v != "0"
}
