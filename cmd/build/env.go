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

	"build/internal/build"
)

// This file is where environment variables are read.

// storeOptions says where the store is and how registries are reached.
func (a *app) storeOptions(g *globalFlags) (build.StoreOptions, error) {
	root, err := a.storeRoot(g.root)
	if err != nil {
		return build.StoreOptions{}, err
	}
	mirrors, err := a.mirrors(g.mirrors)
	if err != nil {
		return build.StoreOptions{}, err
	}
	return build.StoreOptions{
		Root: root, Insecure: g.insecure, Mirrors: mirrors, Offline: g.offline,
		DockerConfig: a.dockerConfig(g), CertsDirs: a.certsDirs(),
	}, nil
}

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
		if os.Geteuid() == 0 {
			return "/var/lib/build", nil
		}
		switch data, home := a.getenv("XDG_DATA_HOME"), a.getenv("HOME"); {
		case filepath.IsAbs(data): // the specification has relative values ignored
			dir = filepath.Join(data, "build")
		case home != "":
			dir = filepath.Join(home, ".local", "share", "build")
		default:
			return "", &build.EnvironmentError{
				Err:  errors.New("no place for the store: neither XDG_DATA_HOME nor HOME is set"),
				Hint: "say where it may be with --root DIR or BUILD_ROOT",
			}
		}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", &build.EnvironmentError{Err: fmt.Errorf("store %s: %w", dir, err)}
	}
	return abs, nil
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
