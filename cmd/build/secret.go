package main

import (
	"encoding/csv"
	"strconv"
	"strings"

	"build/internal/build"
)

// fillSecrets reads every --secret: id=ID[,src=FILE|,env=NAME][,type=file|env][,cachekey=true][,leak=ok]. Without src and env the value
// is that of the environment variable called ID if there is one, else of the file of that name, as with buildx. cachekey is
// ours: steps that mount the secret run again when its value changes. So is leak=ok: --secret-leak lets the secret pass.
func (f *buildFlags) fillSecrets(a *app, o *build.Options) error {
	for _, given := range f.secrets {
		s, err := a.parseSecret(given)
		if err != nil {
			return err
		}
		if build.TooShortToMask(s.Data) {
			a.note("--secret id=%s is not masked in what steps print: it is too short", s.ID)
		}
		o.Secrets = append(o.Secrets, s)
	}
	o.Mask = build.MaskSecrets(o.Secrets)
	switch o.SecretLeak = build.LeakMode(f.secretLeak); o.SecretLeak {
	case build.LeakWarn, build.LeakError, build.LeakOff:
		return nil
	}
	return usagef("invalid --secret-leak=%s: the choices are warn, error and off", f.secretLeak)
}

// secretFlag is one --secret as typed.
type secretFlag struct {
	id, src, env, kind string
	cacheKey, leakOK   bool
}

func (f *secretFlag) set(given, field string) error {
	key, value, ok := strings.Cut(field, "=")
	if !ok {
		return usagef("invalid --secret %q: %q is not KEY=VALUE", given, field)
	}
	switch strings.ToLower(key) {
	case "id":
		f.id = value
	case "src", "source":
		f.src = value
	case "env":
		f.env = value
	case "type":
		f.kind = value
	case "cachekey":
		on, err := strconv.ParseBool(value)
		if err != nil {
			return usagef("invalid --secret %q: cachekey= is true or false", given)
		}
		f.cacheKey = on
	case "leak":
		if value != "ok" {
			return usagef("invalid --secret %q: leak= is ok or left out", given)
		}
		f.leakOK = true
	default:
		hint := ""
		if near, ok := nearest(key, []string{"id", "src", "source", "env", "type", "cachekey", "leak"}); ok {
			hint = "; did you mean " + near + "?"
		}
		return usagef("invalid --secret %q: unknown key %q%s", given, key, hint)
	}
	return nil
}

func (a *app) parseSecret(given string) (build.Secret, error) {
	fields, err := csv.NewReader(strings.NewReader(given)).Read()
	if err != nil {
		return build.Secret{}, usagef("invalid --secret %q: %v", given, err)
	}
	var f secretFlag
	for _, field := range fields {
		if err := f.set(given, field); err != nil {
			return build.Secret{}, err
		}
	}
	if f.id == "" {
		return build.Secret{}, usagef("invalid --secret %q: id= is missing", given)
	}
	switch f.kind {
	case "", "file":
	case "env":
		if f.env == "" {
			f.env, f.src = f.src, ""
		}
		if f.env == "" {
			f.env = f.id
		}
	default:
		return build.Secret{}, usagef("invalid --secret %q: type= is file or env", given)
	}
	if f.env == "" && f.src == "" && f.kind == "" {
		if _, ok := a.env(f.id); ok {
			f.env = f.id
		}
	}
	s, err := a.readSecret(&f)
	s.CacheKey, s.LeakOK = f.cacheKey, f.leakOK
	return s, err
}

func (a *app) readSecret(f *secretFlag) (build.Secret, error) {
	if f.env == "" && f.src == "" {
		f.src = f.id
	}
	if f.env == "" {
		return build.ReadSecret(f.id, f.src)
	}
	value, ok := a.env(f.env)
	if !ok { // as with BuildKit: a build that can do without goes on
		a.note("--secret id=%s is empty: the environment has no %s", f.id, f.env)
	}
	return build.Secret{ID: f.id, Data: []byte(value)}, nil
}
