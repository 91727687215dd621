package cgroup

// Finding says whether one controller can limit steps here.
type Finding struct {
	Controller string
	OK         bool
	Where      string // the group in which those of the steps would be made
	V2         bool
	Blocker    string // who is in the way
	Fix        string // the smallest thing that would help
	Fallback   string // what a build does instead; "" means that it refuses the limit
}

// Probe finds out for each controller whether it can limit steps, by making a group that has it and removing it again. Like Open
// it may move this process for that time.
func Probe() []Finding {
	g := &Groups{}
	defer g.Close()
	lay, err := look("/proc")
	if err != nil {
		lay = &layout{}
	}
	not := blocked{}
	g.openOwn(lay, Controllers, not)
	_ = g.tryAll(not) // without limits there is no value to be refused
	out := make([]Finding, len(Controllers))
	for i, c := range Controllers {
		f := Finding{Controller: c, Fallback: instead(c)}
		for _, b := range g.bases {
			for _, has := range b.controllers {
				if has == c {
					f.OK, f.Where, f.V2 = true, b.dir, b.h.v2
				}
			}
		}
		if e := not[c]; e != nil {
			f.Blocker, f.Fix = (&Error{What: e.What, Blocker: e.Blocker, Err: e.Err}).Error(), e.Fix
		}
		out[i] = f
	}
	return out
}

// instead names the weaker means for a controller.
func instead(controller string) string {
	switch controller {
	case memory:
		return "--memory bounds each process by itself (RLIMIT_DATA)"
	case cpu:
		return "--cpus and --cpu-quota choose whole CPUs (sched_setaffinity); --cpu-shares is refused"
	case cpuset:
		return "--cpuset-cpus chooses where a step starts (sched_setaffinity); --cpuset-mems is refused"
	case pids:
		if !hostRoot() {
			return "--pids-limit counts the processes of a user (RLIMIT_NPROC)"
		}
	}
	return ""
}
