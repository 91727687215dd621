package main

import (
	"encoding/csv"
	"strings"

	"build/internal/build"
)

// fillSecrets reads every --secret: id=ID[,src=FILE|,env=NAME][,type=file|env]. Without src and env the value is that of
// the environment variable called ID if there is one, else of the file of that name, as with buildx.
func (f *buildFlags) fillSecrets(a *app, o *build.Options) error {
	for _, given := range f.secrets {
		s, err := a.parseSecret(given)
		if err != nil {
			return err
		}
		o.Secrets = append(o.Secrets, s)
	}
	o.Mask = build.MaskSecrets(o.Secrets)
	return nil
}

func (a *app) parseSecret(given string) (build.Secret, error) {
	fields, err := csv.NewReader(strings.NewReader(given)).Read()
	if err != nil {
		return build.Secret{}, usagef("invalid --secret %q: %v", given, err)
	}
	var id, src, env, kind string
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return build.Secret{}, usagef("invalid --secret %q: %q is not KEY=VALUE", given, field)
		}
		switch strings.ToLower(key) {
		case "id":
			id = value
		case "src", "source":
			src = value
		case "env":
			env = value
		case "type":
			kind = value
		default:
			hint := ""
			if near, ok := nearest(key, []string{"id", "src", "source", "env", "type"}); ok {
				hint = "; did you mean " + near + "?"
			}
			return build.Secret{}, usagef("invalid --secret %q: unknown key %q%s", given, key, hint)
		}
	}
	if id == "" {
		return build.Secret{}, usagef("invalid --secret %q: id= is missing", given)
	}
	switch kind {
	case "", "file":
	case "env":
		if env == "" {
			env, src = src, ""
		}
		if env == "" {
			env = id
		}
	default:
		return build.Secret{}, usagef("invalid --secret %q: type= is file or env", given)
	}
	if env == "" && src == "" && kind == "" {
		if _, ok := a.env(id); ok {
			env = id
		}
	}
	if env != "" {
		value, ok := a.env(env)
		if !ok {
			return build.Secret{}, usagef("--secret id=%s: the environment has no %s", id, env)
		}
		return build.Secret{ID: id, Data: []byte(value)}, nil
	}
	if src == "" {
		src = id
	}
	return build.ReadSecret(id, src)
}
