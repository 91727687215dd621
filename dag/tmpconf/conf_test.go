package tmpconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"

	"build/dag"
	"build/parser"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const root = "/tmp/build-conformance/"
const cfg = `{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"history":[{"created_by":"base"}]}`

func blob(d string) []byte {
	b, _ := os.ReadFile(root + "bases/store/blobs/sha256/" + strings.TrimPrefix(d, "sha256:"))
	return b
}

func base(name string) *dag.ImageInfo {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil
	}
	named = reference.TagNameOnly(named)
	var refs map[string]struct{ Digest string }
	b, _ := os.ReadFile(root + "bases/store/refs.json")
	json.Unmarshal(b, &refs)
	key := reference.Path(named)
	if t, ok := named.(reference.Tagged); ok {
		key += ":" + t.Tag()
	}
	r, ok := refs[key]
	if !ok {
		return &dag.ImageInfo{Ref: name, Digest: digest.FromString(name), Config: []byte(cfg)}
	}
	var idx ocispec.Index
	json.Unmarshal(blob(r.Digest), &idx)
	md := r.Digest
	for _, m := range idx.Manifests {
		if m.Platform != nil && m.Platform.Architecture == "amd64" {
			md = m.Digest.String()
		}
	}
	var man ocispec.Manifest
	json.Unmarshal(blob(md), &man)
	c := blob(man.Config.Digest.String())
	if len(c) == 0 {
		return &dag.ImageInfo{Ref: name, Digest: digest.FromString(name), Config: []byte(cfg)}
	}
	return &dag.ImageInfo{Ref: name, Digest: digest.Digest(r.Digest), Config: c}
}

func norm(v any) any {
	switch x := v.(type) {
	case nil:
		return nil
	case []any:
		if len(x) == 0 {
			return nil
		}
	case map[string]any:
		if len(x) == 0 {
			return nil
		}
	case string:
		if x == "" {
			return nil
		}
	case bool:
		if !x {
			return nil
		}
	}
	return v
}

func TestConf(t *testing.T) {
	cases, _ := filepath.Glob(root + "cases/*/*/case.json")
	sort.Strings(cases)
	n, bad := 0, 0
	for _, c := range cases {
		var m struct {
			BuildArgs     map[string]string `json:"build_args"`
			File          *string           `json:"file"`
			Context       string
			DockerfileDir string         `json:"dockerfile_dir"`
			Expect        *string        `json:"expect"`
			Subs          []string       `json:"error_substrings"`
			Named         map[string]any `json:"named_contexts"`
			Labels        map[string]string
			Target        *string `json:"target"`
			Platforms     []string
			Corpus, Name  string
		}
		b, _ := os.ReadFile(c)
		if err := json.Unmarshal(b, &m); err != nil {
			t.Logf("%s: %v", c, err)
			continue
		}
		f := "Dockerfile"
		if m.File != nil {
			f = *m.File
		}
		var src []byte
		err := errors.New("x")
		for _, p := range []string{m.DockerfileDir + "/" + f, m.DockerfileDir + "/" + strings.ToLower(f), m.Context + "/" + f} {
			if src, err = os.ReadFile(filepath.Join(filepath.Dir(c), p)); err == nil {
				break
			}
		}
		if err != nil {
			t.Logf("NOFILE %s %s: %v", m.Corpus, m.Name, err)
			continue
		}
		n++
		ok := "error"
		var o struct {
			Status string
			Images map[string]struct {
				Config           map[string]any
				History, Layers  int
				History_nonempty int
			}
		}
		if ob, err := os.ReadFile(root + "oracle/" + m.Corpus + "/" + m.Name + ".json"); err == nil {
			json.Unmarshal(ob, &o)
		} else if m.Expect != nil {
			o.Status = *m.Expect
		}
		ctxs := map[string]string{}
		for k, v := range m.Named {
			ctxs[k] = fmt.Sprint(v)
		}
		opt := dag.Options{BuildArgs: m.BuildArgs, Contexts: ctxs, BuildPlatform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
		for k, v := range m.Labels {
			opt.Labels = append(opt.Labels, dag.Label{Key: k, Value: v})
		}
		if m.Target != nil {
			opt.Target = *m.Target
		}
		g, err := lower(src, opt)
		if err == nil {
			ok = "ok"
		}
		if ok != o.Status {
			bad++
			if os.Getenv("V") != "" || ok == "error" {
				t.Logf("DIFF %s/%s oracle=%s ours=%v subs=%v", m.Corpus, m.Name, o.Status, err, m.Subs)
			}
		} else if err != nil {
			for _, s := range m.Subs {
				if !strings.Contains(err.Error(), s) {
					t.Logf("   MISSING %q in %v", s, err)
				}
			}
		} else if im, found := o.Images["linux/amd64"]; found {
			cb, _ := json.Marshal(g.Config)
			var full map[string]any
			json.Unmarshal(cb, &full)
			have, _ := full["config"].(map[string]any)
			for _, k := range []string{"ArgsEscaped", "Cmd", "Entrypoint", "Env", "Healthcheck", "Labels", "OnBuild", "Shell", "StopSignal", "User", "WorkingDir"} {
				if !reflect.DeepEqual(norm(have[k]), norm(im.Config[k])) {
					t.Logf("CONFIG %s/%s %s: ours %v oracle %v", m.Corpus, m.Name, k, have[k], im.Config[k])
				}
			}
			for _, k := range []string{"ExposedPorts", "Volumes"} {
				var l []any
				if mm, ok := have[k].(map[string]any); ok {
					for p := range mm {
						l = append(l, p)
					}
				}
				sort.Slice(l, func(i, j int) bool { return l[i].(string) < l[j].(string) })
				if !reflect.DeepEqual(norm(l), norm(im.Config[k])) {
					t.Logf("CONFIG %s/%s %s: ours %v oracle %v", m.Corpus, m.Name, k, l, im.Config[k])
				}
			}
			if a, _ := full["author"].(string); a != im.Config["author"] {
				t.Logf("CONFIG %s/%s author: ours %v oracle %v", m.Corpus, m.Name, a, im.Config["author"])
			}
			ne := 0
			for _, h := range g.History {
				if !h.EmptyLayer {
					ne++
				}
			}
			if len(g.History) != im.History || ne != im.History_nonempty {
				t.Logf("HISTORY %s/%s ours %d/%d oracle %d/%d", m.Corpus, m.Name, len(g.History), ne, im.History, im.History_nonempty)
			}
		}
	}
	t.Logf("%d cases, %d differ", n, bad)
}

func lower(src []byte, opt dag.Options) (*dag.Graph, error) {
	f, err := parser.Parse("Dockerfile", src, parser.Options{Args: opt.BuildArgs})
	if err != nil {
		return nil, err
	}
	have := map[dag.NeedKey]dag.Resolved{}
	for i := 0; i < 20; i++ {
		g, needs, err := dag.Lower(f, opt, have)
		if err != nil {
			return nil, err
		}
		if g != nil {
			return g, nil
		}
		for _, n := range needs {
			if n.Context {
				if s, ok := strings.CutPrefix(n.Value, "docker-image://"); ok {
					have[n.Key()] = dag.Resolved{Image: base(s)}
					continue
				}
				have[n.Key()] = dag.Resolved{Dir: true}
				continue
			}
			have[n.Key()] = dag.Resolved{Image: base(n.Name)}
		}
	}
	return nil, errors.New("does not end")
}
