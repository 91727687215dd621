package main

import (
	"github.com/docker/go-units"

	"build/internal/build"
)

// fillLimits reads what bounds the steps, --jobs, --shm-size and --ulimit, and --allow, which lifts a bound.
func (f *buildFlags) fillLimits(a *app, o *build.Options) error {
	if f.jobs < 0 {
		return usagef("invalid --jobs %d: it is a number of steps, 0 for the default", f.jobs)
	}
	o.Jobs = f.jobs
	if f.shmSize != "" {
		n, err := units.RAMInBytes(f.shmSize)
		if err != nil || n < 0 {
			return usagef("invalid --shm-size %q: the form is a number and b, k, m or g", f.shmSize)
		}
		o.ShmSize = n
	}
	var err error
	if o.Isolation, err = build.ParseIsolation(a.isolation(f.isolation)); err != nil {
		return err
	}
	for _, given := range f.allow {
		switch given {
		case "security.insecure":
			o.AllowInsecure = true
		case "network.host":
			o.AllowHostNet = true
		default:
			return usagef("invalid --allow %q: the permissions are security.insecure and network.host", given)
		}
	}
	for _, given := range f.ulimits {
		u, err := units.ParseUlimit(given)
		if err != nil {
			return usagef("invalid --ulimit %q: %v", given, err)
		}
		limit, err := u.GetRlimit()
		if err != nil {
			return usagef("invalid --ulimit %q: %v", given, err)
		}
		o.Rlimits = append(o.Rlimits, build.Rlimit{Resource: limit.Type, Soft: limit.Soft, Hard: limit.Hard})
	}
	return nil
}
